"""``self_influence``: what every training sample does to its own loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pullback.functional import LossFunction
from pullback.influence.query import Influence, sample_blocks, summary, transposed_blocks
from pullback.influence.system import Matrix, Method, make_system, settings_of
from pullback.kernels import GradientMatrix
from pullback.operators.data import Data

CAPTURED = 256  # samples whose gradients are held as factors at a time


def self_influence(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    damping: float,
    points: Data | None = None,
    matrix: Matrix = "gauss_newton",
    method: Method = "cg",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
    block: int = 16,
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

    Returns:
        Influence with values (n,), not negative where A + damping I is positive definite.

    Raises:
        InputError: as ``response``.

    Cost: one solve a sample; memory about 6 P ``block`` numbers.

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
    system = make_system(model, loss_fn, data, settings, where)
    values, solutions = [], []
    for x, y in sample_blocks(data if points is None else points, max(block, CAPTURED), where):
        G = GradientMatrix(model, loss_fn, x, y, params=settings.params)
        for columns in transposed_blocks(G, block, where):
            solutions.append(system.solve(columns))
            values.append((columns * solutions[-1].x).sum(0) / system.num_samples)
    return summary(torch.cat(values), solutions)
