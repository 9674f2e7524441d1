"""Frobenius and spectral norms from products."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback._checks import check_count
from pullback._results import Estimate
from pullback._statistics import rounding
from pullback.operators.adapt import as_operator
from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_finite, dense
from pullback.spectral.lanczos import eigenvalues
from pullback.spectral.trace import trace


def frobenius_norm(op: Any, num_matvecs: int = 60, *, seed: int = 0) -> Estimate:
    """Estimate of |A|_F, the root of the sum of squared entries, with its standard error.

    Args:
        op: an operator, matrix, or any object with ``shape`` and ``@``, (rows, columns).
        num_matvecs: products to use, at least 12. With min(rows, columns) or more the norm is computed exactly.
        seed: of the random vectors, drawn from a generator of its own.

    Returns:
        Estimate. The square is unbiased; its root is not quite, by much less than the standard error.

    Raises:
        InputError: too few products.

    Cost: ``num_matvecs`` products with A and its transpose, half each.

    References: |A|_F^2 = tr(A^T A); Epperly, Tropp and Webber (2024), XTrace.

    Example:
        >>> import torch
        >>> A = torch.diag(1.0 / torch.arange(1, 201, dtype=torch.float64))
        >>> estimate = frobenius_norm(A, 40)
        >>> abs(estimate.value - float(A.norm())) < 3 * estimate.stderr < 0.1
        True
    """
    where = "frobenius_norm"
    operator = as_operator(op, where)
    small = min(operator.shape)
    check_count(where, "num_matvecs", num_matvecs, min(small, 12))
    if num_matvecs >= small:
        matrix = dense(operator if operator.shape[1] == small else operator.T)
        check_finite(matrix, where)
        value = float(matrix.double().norm())
        return Estimate(value, rounding(value, matrix.dtype), small)
    squared = trace(operator.T @ operator, num_matvecs // 2, seed=seed)
    value = max(squared.value, 0.0) ** 0.5
    below = max(squared.value - 3 * squared.stderr, 0.0) ** 0.5
    return Estimate(value, (value - below) / 3 or squared.stderr**0.5, 2 * squared.num_matvecs)


def spectral_norm(op: Any, *, tol: float = 1e-4, max_matvecs: int | None = None, seed: int = 0) -> Estimate:
    """Largest singular value of an operator, by Lanczos on A if it is symmetric and on A^T A if not.

    Args:
        op: an operator, matrix, or any object with ``shape`` and ``@``, (rows, columns).
        tol: residual to reach, relative to the largest eigenvalue (of A^T A where A is not symmetric).
        max_matvecs: products allowed, with A and its transpose together; None means 500.
        seed: of the start vector, drawn from a generator of its own.

    Returns:
        Estimate; a singular value lies within ``stderr``, the residual, whether or not it reached ``tol``. The value
        is a lower bound of the norm.

    Raises:
        InputError: ``tol`` is not positive.

    Cost: one product an iteration for symmetric operators, two for others.

    References: Golub and Kahan (1965); Parlett (1998), The Symmetric Eigenvalue Problem, ch. 13.

    Example:
        >>> import torch
        >>> round(spectral_norm(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).value, 4)
        2.0
    """
    where = "spectral_norm"
    operator = as_operator(op, where)
    limit = 500 if max_matvecs is None else max_matvecs
    check_count(where, "max_matvecs", limit, 4)
    if _is_symmetric(op, operator):
        pairs = eigenvalues(operator, 1, "both", tol=tol, max_matvecs=limit, seed=seed)
        best = int(pairs.values.abs().argmax())
        value, error = float(pairs.values[best].abs()), float(pairs.residuals[best])
        return Estimate(value, error + rounding(value, pairs.values.dtype), pairs.num_matvecs)
    narrow = operator if operator.shape[1] <= operator.shape[0] else operator.T
    pairs = eigenvalues(narrow.T @ narrow, tol=tol, max_matvecs=limit // 2, seed=seed)
    value = max(float(pairs.values[0]), 0.0) ** 0.5
    # |s_i^2 - value^2| <= residual for a singular value s_i, so |s_i - value| <= residual / (s_i + value)
    error = min(float(pairs.residuals[0]) / value if value else 0.0, float(pairs.residuals[0]) ** 0.5)
    return Estimate(value, error + rounding(value, pairs.values.dtype), 2 * pairs.num_matvecs)


def _is_symmetric(given: Any, operator: Operator) -> bool:
    """What the operator says of itself; a matrix can be looked at."""
    if isinstance(given, Tensor):
        return given.shape[0] == given.shape[1] and bool((given == given.T).all())
    return operator.symmetric
