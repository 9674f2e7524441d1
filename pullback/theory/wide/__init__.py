"""Fully connected networks in NTK scaling as they become wide: what their Hessian and tangent kernel do."""

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
    "SmoothnessConstants",
    "hessian_slope",
    "kernel_change_bound",
    "output_hessian_bound",
    "path_radius",
    "smoothness_constants",
    "wide_network_kernels",
]
