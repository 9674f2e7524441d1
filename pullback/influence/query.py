"""``query_influence``: what every training sample does to given queries, one solve a query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive
from pullback._results import Solution
from pullback.functional import LossFunction, check_batch, num_samples, take
from pullback.functional.batch import Batch
from pullback.influence.response import WRT, Wrt, perturbation
from pullback.influence.system import Matrix, Method, make_system, settings_of
from pullback.kernels import GradientMatrix
from pullback.operators import Jacobian
from pullback.operators.base import Operator
from pullback.operators.data import Data


@dataclass(frozen=True)
class Influence:
    """Influences and how well the systems behind them were solved.

    Attributes:
        values: as the function that returns it says.
        residual: the largest relative residual of all solves.
        iterations: the most that a solve took; 0 where the system was factored.
        num_matvecs: products with the curvature matrix, all solves together, one more each for the residuals.
        converged: whether every solve did.
    """

    values: Tensor
    residual: float
    iterations: int
    num_matvecs: int
    converged: bool


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
    method: Method = "cg",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
    block: int = 16,
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
    check_option(where, "wrt", wrt, WRT)
    system = make_system(model, loss_fn, data, settings, where)
    mixed, shape = perturbation(model, loss_fn, data if points is None else points, wrt, labels, system)
    queries: Jacobian | GradientMatrix
    lead: tuple[int, ...]
    if y_query is None:
        queries = Jacobian(model, x_query, params=settings.params)
        lead = (queries.num_samples, queries.num_outputs)
    else:
        queries = GradientMatrix(model, loss_fn, x_query, y_query, params=settings.params)
        lead = (queries.shape[0],)
    parts, solutions = [], []
    for columns in transposed_blocks(queries, block, where):
        solutions.append(system.solve(-columns))
        parts.append((mixed.T @ solutions[-1].x).T)
    return summary(torch.cat(parts).reshape(*lead, *shape), solutions)


def sample_blocks(data: Data, block: int, where: str) -> Iterator[tuple[Batch, Batch]]:
    """Pairs of at most ``block`` samples."""
    for x, y in [data] if isinstance(data, tuple) else data:
        for start in range(0, num_samples(y, where, "y"), block):
            part = slice(start, start + block)
            yield take(x, part), take(y, part)


def transposed_blocks(rows: Operator, block: int, where: str) -> Iterator[Tensor]:
    """The rows of an operator as columns (P, at most ``block``)."""
    check_positive(where, "block", block)
    count = rows.shape[0]
    for start in range(0, count, block):
        size = min(block, count - start)
        unit = torch.zeros(count, size, dtype=rows.dtype, device=rows.device)
        unit[start : start + size] = torch.eye(size, dtype=rows.dtype, device=rows.device)
        yield rows.T @ unit


def summary(values: Tensor, solutions: list[Solution]) -> Influence:
    """One Influence for all solves."""
    iterations = max(s.iterations for s in solutions)
    products = sum((s.iterations + 1) * (s.x.shape[1] if s.x.dim() > 1 else 1) for s in solutions)
    residual = max(s.residual for s in solutions)
    return Influence(values, residual, iterations, products, all(s.converged for s in solutions))
