"""How training goes where it can be followed: quadratics, landscapes, models linear in their parameters."""

from pullback.dynamics import textbook
from pullback.dynamics.landscapes import LANDSCAPES, Landscape, landscape, network_landscape
from pullback.dynamics.linear.ensemble import Ensemble, ensemble_dynamics
from pullback.dynamics.linear.outputs import Dynamics, linear_dynamics
from pullback.dynamics.linear.regression import KernelRegression, kernel_regression
from pullback.dynamics.quadratic import Moments, Optimum, Quadratic, batch_covariance, noisy_moments
from pullback.dynamics.side_by_side import SideBySide, train_side_by_side
from pullback.dynamics.simulation import Trajectories, clip_norm, clip_value, simulate, simulate_all

__all__ = [
    "LANDSCAPES",
    "Dynamics",
    "Ensemble",
    "KernelRegression",
    "Landscape",
    "Moments",
    "Optimum",
    "Quadratic",
    "SideBySide",
    "Trajectories",
    "batch_covariance",
    "clip_norm",
    "clip_value",
    "ensemble_dynamics",
    "kernel_regression",
    "landscape",
    "linear_dynamics",
    "network_landscape",
    "noisy_moments",
    "simulate",
    "simulate_all",
    "textbook",
    "train_side_by_side",
]
