"""One optimizer on its own parameter: built, checked, stepped, recorded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pullback._checks import input_error
from pullback.dynamics import textbook
from pullback.dynamics.landscapes import Landscape

MakeOptimizer = Callable[[list[Tensor]], Any]  # an optimizer, or an optimizer and a schedule
# Steps of these treat every number by itself, so that a stack of points moves as each would alone
ELEMENTWISE = (
    torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax,
    torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adadelta, torch.optim.Rprop, torch.optim.ASGD,
    textbook.Momentum, textbook.RMSprop, textbook.Adagrad, textbook.Adam,
)  # fmt: skip


class Run:
    """One optimizer, its parameter (..., d), and where it has been."""

    def __init__(self, make_optimizer: MakeOptimizer, start: Tensor, where: str) -> None:
        self.parameter = start.clone().requires_grad_()
        self.optimizer, self.schedule = _built(make_optimizer, self.parameter, where)
        self.x, self.loss, self.gradient_norm = [start], list[Tensor](), list[Tensor]()
        self.evaluations = list[int]()
        self._step = inspect.signature(self.optimizer.step).parameters.get("closure")
        self.settings = settings_of(self.optimizer)

    @property
    def by_closure(self) -> bool:
        """Whether the optimizer evaluates the loss itself, and cannot do without."""
        return self._step is not None and self._step.default is inspect.Parameter.empty

    @property
    def elementwise(self) -> bool:
        """Whether a stack of points may be stepped as one."""
        return type(self.optimizer) in ELEMENTWISE and not isinstance(self.schedule, ReduceLROnPlateau)

    @property
    def gradient(self) -> Tensor:
        """Of the last evaluation; 0 where the function does not depend on the point."""
        return torch.zeros_like(self.parameter) if self.parameter.grad is None else self.parameter.grad

    def note(self, loss: Tensor) -> None:
        """Loss and gradient at the present place."""
        self.loss.append(loss.detach().clone())
        self.gradient_norm.append(torch.linalg.vector_norm(self.gradient, dim=-1))

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """One step of the optimizer, then of the schedule."""
        self.optimizer.step(closure) if self.by_closure else self.optimizer.step()  # type: ignore[arg-type]
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(self.loss[-1])
        elif self.schedule is not None:
            self.schedule.step()
        self.x.append(self.parameter.detach().clone())


def settings_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Kind and settings, those that are numbers, texts and flags."""
    group = optimizer.param_groups[0]
    simple = {key: value for key, value in group.items() if isinstance(value, float | int | str | bool | tuple)}
    return {"kind": type(optimizer).__name__, **simple}


def _built(make_optimizer: Any, parameter: Tensor, where: str) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer and its schedule, if it has one.

    Raises:
        InputError: it refuses its settings; it is no optimizer, or one of other parameters; a rate that is not
            positive.
    """
    if not callable(make_optimizer):
        got = type(make_optimizer).__name__
        raise input_error(
            where, "`make_optimizer`: parameters -> optimizer", got, "Pass lambda p: torch.optim.SGD(p, …)"
        )
    try:
        made = make_optimizer([parameter])
    except (TypeError, ValueError) as error:
        raise input_error(where, "settings the optimizer takes", str(error), "Change them in make_optimizer") from error
    optimizer, schedule = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(optimizer, torch.optim.Optimizer) or not (schedule is None or hasattr(schedule, "step")):
        got = type(made).__name__ if made is optimizer else " and ".join(type(each).__name__ for each in made)
        raise input_error(
            where, "a torch.optim.Optimizer from make_optimizer", got, "Return one, or one and a schedule"
        )
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if len(held) != 1 or held[0] is not parameter:
        remedy = "Build it from the list that make_optimizer is given"
        raise input_error(where, "an optimizer of the parameters given", "one of others", remedy)
    rate = optimizer.param_groups[0].get("lr")
    if rate is not None and not float(rate) > 0 and not (schedule is not None and float(rate) == 0):
        raise input_error(where, "a learning rate above 0", repr(rate), "Pass a positive `lr`")
    if rate is not None and float(rate) == math.inf:
        raise input_error(where, "a finite learning rate", repr(rate), "Pass a smaller `lr`")
    if getattr(schedule, "optimizer", optimizer) is not optimizer:
        raise input_error(where, "a schedule of that optimizer", "one of another", "Build it from the same optimizer")
    return optimizer, schedule


def losses(world: Landscape, x: Tensor, where: str) -> Tensor:
    """Values at points, (..., d) -> (...), with their graph.

    Raises:
        InputError: the function does not answer each point by itself, or not at all differentiably.
    """
    values = world.function(x)
    if not isinstance(values, Tensor) or values.shape != x.shape[:-1] or values.is_complex():
        got = f"shape {tuple(values.shape)}, {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        expected = f"one value a point, {tuple(x.shape[:-1])} of {tuple(x.shape)}"
        raise input_error(where, expected, got, "Sum over the last axis only")
    if x.requires_grad and not values.requires_grad:
        raise input_error(where, "a differentiable function", "one without gradients", "Compute it by torch operations")
    return values
