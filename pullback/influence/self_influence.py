"""``self_influence``: what every training sample does to its own loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pullback._checks import check_positive
from pullback._progress import PATIENCE, Progress
from pullback.functional import LossFunction
from pullback.functional.batches import Data
from pullback.influence.dual import DampedInverse, own_entries
from pullback.influence.held_rows import count_samples, row_blocks
from pullback.influence.meaning import OF_ITSELF
from pullback.influence.query import Influence, summary
from pullback.influence.solves import Matrix, Method, Solves, System
from pullback.influence.system import DampedSystem, joined, settings_of


@torch.inference_mode(False)
def self_influence(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    damping: float,
    points: Data | None = None,
    matrix: Matrix = "gauss_newton",
    method: Method = "auto",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
    block: int = 16,
    progress: bool = True,
) -> Influence:
    """Rise of a sample's own loss when it is left out, to first order: 1/N g_i^T (A + damping I)^{-1} g_i.

    Samples with large values are those the rest of the data does not explain: outliers and wrong labels.

    Args:
        model: as for ``response``.
        loss_fn: as for ``response``.
        data: the training data, as for ``response``.
        damping: lam of the averaged cost (N lam for a sum).
        points: the samples asked about, where they are only some of the training samples.
        matrix: as for ``response``.
        method: as for ``response``.
        tol: as for ``response``.
        max_iters: as for ``response``.
        params: as for ``response``.
        block: samples solved for at the same time.
        progress: say on standard error how far it is, where it takes more than some seconds.

    Returns:
        Influence with values (n,), not negative where A + damping I is positive definite.

    Raises:
        InputError: as ``response``.

    Cost: one solve a sample. Where the samples' rows (N C P numbers; or the matrix, P^2, if that is smaller) take at
        most 2 GiB they are held: C passes back, and matrix products for all that follows. Else passes through the
        network, and memory of about 6 P ``block`` numbers. "dual": the Gram matrix and its factors, or those of the
        matrix, and two products with them; see ``DampedInverse``.

    References: Koh and Liang (2017), arXiv:1703.04730, section 5.4.

    Example:
        >>> x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        >>> model, half = nn.Linear(2, 1, bias=False).double(), lambda z, t: (z - t).square().sum(1) / 2
        >>> found = self_influence(model, half, (x, y), damping=0.1, tol=1e-12).values
        >>> A, e = x.T @ x / 6 + 0.1 * torch.eye(2), model(x) - y
        >>> bool(torch.allclose(found, (e[:, 0] ** 2 * (x * torch.linalg.solve(A, x.T).T).sum(1) / 6).detach()))
        True
    """
    where = "self_influence"
    settings = settings_of(where, matrix, method, damping, tol, max_iters, params)
    check_positive(where, "block", block)
    system = DampedSystem(model, loss_fn, data, settings, where)
    return on_themselves(system, points, block=block, progress=progress, where=where)


def on_themselves(system: DampedSystem, points: Data | None, *, block: int, progress: bool, where: str) -> Influence:
    """The influences by a system that is there."""
    asked = system.data if points is None else points
    count = count_samples(asked, where)
    with Progress(progress, "samples", PATIENCE) as shown:
        shown.start(where, count)
        ready = system.for_columns(count)
        if points is None and isinstance(ready.inverse, DampedInverse):
            influences = _all_at_once(system.loss_fn, asked, ready, ready.inverse)
            shown.advance(count)
            return influences
        values, solves = [], Solves(ready)
        for some in row_blocks(system.view, system.loss_fn, asked, 1, where):
            for rows in some.rows.split(block):
                columns = rows.T
                values.append((columns * solves(columns)).sum(0) / system.num_samples)
                shown.advance(len(rows))
        return summary(torch.cat(values), solves, asked, OF_ITSELF)


def _all_at_once(loss_fn: LossFunction, data: Data, system: System, inverse: DampedInverse) -> Influence:
    """All training samples from the factors of the Gram matrix K: g_i = F^T v_i, and g_i^T A^{-1} g_i = v_i^T K w_i."""
    N = system.num_samples
    v = own_entries(inverse.own_coefficients(loss_fn, joined(data)[1]))  # (N C, N)
    w = inverse.coefficients(v)
    values = (inverse.gram_product(v) * w).sum(0) / N
    solves = Solves(system)
    solves.keep_rows(inverse, v, w)
    return summary(values, solves, data, OF_ITSELF)
