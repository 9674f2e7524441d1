"""How training goes where it can be followed: quadratics, landscapes, models linear in their parameters."""

from pullback.dynamics import textbook
from pullback.dynamics.batch_size import BatchCurve, adam_effective_step, batch_size_curve
from pullback.dynamics.elastic import ElasticPenalty
from pullback.dynamics.landscapes import LANDSCAPES, Landscape, landscape, network_landscape
from pullback.dynamics.linear.ensemble import Ensemble, ensemble_dynamics
from pullback.dynamics.linear.linear_dynamics import Dynamics, linear_dynamics
from pullback.dynamics.linear.regression import KernelRegression, kernel_regression
from pullback.dynamics.output_space import OutputPath, output_space_descent
from pullback.dynamics.parity import ParityVariance, SampledParities, parity_variance, sampled_parity_variance
from pullback.dynamics.proximal import Proximal, half_square, proximal_step
from pullback.dynamics.quadratic import Moments, Optimum, Quadratic, batch_covariance, noisy_moments
from pullback.dynamics.saddles import (
    CriticalPoint,
    Fate,
    all_positive_probability,
    critical_point,
    critical_points,
    morse_coordinates,
    near_saddle,
    negative_share,
    random_hessians,
    semicircle,
    spin_glass_spectrum,
    steps_away,
)
from pullback.dynamics.scale_invariant import ScaleGrowth, scale_invariant_growth
from pullback.dynamics.second_order import (
    DampedNewton,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    Newton,
    SaddleFreeNewton,
    Step,
)
from pullback.dynamics.side_by_side import SideBySide, train_side_by_side
from pullback.dynamics.simulation import Trajectories, clip_norm, clip_value, simulate, simulate_all

__all__ = [
    "LANDSCAPES",
    "BatchCurve",
    "CriticalPoint",
    "DampedNewton",
    "Dynamics",
    "ElasticPenalty",
    "Ensemble",
    "Fate",
    "HessianFree",
    "KernelRegression",
    "Landscape",
    "LevenbergMarquardt",
    "Moments",
    "NaturalGradient",
    "Newton",
    "Optimum",
    "OutputPath",
    "ParityVariance",
    "Proximal",
    "Quadratic",
    "SaddleFreeNewton",
    "SampledParities",
    "ScaleGrowth",
    "SideBySide",
    "Step",
    "Trajectories",
    "adam_effective_step",
    "all_positive_probability",
    "batch_covariance",
    "batch_size_curve",
    "clip_norm",
    "clip_value",
    "critical_point",
    "critical_points",
    "ensemble_dynamics",
    "half_square",
    "kernel_regression",
    "landscape",
    "linear_dynamics",
    "morse_coordinates",
    "near_saddle",
    "negative_share",
    "network_landscape",
    "noisy_moments",
    "output_space_descent",
    "parity_variance",
    "proximal_step",
    "random_hessians",
    "sampled_parity_variance",
    "scale_invariant_growth",
    "semicircle",
    "simulate",
    "simulate_all",
    "spin_glass_spectrum",
    "steps_away",
    "textbook",
    "train_side_by_side",
]
