"""How training goes where it can be followed: models linear in their parameters, and how far networks are from them."""

from pullback.dynamics.linear.ensemble import Ensemble, ensemble_dynamics
from pullback.dynamics.linear.outputs import Dynamics, linear_dynamics
from pullback.dynamics.linear.regression import KernelRegression, kernel_regression
from pullback.dynamics.side_by_side import SideBySide, train_side_by_side

__all__ = [
    "Dynamics",
    "Ensemble",
    "KernelRegression",
    "SideBySide",
    "ensemble_dynamics",
    "kernel_regression",
    "linear_dynamics",
    "train_side_by_side",
]
