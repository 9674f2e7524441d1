"""Linear systems by the Neumann series, which also bears operators that answer differently each time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback._checks import InputError, check_count, check_positive, input_error
from pullback._results import Solution
from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_columns, product, square_operator, work_dtype
from pullback.spectral.lanczos import eigenvalues

GROWTH = 1e3  # of the residual, beyond which the series is taken to diverge


def neumann_solve(
    op: Any,
    b: Tensor,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_iters: int = 1000,
    *,
    step: float | None = None,
    seed: int = 0,
) -> Solution:
    """Solution of ``(A + damping I) x = b`` by ``x <- x + step (b - (A + damping I) x)`` from x = 0.

    After k iterations x is ``step`` times the sum of the first k powers of ``M = I - step (A + damping I)`` applied to
    b. It converges if and only if all eigenvalues of M lie within (-1, 1): for 0 < step < 2 / (largest eigenvalue) and
    no eigenvalue of ``A + damping I`` at or below zero. Conjugate gradients (``solve``) need fewer products; this needs
    no two products to agree, so that A may be another mini-batch's matrix each time, and x then fluctuates about the
    solution by an amount that falls with ``step``.

    Args:
        op: a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        b: right-hand side (n,), or several (n, K).
        damping: added to the diagonal.
        tol: |b - A x| / |b| to reach. With 0 exactly ``max_iters`` iterations are made.
        max_iters: iterations allowed.
        step: None means 1 / (largest eigenvalue), found by Lanczos, which needs products that agree.
        seed: of Lanczos' start vector.

    Returns:
        Solution, whose history costs no products of its own; not converged is data.

    Raises:
        InputError: the series diverges (the message gives the bound on the step), or an argument is out of range.

    Cost: one product an iteration and column, one more for the residual, and Lanczos' where no ``step`` is given.

    References: Lorraine, Vicol and Duvenaud (2020), eq. 7; Agarwal, Bullins and Hazan (2017), stochastic products.

    Example:
        >>> A, b = torch.diag(torch.tensor([1.0, 2.0])), torch.ones(2)
        >>> neumann_solve(A, b, step=0.5, tol=1e-6).x
        tensor([1.0000, 0.5000])
    """
    where = "neumann_solve"
    operator = square_operator(op, where)
    n = operator.shape[0]
    b = check_columns(where, "b", b, n)
    check_count(where, "max_iters", max_iters, 0)
    if not (tol >= 0 and damping >= 0):
        raise input_error(
            where, "`tol` and `damping` of at least 0", f"{tol!r} and {damping!r}", "Pass neither below 0"
        )
    if step is None:
        top = eigenvalues(operator, tol=1e-2, seed=seed)
        step = 1.0 / max(float(top.values[0] + top.residuals[0]) + damping, torch.finfo(torch.float32).tiny)
    check_positive(where, "step", step)
    columns = b.detach().reshape(n, -1).to(operator.device, work_dtype(operator))
    size = columns.norm(dim=0)
    size = torch.where(size > 0, size, 1)
    x, residual = torch.zeros_like(columns), columns
    history = [residual.norm(dim=0) / size]
    while len(history) <= max_iters and (tol == 0 or bool((history[-1] > tol).any())):
        x = x + step * residual
        residual = columns - product(operator, x) - damping * x
        history.append(residual.norm(dim=0) / size)
        if not bool((history[-1] <= GROWTH).all()):
            raise _diverges(operator, damping, step, len(history) - 1, seed, where)
    kept = torch.stack(history) if b.dim() > 1 else torch.stack(history).squeeze(1)
    last = float(history[-1].max())
    return Solution(x.reshape(b.shape).to(b.dtype), last, len(history) - 1, last <= tol, kept)


def _diverges(op: Operator, damping: float, step: float, iteration: int, seed: int, where: str) -> InputError:
    """What would have converged, as far as the operator can tell."""
    expected, got = "a step for which the series converges", f"step={step:.6g}, diverging at iteration {iteration}"
    try:
        ends = eigenvalues(op, 1, "both", tol=1e-3, seed=seed)
    except InputError:  # products that do not agree have no eigenvalues
        return input_error(where, expected, got, "Choose a smaller `step`")
    high, low = (float(v) + damping for v in (ends.values[0], ends.values[-1]))
    if low < 0:
        remedy = f"Raise `damping` by more than {-low:.6g}: with a negative eigenvalue no step converges"
    else:
        remedy = f"Choose a `step` below 2 / (largest eigenvalue) = {2 / high:.6g}"
    return input_error(where, expected, got, remedy)
