"""Quadratics: trajectories of methods, their limits and rates, and the noise of gradients, in closed form."""

from pullback.dynamics.quadratic.batch_covariance import batch_covariance
from pullback.dynamics.quadratic.noisy_moments import Moments, noisy_moments
from pullback.dynamics.quadratic.quadratic import Quadratic
from pullback.dynamics.quadratic.settings import Optimum

__all__ = ["Moments", "Optimum", "Quadratic", "batch_covariance", "noisy_moments"]
