"""Slow, dense, obvious truth: loops over ``torch.autograd``, short enough to be checked by eye.

Nothing here imports the fast code, so an error there cannot hide here.
"""

from pullback.reference.curvature import dense_empirical_fisher, dense_gauss_newton, dense_hessian
from pullback.reference.gradients import (
    gradient_matrix,
    layer_gradient_matrices,
    layer_kernels,
    output_gradients,
    per_sample_gradients,
    tangent_kernel,
    total_kernel,
)

__all__ = [
    "dense_empirical_fisher",
    "dense_gauss_newton",
    "dense_hessian",
    "gradient_matrix",
    "layer_gradient_matrices",
    "layer_kernels",
    "output_gradients",
    "per_sample_gradients",
    "tangent_kernel",
    "total_kernel",
]
