"""Slow, dense, obvious truth: loops over ``torch.autograd``, short enough to be checked by eye.

Nothing here imports the fast code, so an error there cannot hide here.
"""

from pullback.reference.curvature import dense_empirical_fisher, dense_fisher, dense_gauss_newton, dense_hessian
from pullback.reference.gradients import (
    gradient_matrix,
    layer_gradient_matrices,
    layer_kernels,
    output_gradients,
    per_sample_gradients,
    tangent_kernel,
    total_kernel,
)
from pullback.reference.influence import dense_mixed_derivative, dense_response, minimise, ridge
from pullback.reference.jacobian import dense_jacobian, dense_second_derivative, input_gradients, taylor_polynomial

__all__ = [
    "dense_empirical_fisher",
    "dense_fisher",
    "dense_gauss_newton",
    "dense_hessian",
    "dense_jacobian",
    "dense_mixed_derivative",
    "dense_response",
    "dense_second_derivative",
    "gradient_matrix",
    "input_gradients",
    "layer_gradient_matrices",
    "layer_kernels",
    "minimise",
    "output_gradients",
    "per_sample_gradients",
    "ridge",
    "tangent_kernel",
    "taylor_polynomial",
    "total_kernel",
]
