"""Exact inner products of gradients, from layer inputs and output gradients."""

from pullback.kernels.backward import KernelSeries, backward_kernel
from pullback.kernels.gradients import GradientMatrix
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan import KernelPlan, LayerPlan
from pullback.kernels.preview import plan_kernel
from pullback.kernels.tangent import tangent_kernel

__all__ = [
    "GradientMatrix",
    "Kernel",
    "KernelPlan",
    "KernelSeries",
    "LayerPlan",
    "backward_kernel",
    "plan_kernel",
    "tangent_kernel",
]
