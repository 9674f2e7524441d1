"""How training goes where it can be followed: models linear in their parameters, and how far networks are from them."""

from pullback.dynamics.linear.ensemble import Ensemble, ensemble_dynamics
from pullback.dynamics.linear.outputs import Dynamics, linear_dynamics
from pullback.dynamics.linear.regression import KernelRegression, kernel_regression

__all__ = [
    "Dynamics",
    "Ensemble",
    "KernelRegression",
    "ensemble_dynamics",
    "kernel_regression",
    "linear_dynamics",
]
