"""``HessianFree``: steps by conjugate gradients on products, for networks whose matrix is too large to form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from pullback._checks import as_number, check_count, check_option, check_positive, input_error
from pullback.dynamics.second_order.adaptive import Adaptive
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.systems import Direction, Products, System
from pullback.dynamics.second_order.trust import USUAL, Trust
from pullback.functional import LossFunction
from pullback.operators import GaussNewton, Hessian

DIRECTION = "direction"  # of the last step, by parameter, in ``state``


class HessianFree(Adaptive):
    """Truncated Newton: w <- w - lr x with (C + damping I) x = g solved by some iterations of conjugate gradients.

    C is the Gauss-Newton matrix, or the Hessian itself: then an iteration that meets negative curvature is the last,
    the step is what was found before it (the gradient over that curvature, if nothing was), and ``last.action`` says
    so. The damping follows the ratio of actual to predicted decrease as that of ``DampedNewton``. Iterations start
    from ``decay`` times the last direction, but with "hessian", where they start from zero.

    Args:
        model: as for ``Newton``.
        loss_fn: as for ``Newton``.
        lr: as for ``Newton``.
        damping: to begin with, above 0; of a group.
        curvature: "gauss_newton" or "hessian".
        tol: relative residual at which the iterations end.
        max_iters: of them at most.
        decay: of the last direction; 0 starts from zero.
        params: as for ``Newton``.
        **trust: as for ``DampedNewton``; ``grow`` is 1.5 here, ``shrink`` 2/3 and ``least_damping`` 1e-8.

    Raises:
        InputError: an argument out of range; on ``step`` as every optimizer here.
        UnsupportedError: on ``step``, as ``GaussNewton`` or ``Hessian``.

    Cost: one product an iteration (about four forward passes), two more and a forward pass a try. Nothing is formed.

    References: Martens (2010), Deep learning via Hessian-free optimization; Nocedal and Wright (2006), algorithm 7.1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(32, 3)
        >>> optimizer, y = HessianFree(model, nn.MSELoss(), damping=0.1), x.prod(1, keepdim=True)
        >>> before = optimizer.step(x, y)
        >>> for _ in range(9):
        ...     loss = optimizer.step(x, y)
        >>> bool(loss < before / 2), optimizer.last.iterations > 0
        (True, True)
    """

    usual: ClassVar[Trust] = {**USUAL, "grow": 1.5, "shrink": 2 / 3, "least_damping": 1e-8}

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        lr: float | Tensor = 1.0,
        damping: float = 1.0,
        *,
        curvature: str = "gauss_newton",
        tol: float = 0.05,
        max_iters: int = 100,
        decay: float = 0.95,
        params: Iterable[Any] | None = None,
        **trust: Unpack[Trust],
    ) -> None:
        where = "HessianFree"
        check_option(where, "curvature", curvature, ("gauss_newton", "hessian"))
        check_positive(where, "tol", tol)
        check_count(where, "max_iters", max_iters, 1)
        if not 0 <= as_number(decay) <= 1:
            raise input_error(where, "`decay` from 0 to 1", repr(decay), "Pass 0 to start from zero")
        self.curvature, self.tol, self.max_iters, self.decay = curvature, tol, max_iters, decay
        super().__init__(model, loss_fn, params, trust, lr=lr, damping=damping)

    def _settings(self) -> tuple[str, ...]:
        return ("trust", "curvature", "tol", "max_iters", "decay")

    def _system(self, problem: Problem, d: Tensor) -> System:
        data = (problem.x, problem.y)
        if self.curvature == "hessian":
            H = Hessian(problem.view.model, problem.loss_fn, data, params=problem.names)
            return Products(H, self.tol, self.max_iters, truncate=True)
        A = GaussNewton(problem.view.model, problem.loss_fn, data, params=problem.names)
        return Products(A, self.tol, self.max_iters, start=self._start(problem))

    def _start(self, problem: Problem) -> Tensor | None:
        """The last direction, of the parameters that took part in it."""
        kept = {n: self.state[w].get(DIRECTION) for n, w in problem.view.parameters.items()}
        if not self.decay or all(k is None for k in kept.values()):
            return None
        parts = {n: torch.zeros_like(w) if kept[n] is None else kept[n] for n, w in problem.view.parameters.items()}
        return self.decay * problem.view.flatten(parts)

    def _after(self, problem: Problem, direction: Direction) -> None:
        if self.curvature == "gauss_newton" and self.decay:
            for name, piece in problem.view.unflatten(direction.x).items():
                self.state[problem.view.parameters[name]][DIRECTION] = piece.clone()
