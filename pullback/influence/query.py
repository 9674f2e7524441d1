"""``query_influence``: what every training sample does to given queries, one solve a query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_positive
from pullback._progress import PATIENCE, Progress
from pullback._results import Drawn, to_frame
from pullback.functional import LossFunction, check_batch, num_samples
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.influence.held_rows import HELD_BYTES, HeldRows, count_samples, itemsize, row_blocks
from pullback.influence.kept_samples import effects, kept_samples, ranking
from pullback.influence.meaning import of_queries_in_words
from pullback.influence.response import Perturbation, Wrt
from pullback.influence.solves import Matrix, Method, Solves
from pullback.influence.system import DampedSystem, num_outputs, settings_of
from pullback.operators.operator import Operator


@dataclass(frozen=True)
class Influence(Drawn):
    """Influences and how well the systems behind them were solved.

    Attributes:
        values: as the function that returns it says.
        residual: the largest relative residual |b - (A + damping I) x| / |b| of all solves; the worst four are
            measured by passes through the network, whatever they were solved with.
        iterations: the most that a solve took; 0 where the system was factored.
        num_matvecs: products with the curvature matrix, all solves together, those that measure residuals included.
        converged: whether every solve did.
        axis: of ``values``, the one that counts training samples; None where no sample is perturbed (``wrt="decay"``).
        samples: inputs and targets of the training samples with the largest effects, by their place in the data:
            copies on the CPU, largest first.
        meaning: what a value is, and which sign helps, in a sentence.
    """

    values: Tensor
    residual: float
    iterations: int
    num_matvecs: int
    converged: bool
    axis: int | None = 0
    samples: Mapping[int, tuple[Any, Any]] = field(default_factory=dict)
    meaning: str = ""

    @property
    def effects(self) -> Tensor:
        """One number for each training sample, (n,): its influence, or the root of the summed squares of its many.

        Raises:
            InputError: no sample is perturbed.
        """
        return effects(self.values, self.axis)

    @property
    def ranking(self) -> list[int]:
        """Training samples by the size of their effect, largest first."""
        return ranking(self.values, self.axis)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each training sample, largest effect first.

        Raises:
            InputError: pandas is not installed.
        """
        order = self.ranking
        return to_frame("Influence.to_pandas", {"sample": order, "influence": self.effects[order].tolist()})


@torch.inference_mode(False)
def query_influence(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    x_query: Batch,
    y_query: Batch | None = None,
    *,
    damping: float,
    wrt: Wrt = "weights",
    labels: Batch | Iterable[Batch] | None = None,
    points: Data | None = None,
    matrix: Matrix = "gauss_newton",
    method: Method = "auto",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
    block: int = 16,
    progress: bool = True,
) -> Influence:
    """Derivative of query losses (or outputs) in every training perturbation, of the mean loss's minimum.

    -(d^2 J / dw dtheta)^T (A + damping I)^{-1} q with J and A as in ``response``, q the gradient of a query's loss or
    output.

    The transpose of ``response``: one solve for each query answers for all training samples at once, where
    ``response`` needs one for each perturbation. For wrt="weights" entry (q, i) is -1/N g_q^T (A + damping I)^{-1} g_i:
    negative for samples that lower the query's loss; minus the entry estimates the effect of removing sample i.

    Args:
        model: as for ``response``.
        loss_fn: as for ``response``.
        data: the training data, as for ``response``.
        x_query: query inputs, (Q, ...).
        y_query: their targets, for the influence on losses; None for the influence on outputs.
        damping: lam of the averaged cost (N lam for a sum), at least 0.
        wrt: what is perturbed, as for ``response``.
        labels: as for ``response``.
        points: as for ``response``.
        matrix: as for ``response``.
        method: as for ``response``.
        tol: as for ``response``.
        max_iters: as for ``response``.
        params: as for ``response``.
        block: right-hand sides solved for at the same time.
        progress: say on standard error how far it is, where it takes more than some seconds.

    Returns:
        Influence with values (Q, ...) for losses and (Q, C, ...) for outputs; the dots stand for the shape of what is
        perturbed, (N, ...).

    Raises:
        InputError: as ``response``; no queries.

    Cost: a solve for each query (times C for outputs), and for each a pass through the graph of the training data's
        gradient. Memory: about 6 P ``block`` numbers beside that graph. ``plan_influence`` prints both.

    References: Koh and Liang (2017), arXiv:1703.04730, eq. 2.

    Example:
        >>> x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        >>> model, half = nn.Linear(2, 1, bias=False).double(), lambda z, t: (z - t).square().sum(1) / 2
        >>> found = query_influence(model, half, (x, y), x, wrt="targets", damping=0.1, tol=1e-12)
        >>> hat = x @ torch.linalg.solve(x.T @ x + 0.6 * torch.eye(2), x.T)  # 0.6 = N damping
        >>> bool(torch.allclose(found.values.reshape(6, 6), hat))
        True
    """
    where = "query_influence"
    check_batch(where, x_query, y_query, ("x_query", "y_query"))
    settings = settings_of(where, matrix, method, damping, tol, max_iters, params)
    change = Perturbation.of(wrt, labels, points, where)
    check_positive(where, "block", block)
    system = DampedSystem(model, loss_fn, data, settings, where)
    return of_queries(system, (x_query, y_query), change, block=block, progress=progress, where=where)


