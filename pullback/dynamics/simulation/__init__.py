"""Optimizers on landscapes, run as they are."""

from pullback.dynamics.simulation.noise_and_clipping import clip_norm, clip_value
from pullback.dynamics.simulation.simulate import simulate, simulate_all
from pullback.dynamics.simulation.trajectories import Trajectories

__all__ = ["Trajectories", "clip_norm", "clip_value", "simulate", "simulate_all"]
