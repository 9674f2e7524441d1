"""``linearize``: a model that is linear in its parameters, and agrees with another to first order at its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import UnsupportedError, unsupported
from pullback.functional.batch import Batch, copied
from pullback.functional.differentiable import differentiable, forward_derivatives, lacks_forward_derivative
from pullback.functional.losses import logits_of
from pullback.functional.model_view import ModelView
from pullback.functional.modes import mode_dependent
from pullback.functional.stand_in import stand_in


def linearize(model: nn.Module) -> Linearized:
    """First-order Taylor model f_lin(x; w) = f(x; w0) + J(x; w0) (w - w0) around the model's present weights w0.

    The answer is a module of its own, with a copy of the parameters that starts at w0 (names get the prefix
    ``model.``, their order stays): train it, or take its matrices. Its Jacobian and tangent kernel never change, and
    at w0 its Hessian is the Gauss-Newton matrix of the model.

    Args:
        model: with one tensor (or an object with ``logits``) as its output; in eval mode, or without layers that have
            one. It is copied, not changed.

    Returns:
        A module in eval mode that is called as the model is, and returns a tensor. Parameters that were frozen are
        constants.

    Raises:
        InputError: no trainable parameters.
        UnsupportedError: modules in train mode that answer differently in eval mode.

    Cost: a call is one forward pass that carries a derivative along, about two; attention runs unfused. A model with
        an operation that has no forward derivative takes a forward and two backward passes.

    References: Grosse (2021), Neural net training dynamics, chapter 2, eq. 13; Lee et al. (2019), arXiv:1902.06720.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Tanh()).eval()
        >>> f_lin = linearize(model)
        >>> x = torch.ones(1, 1)
        >>> bool(torch.equal(f_lin(x), model(x)))
        True
    """
    return Linearized(model)


class Linearized(nn.Module):
    """What ``linearize`` returns.

    Attributes:
        model: the copy whose parameters are the present weights w.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        view = ModelView.of(model, where="linearize")
        if (one := mode_dependent(view.model)) is not None:
            raise unsupported("linearize", "a model in eval mode", f"{one} in train mode", "Call model.eval()")
        self.model = _copied(view.model)
        self._names = tuple(view.parameters)
        for index, parameter in enumerate(view.parameters.values()):
            self.register_buffer(f"base_{index}", parameter.detach().clone())
        super().train(False)

    def train(self, mode: bool = True) -> Linearized:
        """The mode changes nothing: the copy stays in eval mode, in which it was linearised."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, *args: Batch, **kwargs: Batch) -> Tensor:
        """f(x; w0) + J(x; w0) (w - w0)."""
        parameters = dict(self.model.named_parameters())
        base = {name: getattr(self, f"base_{index}") for index, name in enumerate(self._names)}
        change = {name: parameters[name] - start for name, start in base.items()}

        def outputs(weights: dict[str, Tensor]) -> Any:
            given, named = copied((args, kwargs))  # the first layer may write to what it is given
            with stand_in(self.model, weights):
                return logits_of(self.model(*given, **named))

        with differentiable():
            value, slope = _with_slope(outputs, base, change)
        return value + slope


def _with_slope(f: Callable[[Any], Tensor], at: Any, change: Any) -> tuple[Tensor, Tensor]:
    """F and its derivative along ``change``; from J^T taken twice where an operation has no forward derivative."""
    functions: Any = torch.func
    try:
        with forward_derivatives("linearize"):
            value, slope = functions.jvp(f, (at,), (change,))
    except UnsupportedError as error:
        if error.__cause__ is None or not lacks_forward_derivative(error.__cause__):
            raise
        value, pull = functions.vjp(f, at)
        slope = functions.vjp(lambda u: pull(u)[0], torch.zeros_like(value))[1](change)[0]
    return value, slope


def _copied(model: nn.Module) -> nn.Module:
    """A copy; tensors that hooks have left on a module (``torch.nn.utils.weight_norm``) are values in it."""
    attributes = [value for module in model.modules() for value in vars(module).values()]
    held = {id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and t.grad_fn is not None}
    return copy.deepcopy(model, held)
