"""The same systems for NumPy arrays: SciPy's conjugate gradients, watched through its products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pullback._results import Solution
from pullback.operators.operator import Operator
from pullback.spectral.inputs import floor, not_positive, product, work_dtype

Array = NDArray[Any]


class _Spent(Exception):
    """What is left of the residual is rounding: SciPy would go on to divide zero by zero."""


def solve_numpy(
    op: Operator,
    b: Array,
    damping: float,
    tol: float,
    limit: int,
    inverse: Callable[[Tensor], Tensor] | None,
    start: Array | None,
) -> Solution:
    """``solve`` for arrays, column by column; the arguments have been checked."""
    dtype = torch.empty(0, dtype=work_dtype(op)).numpy().dtype
    columns = b.reshape(len(b), -1).astype(dtype)
    starts = np.zeros_like(columns) if start is None else start.reshape(len(b), -1).astype(dtype)

    def system(v: Array) -> Array:
        return product(op, torch.as_tensor(v, device=op.device)).cpu().numpy() + damping * v

    def precondition(v: Array) -> Array:
        return v if inverse is None else inverse(torch.as_tensor(v, device=op.device).unsqueeze(1)).cpu().numpy()[:, 0]

    runs = [_refined(system, precondition, v, x, tol, limit) for v, x in zip(columns.T, starts.T, strict=True)]
    x, residuals = np.stack([x for x, _, _ in runs], axis=1), np.array([last for _, _, last in runs])
    length = max(len(history) for _, history, _ in runs) if tol else limit + 1
    history = np.stack([np.pad(h, (0, length - len(h)), mode="edge") for _, h, _ in runs], axis=1)
    residual = float(residuals.max())
    kept = history if b.ndim > 1 else history[:, 0]
    return Solution(x.reshape(b.shape), residual, length - 1, residual <= tol, kept)


def _refined(
    system: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    b: Array,
    x: Array,
    tol: float,
    limit: int,
) -> tuple[Array, list[float], float]:
    """Solution, history and recomputed residual; begun again where rounding has parted the two, while that helps."""
    history: list[float] = []
    size, last = float(np.linalg.norm(b)) or 1.0, float("inf")
    while True:
        x, found = _column(system, precondition, b, x, tol, limit - max(len(history) - 1, 0))
        history = [*history, *found[1:]] if history else found
        fresh = float(np.linalg.norm(b - system(x))) / size
        if not tol or fresh <= tol or fresh > last / 2 or len(history) > limit:
            return x, history, fresh
        last = fresh


def _column(
    system: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    b: Array,
    start: Array,
    tol: float,
    limit: int,
) -> tuple[Array, list[float]]:
    """Solution and history for one right-hand side; residuals follow from the steps, without products of their own."""
    from scipy.sparse.linalg import LinearOperator, cg

    n, eps, size = len(b), float(np.finfo(b.dtype).eps), float(np.linalg.norm(b)) or 1.0
    x, r = start.copy(), b - (system(start) if start.any() else 0)
    rest = floor(torch.as_tensor(b).dtype)
    history = [float(np.linalg.norm(r)) / size]
    seen: list[tuple[Array, Array]] = []

    def watched(p: Array) -> Array:
        q = system(p)
        if start.any() and not seen:  # the first product is that of the start, and no search direction
            seen.append((p, q))
            return q
        curvature = float(p @ q)
        if curvature <= eps * float(np.linalg.norm(p) * np.linalg.norm(q)):
            if min(history) <= 100 * rest:
                raise _Spent
            raise not_positive("solve", curvature / float(p @ p), len(history))
        seen[:] = [(p, q)]
        return q

    def step(new: Array) -> None:
        p, q = seen[0]
        r[:] -= float(p @ (new - x)) / float(p @ p) * q
        x[:] = new
        history.append(float(np.linalg.norm(r)) / size)
        if history[-1] <= rest:
            raise _Spent

    operators = [LinearOperator((n, n), matvec=f, dtype=b.dtype) for f in (watched, precondition)]
    if limit and history[0] > max(tol, rest):
        with suppress(_Spent):
            cg(operators[0], b, x0=start, rtol=tol, atol=0.0, maxiter=limit, M=operators[1], callback=step)
    return x, history
