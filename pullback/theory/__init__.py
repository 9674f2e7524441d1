"""What wide random networks do to signals, predicted: numbers in, numbers out, no modules.

``measure`` finds the same quantities in real networks.
"""

from pullback.theory.attention import (
    Clustering,
    CollapseBound,
    TokenProfile,
    attention_paths,
    cluster_tokens,
    in_hemisphere,
    rank_collapse_bound,
    simplex_cosine,
    token_profile,
)
from pullback.theory.mean_field.backward_profile import backward_profile
from pullback.theory.mean_field.batch_norm import batch_norm_gradient_factor
from pullback.theory.mean_field.critical import CriticalPoint, critical_points, critical_sigma_w, starting_point
from pullback.theory.mean_field.curves import CurveMetrics
from pullback.theory.mean_field.jacobian_density import JacobianDensity, jacobian_density
from pullback.theory.mean_field.jacobians import JacobianMoments
from pullback.theory.mean_field.network import MeanField
from pullback.theory.mean_field.phase import PhaseDiagram, phase_diagram
from pullback.theory.mean_field.residual import ResidualProfile, residual_profile
from pullback.theory.mean_field.signal_profile import SignalProfile, signal_profile
from pullback.theory.wide import (
    Limit,
    SmoothnessConstants,
    convolutional_kernels,
    hessian_slope,
    infinite_width_kernels,
    kernel_change_bound,
    limit_of,
    output_hessian_bound,
    path_radius,
    smoothness_constants,
    wide_network_kernels,
)

__all__ = [
    "Clustering",
    "CollapseBound",
    "CriticalPoint",
    "CurveMetrics",
    "JacobianDensity",
    "JacobianMoments",
    "Limit",
    "MeanField",
    "PhaseDiagram",
    "ResidualProfile",
    "SignalProfile",
    "SmoothnessConstants",
    "TokenProfile",
    "attention_paths",
    "backward_profile",
    "batch_norm_gradient_factor",
    "cluster_tokens",
    "convolutional_kernels",
    "critical_points",
    "critical_sigma_w",
    "hessian_slope",
    "in_hemisphere",
    "infinite_width_kernels",
    "jacobian_density",
    "kernel_change_bound",
    "limit_of",
    "output_hessian_bound",
    "path_radius",
    "phase_diagram",
    "rank_collapse_bound",
    "residual_profile",
    "signal_profile",
    "simplex_cosine",
    "smoothness_constants",
    "starting_point",
    "token_profile",
    "wide_network_kernels",
]
