"""The diagonal from products with random signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count
from pullback._results import Estimate
from pullback._rng import make_generator
from pullback._statistics import rounding, student
from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_finite, dense, product, square_operator, work_dtype
from pullback.spectral.trace import leave_one_out


def diagonal(op: Any, num_matvecs: int = 60, *, seed: int = 0) -> Estimate:
    """Unbiased estimate of the diagonal of a square operator, every entry with its standard error.

    The XDiag estimator: the diagonal on the range of a sketch is computed, that of the rest sampled with random signs,
    and every vector serves both, left out of its own sketch.

    Args:
        op: an operator, matrix, or any object with ``shape`` and ``@``, (n, n); products with its transpose are needed.
        num_matvecs: products to use, at least 6. With n or more the diagonal is computed exactly.
        seed: of the random signs, drawn from a generator of its own.

    Returns:
        Estimate with value (n,) and stderr (n,).

    Raises:
        InputError: the operator is not square, or fewer than 6 products.

    Cost: ``num_matvecs`` products, half of them with the transpose; 3 n num_matvecs numbers.

    References: Bekas, Kokiopoulou and Saad (2007); Epperly, Tropp and Webber (2024), XDiag.

    Example:
        >>> A = torch.diag(torch.linspace(1, 2, 100)) + 1e-3
        >>> estimate = diagonal(A, 40)
        >>> inside = (estimate.value - A.diagonal()).abs() <= 3 * estimate.stderr
        >>> bool(inside.float().mean() > 0.99)
        True
    """
    where = "diagonal"
    operator = square_operator(op, where)
    n = operator.shape[0]
    check_count(where, "num_matvecs", num_matvecs, min(n, 6))
    if num_matvecs >= n:
        matrix = dense(operator)
        check_finite(matrix, where)
        exact = matrix.diagonal().clone()
        return Estimate(exact, rounding(1.0, exact.dtype) * exact.abs(), n)
    samples = _xdiag(operator, num_matvecs // 2, make_generator(seed), where)
    # signs repeat themselves in few draws and show no spread then, so that all entries vouch for each with one draw
    m = len(samples)
    spread = samples.var(0)
    spread = ((m - 1) * spread + spread.mean()) / m
    # every vector takes part a second time, in the sketches of the others
    stderr = student(m - 1) * (2 * spread / m).sqrt() + rounding(1.0, samples.dtype) * samples.abs().mean(0)
    return Estimate(samples.mean(0), stderr, num_matvecs - num_matvecs % 2)


def _xdiag(op: Operator, m: int, generator: torch.Generator, where: str) -> Tensor:
    """Estimates of the diagonal, (m, n)."""
    # Omega (n, m) signs; Y = A Omega = Q R; Z = A^T Q; S_i unit, orthogonal to all columns of R but the i-th, so that
    # Q (I - S_i S_i^T) Q^T projects on the range of the others, and leaves Q S_i S_i^T R_i of Y_i
    n = op.shape[0]
    omega = (
        torch.randint(0, 2, (n, m), generator=generator, device=generator.device).to(op.device, work_dtype(op)) * 2 - 1
    )
    y = product(op, omega)
    check_finite(y, where)
    q, s = leave_one_out(y)
    z, own = product(op.T, q), q @ s
    inside = (q * z).sum(1, keepdim=True) - own * (z @ s)
    outside = omega * own * (s * (q.T @ y)).sum(0)
    return (inside + outside).T
