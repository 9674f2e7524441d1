"""Quadratics: trajectories of methods, their limits and rates, and the noise of gradients, in closed form."""

from pullback.dynamics.quadratic.batches import batch_covariance
from pullback.dynamics.quadratic.moments import Moments, noisy_moments
from pullback.dynamics.quadratic.problem import Quadratic
from pullback.dynamics.quadratic.settings import Optimum

__all__ = ["Moments", "Optimum", "Quadratic", "batch_covariance", "noisy_moments"]
