"""``damped_curvature``: one damped curvature system, asked as often as one likes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_positive, input_error
from pullback._results import Shown, Solution
from pullback.functional import LossFunction, check_batch
from pullback.functional.batch import Batch
from pullback.functional.batches import Data, stamp_of
from pullback.functional.repeatable import values_of
from pullback.influence.leave_one_out import Estimate, LeaveOneOut, LeftOut, check_estimate, without_each
from pullback.influence.query import Influence, of_queries
from pullback.influence.response import Perturbation, Response, Wrt, respond
from pullback.influence.self_influence import on_themselves
from pullback.influence.solves import Matrix, Method
from pullback.influence.system import DampedSystem, settings_of


@dataclass(frozen=True)
class DampedCurvature(Shown):
    """(A + damping I) of the mean loss over the training data, made once; its methods ask what the functions ask.

    ``response``, ``query_influence``, ``self_influence`` and ``leave_one_out`` make one for a single question. Their
    answers are these; of "auto" a later question may be solved with factors or rows that an earlier one was worth.

    Attributes:
        num_samples: N, training samples.
        num_params: P.
        damping: lam of the averaged cost.
        matrix: which A.
        method: how it is solved.
    """

    num_samples: int
    num_params: int
    damping: float
    matrix: Matrix
    method: Method
    _system: DampedSystem = field(repr=False)
    _made_at: tuple[Any, ...] = field(repr=False)

    @torch.inference_mode(False)
    def solve(self, b: Tensor) -> Solution:
        """(A + damping I)^{-1} b for (P,) or (P, K)."""
        return self._checked("DampedCurvature.solve").for_columns(b[0].numel()).solve(b)

    @torch.inference_mode(False)
    def response(
        self,
        direction: Tensor | float | None = None,
        *,
        wrt: Wrt = "targets",
        labels: Batch | Iterable[Batch] | None = None,
        points: Data | None = None,
    ) -> Response:
        """``pb.response`` to a change of the training data."""
        where = "DampedCurvature.response"
        return respond(self._checked(where), direction, Perturbation.of(wrt, labels, points, where), where)

    @torch.inference_mode(False)
    def query_influence(
        self,
        x_query: Batch,
        y_query: Batch | None = None,
        *,
        wrt: Wrt = "weights",
        labels: Batch | Iterable[Batch] | None = None,
        points: Data | None = None,
        block: int = 16,
        progress: bool = True,
    ) -> Influence:
        """``pb.query_influence`` of every training sample on queries."""
        where = "DampedCurvature.query_influence"
        check_batch(where, x_query, y_query, ("x_query", "y_query"))
        check_positive(where, "block", block)
        change, query = Perturbation.of(wrt, labels, points, where), (x_query, y_query)
        return of_queries(self._checked(where), query, change, block=block, progress=progress, where=where)

    @torch.inference_mode(False)
    def self_influence(self, *, points: Data | None = None, block: int = 16, progress: bool = True) -> Influence:
        """``pb.self_influence`` of every training sample, or of ``points``."""
        where = "DampedCurvature.self_influence"
        check_positive(where, "block", block)
        return on_themselves(self._checked(where), points, block=block, progress=progress, where=where)

    @torch.inference_mode(False)
    def leave_one_out(
        self,
        *,
        points: Data | None = None,
        estimate: Estimate = "leverage",
        changes: bool = True,
        block: int = 16,
        progress: bool = True,
    ) -> LeaveOneOut:
        """``pb.leave_one_out`` for every training sample, or for ``points``."""
        where = "DampedCurvature.leave_one_out"
        check_estimate(estimate, self.matrix, where)
        check_positive(where, "block", block)
        asked = LeftOut(points, estimate, changes)
        return without_each(self._checked(where), asked, block=block, progress=progress)

    def _checked(self, where: str) -> DampedSystem:
        if _state(self._system) != self._made_at:
            got, remedy = "others", "Call damped_curvature again once weights, modes or data have changed"
            raise input_error(where, "the model and the data the curvature was made of", got, remedy)
        return self._system


def _state(system: DampedSystem) -> tuple[Any, ...]:
    """What the curvature was made of: the model's numbers and modes, and data that lie in memory."""
    data = system.data
    pairs = [data] if isinstance(data, tuple) else data if isinstance(data, list) else []
    return *values_of(system.view.model), *(stamp_of(x, y) for x, y in pairs)


@torch.inference_mode(False)
def damped_curvature(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    damping: float,
    matrix: Matrix = "gauss_newton",
    method: Method = "auto",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
) -> DampedCurvature:
    """The damped curvature (A + damping I) of the training data, for several questions of influence.

    Args:
        model: any module in eval mode, as for ``response``.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: the training data, as for ``response``.
        damping: lam of the averaged cost (N lam for a sum), at least 0.
        matrix: A, as for ``response``.
        method: as for ``response``.
        tol: as for ``response``.
        max_iters: as for ``response``.
        params: names of parameters or modules; None for all trainable ones.

    Returns:
        DampedCurvature, with the methods ``solve``, ``response``, ``query_influence``, ``self_influence`` and
        ``leave_one_out``.

    Raises:
        InputError: as ``response``. On use: weights, modes of modules, or data in memory that have changed.

    Cost: one walk through the data; without damping also the test that A is positive definite. Rows, matrix or
        factors are made by the first question with right-hand sides enough to be worth them, and kept.

    References: Koh and Liang (2017), arXiv:1703.04730.

    Example:
        >>> x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        >>> model, half = nn.Linear(2, 1, bias=False).double(), lambda z, t: (z - t).square().sum(1) / 2
        >>> curvature = damped_curvature(model, half, (x, y), damping=0.1, tol=1e-12)
        >>> own, across = curvature.self_influence().values, curvature.query_influence(x, y).values
        >>> bool(torch.allclose(own, -across.diagonal()))
        True
    """
    where = "damped_curvature"
    settings = settings_of(where, matrix, method, damping, tol, max_iters, params)
    system = DampedSystem(model, loss_fn, data, settings, where)
    return DampedCurvature(
        system.num_samples,
        system.view.num_params,
        damping,
        matrix,
        method,
        _system=system,
        _made_at=_state(system),
    )
