"""What every algorithm does with its arguments: any operator in, products in a dtype that can be computed with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback._checks import InputError, input_error
from pullback.operators.adapt import as_operator
from pullback.operators.operator import Operator

DENSE_LIMIT = 1000  # rows up to which a matrix is formed where an exact answer needs it


def square_operator(op: Any, where: str) -> Operator:
    """The argument as an operator, which must be square."""
    operator = as_operator(op, where)
    if operator.shape[0] != operator.shape[1]:
        raise input_error(where, "a square operator", f"shape {tuple(operator.shape)}", "Pass a symmetric operator")
    return operator


def check_columns(where: str, name: str, given: Any, n: int, remedy: str = "Pass a tensor of that shape") -> Tensor:
    """The argument as a vector of n numbers or columns of as many, which it must be."""
    if not isinstance(given, Tensor) or given.dim() not in (1, 2) or given.shape[0] != n:
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise input_error(where, f"`{name}` ({n},) or ({n}, K)", got, remedy)
    return given


def work_dtype(op: Operator) -> torch.dtype:
    """The operator's dtype, or float32 for half precision, in which bases cannot be orthogonalised."""
    return op.dtype if op.dtype in (torch.float32, torch.float64) else torch.float32


def product(op: Operator, matrix: Tensor) -> Tensor:
    """``op @ matrix`` in and out of the working dtype."""
    return (op @ matrix.to(op.dtype)).to(matrix.dtype)


def dense(op: Operator) -> Tensor:
    """The whole matrix in the working dtype."""
    return op.to_dense().to(work_dtype(op))


# relative difference of <u, A v> and <A u, v> above which an operator is not symmetric; rounding stays far below
ASYMMETRY = {torch.float64: 1e-6, torch.float32: 1e-3}


def check_asymmetry(error: float, scale: float, op: Operator, where: str) -> None:
    """Refuse operators whose products show <u, A v> != <A u, v>."""
    if error > ASYMMETRY.get(op.dtype, 0.1) * scale:
        raise input_error(
            where,
            "a symmetric operator",
            f"<u, A v> and <A u, v> that differ by {error:.3g} at a size of {scale:.3g}",
            "Pass A.T @ A for singular values, and an operator that answers alike each time",
        )


def check_symmetric(matrix: Tensor, op: Operator, where: str) -> None:
    """Refuse a dense matrix of products that is not symmetric or not finite."""
    check_finite(matrix, where)
    check_asymmetry(float((matrix - matrix.T).abs().max()), float(matrix.abs().max()), op, where)


def check_finite(products: Tensor, where: str) -> None:
    """Refuse products with entries that are not finite."""
    if not bool(torch.isfinite(products.sum())) and not bool(torch.isfinite(products).all()):  # a sum may overflow
        raise input_error(where, "finite products", "nan or inf", "Look for the operator that makes them")


def gaussian(n: int, columns: int, generator: torch.Generator, op: Operator) -> Tensor:
    """Standard normal (n, columns), drawn on the CPU so that every device sees the same numbers."""
    return torch.randn(n, columns, generator=generator, dtype=torch.float64, device=generator.device).to(
        op.device, work_dtype(op)
    )


def floor(dtype: torch.dtype) -> float:
    """Relative residual that is nothing but rounding; iterating on it would solve for noise."""
    return 10 * torch.finfo(dtype).eps


def not_positive(where: str, curvature: float, iteration: int) -> InputError:
    """The error of a search direction along which an operator is not positive."""
    return input_error(
        where,
        "a positive definite operator",
        f"curvature p^T A p / p^T p = {curvature:.3g} along the search direction of iteration {iteration}",
        "Pass a `damping` above minus the smallest eigenvalue, or a Gauss-Newton matrix instead of a Hessian",
    )
