"""How training goes where it can be followed: quadratics, models linear in their parameters, networks beside them."""

from pullback.dynamics.linear.ensemble import Ensemble, ensemble_dynamics
from pullback.dynamics.linear.outputs import Dynamics, linear_dynamics
from pullback.dynamics.linear.regression import KernelRegression, kernel_regression
from pullback.dynamics.quadratic import Moments, Optimum, Quadratic, batch_covariance, noisy_moments
from pullback.dynamics.side_by_side import SideBySide, train_side_by_side

__all__ = [
    "Dynamics",
    "Ensemble",
    "KernelRegression",
    "Moments",
    "Optimum",
    "Quadratic",
    "SideBySide",
    "batch_covariance",
    "ensemble_dynamics",
    "kernel_regression",
    "linear_dynamics",
    "noisy_moments",
    "train_side_by_side",
]
