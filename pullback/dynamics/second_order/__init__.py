"""Second-order and natural methods as ``torch.optim.Optimizer``s, on this package's operators and kernels."""

from pullback.dynamics.second_order.adaptive import DampedNewton
from pullback.dynamics.second_order.hessian_free import HessianFree
from pullback.dynamics.second_order.levenberg_marquardt import LevenbergMarquardt
from pullback.dynamics.second_order.natural import NaturalGradient
from pullback.dynamics.second_order.newton import Newton, SaddleFreeNewton
from pullback.dynamics.second_order.step import Step

__all__ = [
    "DampedNewton",
    "HessianFree",
    "LevenbergMarquardt",
    "NaturalGradient",
    "Newton",
    "SaddleFreeNewton",
    "Step",
]
