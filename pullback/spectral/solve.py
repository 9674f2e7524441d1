"""Linear systems with a positive definite operator, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import check_option, input_error
from pullback._results import Solution
from pullback.operators.adapt import as_operator
from pullback.operators.arrays import real_tensor
from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_columns, floor, not_positive, product, square_operator, work_dtype


def solve(
    op: Any,
    b: Any,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_iters: int | None = None,
    *,
    preconditioner: Any = None,
    start: Any = None,
    indefinite: str = "refuse",
) -> Solution:
    """Solution of ``(A + damping I) x = b`` for a positive definite A, by linear conjugate gradients.

    Args:
        op: a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        b: right-hand side (n,), or several (n, K), which share blocks of products: a tensor or a NumPy array.
        damping: added to the diagonal; in the units of A, so that of a mean loss is 1/N of that of a sum.
        tol: |b - A x| / |b| to reach. With 0 exactly ``max_iters`` iterations are made; x stays as it is once what is
            left of the residual is rounding.
        max_iters: iterations allowed; None means 10 n, at most 1000.
        preconditioner: an approximate inverse of A, symmetric positive definite: an operator, a matrix or a function
            of residuals, a tensor (n, K) in and out.
        start: x to start from, of the shape of ``b``; None means zero.
        indefinite: what to do where p^T A p <= 0 for a search direction p: "refuse", or "stop" with the x made before
            it (truncated conjugate gradients; ``start`` itself, or zero, in the first iteration). One b.

    Returns:
        Solution with x, the residual recomputed from x, and the history of residuals; not converged is data. In low
        precision the recomputed residual may stop falling before ``tol``. For a tensor x has its dtype, on A's device;
        for an array x and the history are arrays, x in the dtype computed in: A's, float32 for half precision.

    Raises:
        InputError: A is seen to be indefinite or singular (p^T A p <= 0 for a search direction p), the shapes do not
            fit, also those of what a preconditioner returns, or the numbers of an array are not real.

    Cost: one product an iteration and column, one more for the residual; memory for 4 vectors a column.

    References: Hestenes and Stiefel (1952); Grosse (2021), section 4.

    Example:
        >>> A, b = torch.diag(torch.tensor([1.0, 10.0, 100.0])), torch.ones(3)
        >>> [round(v, 4) for v in solve(A, b, tol=0, max_iters=2).x.tolist()]
        [0.2052, 0.1874, 0.0092]
        >>> bool(torch.allclose(solve(A, b, damping=0.5).x, torch.linalg.solve(A + 0.5 * torch.eye(3), b)))
        True
    """
    where = "solve"
    operator = square_operator(op, where)
    n = operator.shape[0]
    right, begin = (real_tensor(given, where) if isinstance(given, np.ndarray) else given for given in (b, start))
    _check(where, n, right, damping, tol, max_iters, begin)
    limit = min(10 * n, 1000) if max_iters is None else max_iters
    inverse = None if preconditioner is None else _preconditioner(preconditioner, n, where)
    check_option(where, "indefinite", indefinite, ("refuse", "stop"))
    stop = indefinite == "stop"
    if stop and right.dim() != 1:
        got = f"shape {tuple(right.shape)}"
        raise input_error(where, f"`b` ({n},) with indefinite='stop'", got, "Solve for one at a time")
    columns = right.detach().reshape(n, -1).to(operator.device, work_dtype(operator))
    x = torch.zeros_like(columns) if begin is None else begin.detach().reshape(n, -1).to(columns, copy=True)
    system = _System(lambda v: product(operator, v) + damping * v, inverse, tol, limit, stop, where)
    x, residuals, history, curvature = _iterate(system, columns, x)
    residual = float(residuals.max())
    x, kept = x.reshape(right.shape), torch.stack(history).reshape(-1, *right.shape[1:])
    if isinstance(b, np.ndarray):
        as_array = kept.cpu().double().numpy()
        return Solution(x.cpu().numpy(), residual, len(history) - 1, residual <= tol, as_array, curvature)
    return Solution(x.to(right.dtype), residual, len(history) - 1, residual <= tol, kept, curvature)


@dataclass(frozen=True)
class _System:
    """What is solved, and when to stop.

    Args:
        times: A v, damping included.
        inverse: an approximate inverse of it.
        tol: of the residual, relative to b.
        limit: iterations at most.
        stop: end at a direction of negative curvature; else it is refused.
        where: the caller.
    """

    times: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor] | None
    tol: float
    limit: int
    stop: bool
    where: str

    def preconditioned(self, r: Tensor) -> Tensor:
        return r if self.inverse is None else self.inverse(r)


def _iterate(system: _System, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor], float | None]:
    """Columns of x, residuals recomputed and of every iteration, relative to b, and the curvature it stopped at."""
    tol = system.tol
    size = b.norm(dim=0)
    size = torch.where(size > 0, size, 1)
    r = b - system.times(x) if bool(x.any()) else b.clone()
    residuals = r.norm(dim=0) / size
    history = [residuals]
    while len(history) <= system.limit and (tol == 0 or bool((residuals > tol).any())):
        x, curvature = _round(system, x, r, size, history)
        r = b - system.times(x)
        fresh = r.norm(dim=0) / size
        if curvature is not None:
            return x, fresh, history, curvature
        stuck = bool((fresh[residuals > tol] > residuals[residuals > tol] / 2).all()) if tol else True
        residuals = fresh
        if stuck:  # rounding has the last word: another round would not help
            break
    return x, residuals, history, None


def _round(system: _System, x: Tensor, r: Tensor, size: Tensor, history: list[Tensor]) -> tuple[Tensor, float | None]:
    """Iterations until the recurrence's residual r reaches ``tol`` in every column; x and r for x, A x = b - r.

    With ``stop`` at most until a direction of negative curvature, which is then returned.
    """
    # p search directions, q = A p, z = M^-1 r, rho = r^T z; one of each a column
    eps, tol = torch.finfo(r.dtype).eps, system.tol
    z = system.preconditioned(r)
    p, rho = z.clone(), (r * z).sum(0)
    x, r = x.clone(), r.clone()
    best = r.norm(dim=0) / size
    active = torch.arange(r.shape[1], device=r.device)[best > max(tol, floor(r.dtype))]
    while len(history) <= system.limit and (tol == 0 or len(active)):
        relative = history[-1].clone()
        q = system.times(p[:, active]) if len(active) else r[:, active]
        curvature = (p[:, active] * q).sum(0)
        good = curvature > eps * p[:, active].norm(dim=0) * q.norm(dim=0)
        spent = best[active] <= 100 * floor(r.dtype)  # the curvature of rounding says nothing
        if not bool((good | spent).all()):
            worst = int((curvature + good * curvature.abs().max()).argmin())
            along = float(curvature[worst] / p[:, active[worst]].square().sum())
            if system.stop:
                return x, along
            raise not_positive(system.where, along, len(history))
        active, q, curvature = active[good], q[:, good], curvature[good]
        step = rho[active] / curvature
        x[:, active] += step * p[:, active]
        r[:, active] -= step * q
        relative[active] = r[:, active].norm(dim=0) / size[active]
        history.append(relative)
        z = system.preconditioned(r[:, active])
        fresh = (r[:, active] * z).sum(0)
        p[:, active] = z + fresh / rho[active] * p[:, active]
        rho[active] = fresh
        best = torch.minimum(best, relative)
        active = active[relative[active] > max(tol, floor(r.dtype))]
    return x, None


def _preconditioner(given: Any, n: int, where: str) -> Callable[[Tensor], Tensor]:
    if callable(given) and not isinstance(given, Operator | Tensor):
        return lambda r: _checked(given(r), r, where)
    operator = as_operator(given, where)
    if tuple(operator.shape) != (n, n):
        raise input_error(
            where, f"a preconditioner ({n}, {n})", f"shape {tuple(operator.shape)}", "Pass one of A's shape"
        )
    return lambda r: product(operator, r)


def _checked(z: Any, r: Tensor, where: str) -> Tensor:
    """What a function made of the residuals r, which must be of their shape: another would spread over r unseen."""
    if not isinstance(z, Tensor) or z.shape != r.shape:
        expected = f"`preconditioner` to make a tensor {tuple(r.shape)} of residuals of that shape"
        got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise input_error(where, expected, got, "Let it take and return columns (n, K)")
    return z.to(r.device)


def _check(where: str, n: int, b: Any, damping: float, tol: float, max_iters: int | None, start: Any) -> None:
    check_columns(where, "b", b, n, "Pass a tensor or an array of that shape")
    if start is not None and tuple(start.shape) != tuple(b.shape):
        got = f"shape {tuple(start.shape)}"
        raise input_error(where, f"`start` of the shape {tuple(b.shape)} of `b`", got, "Reshape it")
    if not bool(torch.isfinite(b).all()):
        raise input_error(where, "a finite `b`", "nan or inf", "Look for the step that made it")
    if not damping >= 0:
        raise input_error(where, "`damping` of at least 0", repr(damping), "Pass a non-negative `damping`")
    if not tol >= 0 or (tol == 0 and max_iters is None):
        remedy = "Pass `max_iters` with tol=0, which makes exactly that many iterations"
        raise input_error(where, "`tol` above 0, or 0 and `max_iters`", f"tol={tol!r}, max_iters={max_iters!r}", remedy)
    if max_iters is not None and max_iters < 0:
        raise input_error(where, "`max_iters` of at least 0", repr(max_iters), "Pass a number of iterations")
