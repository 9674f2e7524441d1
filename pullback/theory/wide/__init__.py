"""Wide networks: what their Hessian and tangent kernel do, kernels of infinite width, and those of a user's network."""

from pullback.theory.wide.convolutional import convolutional_kernels
from pullback.theory.wide.infinite_width import infinite_width_kernels
from pullback.theory.wide.limit import Limit, limit_of
from pullback.theory.wide.linearity import (
    SmoothnessConstants,
    hessian_slope,
    kernel_change_bound,
    output_hessian_bound,
    path_radius,
    smoothness_constants,
    wide_network_kernels,
)

__all__ = [
    "Limit",
    "SmoothnessConstants",
    "convolutional_kernels",
    "hessian_slope",
    "infinite_width_kernels",
    "kernel_change_bound",
    "limit_of",
    "output_hessian_bound",
    "path_radius",
    "smoothness_constants",
    "wide_network_kernels",
]
