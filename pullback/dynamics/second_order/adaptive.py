"""``DampedNewton``, and what the optimizers whose damping follows the decrease share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from pullback.dynamics.second_order.base import SecondOrder
from pullback.dynamics.second_order.newton import DENSE_LIMIT
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.step import Step
from pullback.dynamics.second_order.systems import Dense, Direction, Products, System, check_solver
from pullback.dynamics.second_order.trust import USUAL, Trust, checked_trust, trusted
from pullback.functional import LossFunction
from pullback.operators import Hessian


class Adaptive(SecondOrder):
    """Damping that follows the ratio of actual to predicted decrease; each group's by the same factor."""

    keeps_history = True
    needs_damping = True
    usual: ClassVar[Trust] = USUAL

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        params: Iterable[Any] | None,
        trust: Trust,
        *,
        lr: Any,
        damping: float,
    ) -> None:
        self.trust = checked_trust(type(self).__name__, trust, self.usual)
        super().__init__(model, loss_fn, params, lr=lr, damping=damping)

    def _take(self, problem: Problem, lr: Tensor, d: Tensor) -> tuple[Tensor, Step]:
        taken = trusted(problem, self._system(problem, d), lr, d, self.trust)
        for group in self.param_groups:
            group["damping"] = float(group["damping"]) * taken.factor
        self._after(problem, taken.direction)
        return taken.p, taken.record

    @abstractmethod
    def _system(self, problem: Problem, d: Tensor) -> System:
        """The curvature at the weights."""

    def _after(self, problem: Problem, direction: Direction) -> None:
        """What is kept of a direction for the next step."""

    def _settings(self) -> tuple[str, ...]:
        return ("trust",)


class DampedNewton(Adaptive):
    """Newton with a damping that plays a trust region: w <- w - lr (H + damping I)^-1 g.

    After each step the damping is multiplied by ``grow`` where the loss fell by less than a quarter of what the
    quadratic model had predicted, and by ``shrink`` where by more than three quarters. A step that decreases nothing is
    not taken: the damping grows and another is tried. Where H + damping I is not positive definite the damping is
    raised by twice the negative curvature met. ``last.action`` says which, ``history`` holds all of it, and
    ``param_groups[…]["damping"]`` the current value.

    Args:
        model: as for ``Newton``.
        loss_fn: as for ``Newton``.
        lr: as for ``Newton``.
        damping: to begin with, above 0; of a group.
        params: as for ``Newton``.
        dense_limit: parameters up to which H is formed. Above, conjugate gradients.
        tol: their residual, relative; 100 roundings of the dtype at least.
        max_iters: their iterations; None as ``pb.solve``.
        **trust: ``grow`` (4) and ``shrink`` (1/3), see above; ``tries`` (10), directions made at most, then the weights
            stay where they are; ``least_damping`` (1e-10), below which the smallest group's does not fall.

    Raises:
        InputError: an argument out of range; on ``step`` as every optimizer here.
        UnsupportedError: on ``step``, as ``Hessian``.

    Cost: as ``Newton``; each try a factorisation, P^3 / 3, and a forward pass.

    References: Levenberg (1944); Nocedal and Wright (2006), ch. 4.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(0.1)
        >>> double_well = lambda z, y: ((z**2 - 1) ** 2).squeeze(1)
        >>> optimizer, x = DampedNewton(model, double_well, damping=0.1), torch.ones(1, 1)
        >>> for _ in range(12):
        ...     _ = optimizer.step(x, x)
        >>> round(model.weight.item(), 4), optimizer.history[0].action.partition(":")[0]
        (1.0, 'damped')
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        lr: float | Tensor = 1.0,
        damping: float = 1e-2,
        *,
        params: Iterable[Any] | None = None,
        dense_limit: int = DENSE_LIMIT,
        tol: float = 1e-4,
        max_iters: int | None = None,
        **trust: Unpack[Trust],
    ) -> None:
        check_solver("DampedNewton", dense_limit, tol, max_iters)
        self.dense_limit, self.tol, self.max_iters = dense_limit, tol, max_iters
        super().__init__(model, loss_fn, params, trust, lr=lr, damping=damping)

    def _settings(self) -> tuple[str, ...]:
        return ("trust", "dense_limit", "tol", "max_iters")

    def _system(self, problem: Problem, d: Tensor) -> System:
        H = Hessian(problem.view.model, problem.loss_fn, (problem.x, problem.y), params=problem.names)
        if H.shape[0] <= self.dense_limit:
            return Dense(H.to_dense(), known=True)
        return Products(H, self.tol, self.max_iters)
