"""``LevenbergMarquardt``: the Gauss-Newton matrix with a damping that follows the decrease."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from torch import Tensor, nn

from pullback._checks import check_option
from pullback.dynamics.second_order.adaptive import Adaptive
from pullback.dynamics.second_order.by_rows import FORMS, by_rows, rows_of
from pullback.dynamics.second_order.newton import DENSE_LIMIT
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.systems import Dense, Products, System, check_solver
from pullback.dynamics.second_order.trust import Trust
from pullback.dynamics.second_order.woodbury import Rows
from pullback.functional import LossFunction
from pullback.operators import GaussNewton


class LevenbergMarquardt(Adaptive):
    """Gauss-Newton steps, damped: w <- w - lr (A + damping I)^-1 g, A = (1/N) sum of J_i^T H_i J_i.

    The damping follows the ratio of actual to predicted decrease, and steps that decrease nothing are not taken, as for
    ``DampedNewton``. A is positive semi-definite for losses convex in the outputs. For least squares with as many
    residuals as the loss sums up it is the classical method: ``MSELoss`` has A = 2 J^T J / (N C).

    Args:
        model: as for ``Newton``; kinks (ReLU) do no harm.
        loss_fn: as for ``Newton``.
        lr: as for ``Newton``.
        damping: to begin with, above 0; of a group.
        form: "parameters": A, (P, P), formed, or its products where P is above ``dense_limit``. "kernel": through the
            Gram matrix of the outputs' rows, (N C, N C), exact at any P. None: the smaller of the two.
        params: as for ``Newton``.
        dense_limit: parameters up to which A is formed. Above, conjugate gradients.
        tol: their residual, relative; 100 roundings of the dtype at least.
        max_iters: their iterations; None as ``pb.solve``.
        **trust: as for ``DampedNewton``.

    Raises:
        InputError: an argument out of range; on ``step`` as every optimizer here.
        UnsupportedError: on ``step``, as ``GaussNewton``; with "kernel" also a loss that is not convex in the outputs.

    Cost: "parameters": P products in blocks, then P^3 / 3 operations a try. "kernel": the rows' capture (C backward
        passes), their Gram matrix, then (N C)^3 / 3 a try.

    References: Marquardt (1963); Schraudolph (2002).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double(), torch.rand(20, 2).double()
        >>> optimizer, y = LevenbergMarquardt(model, nn.MSELoss()), x.prod(1, keepdim=True)
        >>> for _ in range(15):
        ...     loss = optimizer.step(x, y)
        >>> bool(loss < 1e-4)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        lr: float | Tensor = 1.0,
        damping: float = 1e-2,
        *,
        form: str | None = None,
        params: Iterable[Any] | None = None,
        dense_limit: int = DENSE_LIMIT,
        tol: float = 1e-4,
        max_iters: int | None = None,
        **trust: Unpack[Trust],
    ) -> None:
        check_option("LevenbergMarquardt", "form", form, FORMS)
        check_solver("LevenbergMarquardt", dense_limit, tol, max_iters)
        self.form, self.dense_limit, self.tol, self.max_iters = form, dense_limit, tol, max_iters
        super().__init__(model, loss_fn, params, trust, lr=lr, damping=damping)

    def _settings(self) -> tuple[str, ...]:
        return ("trust", "form", "dense_limit", "tol", "max_iters")

    def _system(self, problem: Problem, d: Tensor) -> System:
        view, data = problem.view, (problem.x, problem.y)
        if by_rows(self.form, problem):
            return Rows(rows_of(problem, "gauss_newton"), d, problem.where)
        A = GaussNewton(view.model, problem.loss_fn, data, params=problem.names)
        if A.shape[0] <= self.dense_limit:
            return Dense(A.to_dense(), known=False)
        return Products(A, self.tol, self.max_iters)
