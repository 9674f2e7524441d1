"""What the second-order optimizers share: groups, what a step is handed, its record, saving and resuming."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pullback._checks import as_number, check_rate, input_error
from pullback.dynamics.second_order.closures import Closure
from pullback.dynamics.second_order.problem import Problem, make_problem
from pullback.dynamics.second_order.step import Step
from pullback.functional import LossFunction, ModelView
from pullback.functional.batch import Batch
from pullback.functional.unwrap import unwrap

KEY = "second_order"  # of a state_dict, beside torch's own


class SecondOrder(Optimizer):
    """Steps -lr (C + damping)^-1 g; subclasses choose C and solve for it in ``_take``.

    Attributes:
        last: the record of the last step, a ``Step``; None before the first.
        history: records of all steps, where the damping follows them.
        steps: taken so far, rejected ones too.
    """

    keeps_history = False
    needs_damping = False  # whether it must be above 0

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, params: Iterable[Any] | None, *, lr: Any, damping: float
    ) -> None:
        ModelView.of(model, None, type(self).__name__)
        self.model, self.loss_fn = model, loss_fn
        self.last: Step | None = None
        self.history: list[Step] = []
        self.steps = 0
        groups = list(unwrap(model).parameters()) if params is None else list(params)
        super().__init__(self._resolved(groups), {"lr": lr, "damping": damping})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters of the model; tensors, or names of parameters or modules.

        Raises:
            InputError: a parameter of another model; a rate that is not positive; a damping out of range.
        """
        where = type(self).__name__
        given = param_group.get("params")
        if given is None:
            raise input_error(where, 'a group with "params"', f"one with {sorted(param_group)}", "Add its parameters")
        group = param_group | {"params": self._resolved([given] if isinstance(given, Tensor | str) else list(given))}
        for name in ("lr", "damping"):
            group.setdefault(name, self.defaults[name])
        check_rate(where, "lr", group["lr"])
        self._check_damping(group["damping"])
        known = {id(p) for p in unwrap(self.model).parameters()}
        if any(id(p) not in known for p in group["params"]):
            got = "one of another module"
            raise input_error(where, "parameters of `model`", got, "Pass names, or parameters of that model")
        super().add_param_group(group)

    def _resolved(self, given: list[Any]) -> list[Any]:
        """Tensors and groups as they are, tensors in place of names."""
        if not any(isinstance(each, str) for each in given):
            return given
        if not all(isinstance(each, str) for each in given):
            got = "names among other things"
            raise input_error(type(self).__name__, "`params` of one kind", got, "Pass names alone, or groups")
        return list(ModelView.of(self.model, given, type(self).__name__).parameters.values())

    def _check_damping(self, damping: Any) -> None:
        if self.needs_damping:
            check_rate(type(self).__name__, "damping", damping)
        elif not 0 <= as_number(damping) < math.inf:
            got, remedy = repr(damping), "Pass a non-negative `damping`"
            raise input_error(type(self).__name__, "`damping` of at least 0", got, remedy)

    def step(  # type: ignore[override]  # a batch comes first; a closure alone is torch's own form
        self, x: Batch | Closure | None = None, y: Batch | None = None, closure: Closure | None = None
    ) -> Tensor:
        """Take one step.

        Args:
            x: inputs of a batch, (N, ...), as for every call of this package; or torch's closure alone.
            y: targets.
            closure: evaluates the loss, calls ``backward`` and returns it. Loss and gradient are then what it says
                (with its weight decay, its clipping, its larger batch), curvature is that of the batch; without ``x``
                and ``y`` the batch is what the closure hands to the model and to the loss, a module.

        Returns:
            The loss before the step, a number.

        Raises:
            InputError: neither a batch nor a closure; a loss or gradient that is not finite; see the class.
            UnsupportedError: dropout or batch norm in train mode, samples that depend on each other.
        """
        where = f"{type(self).__name__}.step"
        if closure is None and y is None and callable(x) and not isinstance(x, Tensor):
            x, closure = None, x
        if closure is not None and not callable(closure):
            raise input_error(where, "a closure that can be called", type(closure).__name__, "Pass a function")
        named = {id(p): name for name, p in unwrap(self.model).named_parameters()}
        settings = {
            named[id(p)]: (float(group["lr"]), float(group["damping"]))
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        }
        if not settings:
            raise input_error(where, "a trainable parameter", "none", "Set requires_grad on some")
        with torch.inference_mode(False):
            problem = make_problem(self.model, list(settings), self.loss_fn, (x, y), closure, where)
            lr, d = (self._spread(problem, {name: pair[i] for name, pair in settings.items()}) for i in (0, 1))
            p, self.last = self._take(problem, lr, d)
            problem.move(p)
        self.steps += 1
        if self.keeps_history:
            self.history.append(self.last)
        return problem.loss

    def _spread(self, problem: Problem, values: Mapping[str, float]) -> Tensor:
        """A number a parameter as a vector, (P,)."""
        g = problem.gradient
        return torch.cat([g.new_full((w.numel(),), values[name]) for name, w in problem.view.parameters.items()])

    @abstractmethod
    def _take(self, problem: Problem, lr: Tensor, d: Tensor) -> tuple[Tensor, Step]:
        """What to add to the weights, (P,), and the record of it; ``lr`` and ``d`` are (P,)."""

    def state_dict(self) -> dict[str, Any]:
        """Torch's state, with the number of steps, the last record and the history: resuming is exact to the bit."""
        own = {name: getattr(self, name) for name in ("steps", *self._kept())}
        last = None if self.last is None else self.last.state_dict()
        own |= {"method": type(self).__name__, "last": last, "history": [each.state_dict() for each in self.history]}
        return super().state_dict() | {KEY: own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called.

        Raises:
            InputError: the state of another optimizer.
        """
        where, own = f"{type(self).__name__}.load_state_dict", state_dict.get(KEY)
        if own is None or own["method"] != type(self).__name__:
            got = "another optimizer's" if own is None else f"that of {own['method']}"
            raise input_error(where, f"the state of {type(self).__name__}", got, "Load what its state_dict() returned")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != KEY})
        for name in ("steps", *self._kept()):
            setattr(self, name, own[name])
        self.last = None if own["last"] is None else Step(**own["last"])
        self.history = [Step(**each) for each in own["history"]]

    def _kept(self) -> tuple[str, ...]:
        """Further numbers that resuming needs."""
        return ()

    def __getstate__(self) -> dict[str, Any]:
        own = ("model", "loss_fn", "last", "history", "steps", *self._settings(), *self._kept())
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    @abstractmethod
    def _settings(self) -> tuple[str, ...]:
        """Names of what the constructor was told beyond model, loss and groups."""
