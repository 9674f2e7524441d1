"""Curvature along a direction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback._checks import input_error
from pullback.spectral.arguments import check_columns, check_finite, product, square_operator, work_dtype


def rayleigh_quotient(op: Any, v: Tensor) -> Any:
    """Curvature ``v^T A v / v^T v`` along v, whatever its length.

    It lies between the smallest and the largest eigenvalue of a symmetric A, and is the eigenvalue of an eigenvector.

    Args:
        op: an operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        v: a direction (n,), or several (n, K).

    Returns:
        A number, or a tensor (K,).

    Raises:
        InputError: the operator is not square, the shapes do not fit, or a direction is zero.

    Cost: one product for each direction.

    References: Grosse (2021), section 2.2.

    Example:
        >>> import torch
        >>> rayleigh_quotient(torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([1.0, 1.0]))
        2.0
    """
    where = "rayleigh_quotient"
    operator = square_operator(op, where)
    n = operator.shape[0]
    v = check_columns(where, "v", v, n)
    columns = v.detach().reshape(n, -1).to(operator.device, work_dtype(operator))
    if not bool((columns != 0).any(0).all()):
        raise input_error(where, "directions that are not zero", "a zero vector", "Leave it out")
    products = product(operator, columns)
    check_finite(products, where)
    columns = columns.double()
    quotients = ((columns * products.double()).sum(0) / columns.square().sum(0)).to(products.dtype)
    return quotients if v.dim() == 2 else float(quotients[0])