def of_queries(
    system: DampedSystem,
    query: tuple[Batch, Batch | None],
    change: Perturbation,
    *,
    block: int,
    progress: bool,
    where: str,
) -> Influence:
    """The influences by a system that is there."""
    num_queries = num_samples(query[0], where, "x_query")
    loss_fn = None if query[1] is None else system.loss_fn
    rows = 1 if loss_fn is not None else num_outputs(system.view, query[0])
    lead = (num_queries,) if loss_fn is not None else (num_queries, rows)
    with Progress(progress, "queries", PATIENCE) as shown:
        shown.start(where, num_queries)
        parts, solves = [], Solves(system.for_columns(num_queries * rows))
        mixed, shape = change.derivative(system)
        backward = held_slopes(system, change, where) or mixed.T
        for some in row_blocks(system.view, loss_fn, query, rows, where):
            parts += [(backward @ solves(-columns.T)).T for columns in some.rows.split(block)]
            shown.advance(len(some.rows) // rows)
    asked = change.of_samples(system)
    told = of_queries_in_words(change.wrt, losses=loss_fn is not None)
    return summary(torch.cat(parts).reshape(*lead, *shape), solves, asked, told, len(lead) if shape else None)


def held_slopes(system: DampedSystem, change: Perturbation, where: str) -> Operator | None:
    """(d^2 J / dw dtheta)^T (M, P) where its rows are gradients of losses and fit the memory; else None."""
    view, data = system.view, change.of_samples(system)
    count = count_samples(data, where)
    if change.wrt not in ("weights", "labels") or count * view.num_params * itemsize(view) > HELD_BYTES:
        return None

    def slopes(pairs: Data) -> Tensor:
        return torch.cat([block.rows for block in row_blocks(view, system.loss_fn, pairs, 1, where)])

    slope = slopes(data)
    if change.wrt == "labels":
        alone = isinstance(data, tuple)
        others = [change.labels] if alone else list(change.labels)  # type: ignore[arg-type]
        slope = slopes([(x, y) for (x, _), y in zip([data] if alone else data, others, strict=True)]) - slope
    return HeldRows(slope / system.num_samples)


def summary(values: Tensor, solves: Solves, data: Data, meaning: str, axis: int | None = 0) -> Influence:
    """One Influence for all solves, of the samples of ``data``."""
    residual = solves.residual()
    converged = residual <= solves.system.settings.tol
    kept = kept_samples(values, axis, data)
    return Influence(values, residual, solves.iterations, solves.num_matvecs, converged, axis, kept, meaning)
