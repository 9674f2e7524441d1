"""Leave-one-out estimates: what training without a sample would have given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive, input_error
from pullback._progress import PATIENCE, Progress
from pullback._results import Drawn
from pullback.functional import LossFunction, ModelView, output_hessian, per_sample_loss, take
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.functional.target_checks import logits_of
from pullback.influence.dual import DampedInverse, own_entries
from pullback.influence.held_rows import count_samples, row_blocks
from pullback.influence.solves import Matrix, Method, Solves, System
from pullback.influence.system import DampedSystem, joined, num_outputs, settings_of

Estimate = Literal["leverage", "first_order"]


@dataclass(frozen=True)
class LeaveOneOut(Drawn):
    """What training without one sample would have given, for each of n samples in turn.

    Attributes:
        estimate: "leverage" or "first_order".
        changes: w_{-i} - w, (P, n), in the model's parameter order; None where not asked for.
        outputs: what the model without sample i says of sample i, (n, C), in the linearised model.
        losses: the loss of sample i under those outputs, (n,); their mean is the leave-one-out estimate of the
            expected loss.
        leverage: tr(H_i J_i (A + damping I)^{-1} J_i^T) / N, (n,), between 0 and C for convex losses; over all samples
            it sums to the effective number of parameters.
        residual: the largest relative residual of all solves.
        iterations: the most that a solve took; 0 where the system was factored.
        converged: whether every solve did.
    """

    estimate: Estimate
    changes: Tensor | None
    outputs: Tensor
    losses: Tensor
    leverage: Tensor
    residual: float
    iterations: int
    converged: bool


@torch.inference_mode(False)
def leave_one_out(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    damping: float,
    points: Data | None = None,
    estimate: Estimate = "leverage",
    changes: bool = True,
    matrix: Matrix = "gauss_newton",
    method: Method = "auto",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
    block: int = 16,
    progress: bool = True,
) -> LeaveOneOut:
    """Estimates of the model trained without sample i, of its outputs there, and of the leave-one-out loss.

    With g_i = J_i^T r_i the sample's gradient, H_i the second derivative of its loss in its outputs, A the Gauss-Newton
    matrix plus damping, and S_i = J_i A^{-1} J_i^T (C, C):

        first order   w_{-i} - w = 1/N A^{-1} J_i^T r_i
        leverage      w_{-i} - w = 1/N A^{-1} J_i^T (I - H_i S_i / N)^{-1} r_i

    The first is the influence function, the derivative at full weight. The second takes the sample's curvature out of
    A as well: one Gauss-Newton step without the sample. It is exact for squared error and models linear in their
    parameters (ridge regression: e_i / (1 - h_i)). N and the damping stay as they were when a sample is left out.

    Args:
        model: any module in eval mode, at the minimum of mean loss + damping/2 |w|^2.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: the training data, as for ``response``.
        damping: lam of the averaged cost (N lam for a sum).
        points: the training samples to leave out, in turn; None for all of them.
        estimate: which of the two.
        changes: whether to return the changes of the weights, (P, n) numbers.
        matrix: "gauss_newton"; for "first_order" also "hessian".
        method: as for ``response``; "dual" with ``points=None``: all samples from one factorisation.
        tol: as for ``response``.
        max_iters: as for ``response``.
        params: as for ``response``.
        block: samples solved for at the same time.
        progress: say on standard error how far it is, where it takes more than some seconds.

    Returns:
        LeaveOneOut.

    Raises:
        InputError: as ``response``; "leverage" with a matrix other than Gauss-Newton; a leverage of 1, where a sample
            alone determines a direction of the weights.

    Cost: C solves a sample, with rows held where they fit, as ``self_influence`` has it. Memory: about 6 P C ``block``
        numbers, and P n for the changes. "dual" with all samples: that of ``DampedInverse`` and two more solves with
        its factors.

    References: Cook (1977); approximate leave-one-out, Rad and Maleki (2020), arXiv:1801.10243.

    Example:
        >>> x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        >>> from pullback import reference
        >>> model, half = nn.Linear(2, 1, bias=False).double(), lambda z, t: (z - t).square().sum(1) / 2
        >>> model.weight.data = reference.ridge(x, y, 0.6).T
        >>> found = leave_one_out(model, half, (x, y), damping=0.1, tol=1e-12)  # 0.1 = 0.6 / N
        >>> bool(torch.allclose(model.weight[0] + found.changes[:, 4], reference.ridge(x, y, 0.6, without=4)[:, 0]))
        True
    """
    where = "leave_one_out"
    settings = settings_of(where, matrix, method, damping, tol, max_iters, params)
    check_estimate(estimate, matrix, where)
    check_positive(where, "block", block)
    asked = LeftOut(points, estimate, changes)
    return without_each(DampedSystem(model, loss_fn, data, settings, where), asked, block=block, progress=progress)


@dataclass(frozen=True)
class LeftOut:
    """What is asked: see ``leave_one_out``."""

    points: Data | None
    estimate: Estimate
    changes: bool


def check_estimate(estimate: str, matrix: str, where: str) -> None:
    """Refuse a matrix the estimate is not made for."""
    check_option(where, "estimate", estimate, ("leverage", "first_order"))
    if matrix == "empirical_fisher" or (matrix == "hessian" and estimate == "leverage"):
        remedy = "Use matrix='gauss_newton'" + (", or estimate='first_order'" if matrix == "hessian" else "")
        raise input_error(where, f"a matrix that fits estimate={estimate!r}", repr(matrix), remedy)


def without_each(system: DampedSystem, left_out: LeftOut, *, block: int, progress: bool) -> LeaveOneOut:
    """The estimates by a system that is there."""
    where, estimate = "leave_one_out", left_out.estimate
    asked = system.data if left_out.points is None else left_out.points
    count = count_samples(asked, where)
    with Progress(progress, "samples", PATIENCE) as shown:
        shown.start(where, count)
        C = num_outputs(system.view, next(iter([asked] if isinstance(asked, tuple) else asked))[0])
        ready = system.for_columns(count * C)
        if left_out.points is None and isinstance(ready.inverse, DampedInverse):
            estimates = _all_at_once(system, ready, ready.inverse, left_out)
            shown.advance(count)
            return estimates
        parts, solves = [], Solves(ready)
        for rows, outputs, y in _blocks(system.view, asked, C, block, where):
            X = solves(rows.T)  # A^{-1} J^T
            part = _part(system, outputs, y, _own_blocks(rows @ X, len(outputs)), estimate)
            each = X.unflatten(1, (len(outputs), -1))
            parts.append((part, torch.einsum("pnc,nc->pn", each, part.coefficients) if left_out.changes else None))
            shown.advance(len(outputs))
    residual = solves.residual()
    return LeaveOneOut(
        estimate,
        torch.cat([kept for _, kept in parts if kept is not None], 1) if left_out.changes else None,
        torch.cat([part.outputs for part, _ in parts]),
        torch.cat([part.losses for part, _ in parts]),
        torch.cat([part.leverage for part, _ in parts]),
        residual,
        solves.iterations,
        residual <= system.settings.tol,
    )


def _blocks(view: ModelView, data: Data, C: int, block: int, where: str) -> Iterator[tuple[Tensor, Tensor, Batch]]:
    """Rows (n C, P), outputs and targets of at most ``block`` samples."""
    for some in row_blocks(view, None, data, C, where):
        outputs = logits_of(some.outputs).detach()
        for start in range(0, len(outputs), block):
            part = slice(start, start + block)
            yield some.rows[start * C : (start + block) * C], outputs[part], take(some.y, part)


@dataclass(frozen=True)
class _Part:
    """The estimates of some samples; their changes of the weights are A^{-1} J_i^T ``coefficients``, (n, C)."""

    coefficients: Tensor
    outputs: Tensor
    losses: Tensor
    leverage: Tensor


def _part(system: DampedSystem, outputs: Tensor, y: Batch, S: Tensor, estimate: str) -> _Part:
    """From S_i (n, C, C) to the estimates. r: slopes of the losses in the outputs, H: their second derivatives."""
    where, N, loss_fn = "leave_one_out", system.num_samples, system.loss_fn
    with torch.enable_grad():
        leaf = outputs.clone().requires_grad_()
        r = torch.autograd.grad(per_sample_loss(loss_fn, leaf, y, where).sum(), leaf)[0].reshape(len(S), -1)
    H = output_hessian(loss_fn, outputs, y, where)
    u = r / N
    if estimate == "leverage":
        left = torch.eye(H.shape[1], dtype=H.dtype, device=H.device) - H @ S / N
        _check_leverage(left, where)
        u = torch.linalg.solve(left, u.unsqueeze(2)).squeeze(2)
    change = (S @ u.unsqueeze(2)).squeeze(2)
    after = outputs + change.view(outputs.shape)
    losses = per_sample_loss(loss_fn, after, y, where).detach()
    return _Part(u, after.reshape(len(S), -1), losses, torch.einsum("nab,nba->n", H, S) / N)


def _check_leverage(left: Tensor, where: str) -> None:
    """Refuse samples without which a direction of the weights is free: I - H S / N is singular there."""
    smallest = torch.linalg.svdvals(left)[:, -1]
    bad = smallest <= 100 * left.shape[1] * torch.finfo(left.dtype).eps
    if bad.any():
        got = f"a leverage of 1 for sample {int(bad.nonzero()[0])}"
        raise input_error(where, "samples the others can do without", got, "Pass a larger `damping`")


def _all_at_once(system: DampedSystem, ready: System, inverse: DampedInverse, left_out: LeftOut) -> LeaveOneOut:
    """All samples from the factors of the Gram matrix."""
    between, N, estimate = inverse.between_rows, system.num_samples, left_out.estimate
    part = _part(system, inverse.outputs, joined(system.data)[1], _own_blocks(between, N), estimate)
    v = own_entries(part.coefficients)  # the changes are A^{-1} F^T v
    w = inverse.coefficients(v)
    solves = Solves(ready)
    solves.keep_rows(inverse, v, w)
    residual = max(solves.residual(), inverse.residual(between))
    kept = inverse.rows.T @ w if left_out.changes else None
    outputs, losses, leverage = part.outputs, part.losses, part.leverage
    return LeaveOneOut(estimate, kept, outputs, losses, leverage, residual, 0, residual <= system.settings.tol)


def _own_blocks(matrix: Tensor, n: int) -> Tensor:
    """Diagonal blocks (n, C, C) of a matrix between (sample, output) pairs."""
    C = matrix.shape[0] // n
    return matrix.view(n, C, n, C).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
