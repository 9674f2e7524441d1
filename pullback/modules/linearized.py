"""``linearize``, ``taylor_expand``: polynomials in the parameters that agree with a model at its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pullback._checks import UnsupportedError, input_error, unsupported
from pullback.functional.batch import Batch, copied
from pullback.functional.differentiable import differentiable, forward_derivatives, lacks_forward_derivative
from pullback.functional.model_view import ModelView
from pullback.functional.modes import mode_dependent
from pullback.functional.repeated import Repeated
from pullback.functional.stand_in import stand_in
from pullback.functional.target_checks import logits_of


def linearize(model: nn.Module) -> Expanded:
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
        UnsupportedError: modules in train mode that answer differently in eval mode; on use, several tensors returned.

    Cost: a call is one forward pass that carries a derivative along, about two; attention runs unfused. A model with
        an operation that has no forward derivative takes a forward and two backward passes. From the second call in a
        row on the same tensors on, as in training on all of the data at once, the graphs of a backward pass and of its
        derivative are kept in place of running the network, and a call takes about a backward pass.

    References: Grosse (2021), Neural net training dynamics, chapter 2, eq. 13; Lee et al. (2019), arXiv:1902.06720.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Tanh()).eval()
        >>> f_lin = linearize(model)
        >>> x = torch.ones(1, 1)
        >>> bool(torch.equal(f_lin(x), model(x)))
        True
    """
    return Expanded(model, 1, "linearize")


def taylor_expand(model: nn.Module, order: int) -> Expanded:
    """Taylor polynomial of a model in its parameters around its present weights w0, as a module.

    With D = w - w0 and f^(k)(x) D^k the k-th directional derivative along D,

        f(x; w0) + f'(x) D + f''(x) D^2 / 2 + ... + f^(order)(x) D^order / order!

    At order 1 it is ``linearize(model)``. The terms are forward derivatives of f(x; w0 + t D) in t, nested; no Jacobian
    or Hessian is formed. Where f has kinks (ReLU) the polynomial is that of the region w0 lies in, for each sample.

    Args:
        model: as of ``linearize``. It is copied, not changed.
        order: at least 1.

    Returns:
        A module in eval mode with a copy of the parameters that starts at w0 (names get the prefix ``model.``). It is
        called as the model is, returns a tensor, and can be trained.

    Raises:
        InputError: another order; no trainable parameters.
        UnsupportedError: modules in train mode that answer differently in eval mode; on use, from order 2 on, an
            operation that has no forward derivative of that order.

    Cost: a call is about 2^order forward passes. Attention runs unfused.

    References: Grosse (2021), Neural net training dynamics, chapter 2, eq. 1 and 10; quadratic models of wide networks,
        Bai and Lee (2020), arXiv:1910.01619.

    Example:
        >>> model = nn.Linear(1, 1, bias=False).requires_grad_(True)
        >>> squared = nn.Sequential(model, nn.Softplus())
        >>> quadratic, x = taylor_expand(squared, 2), torch.ones(1, 1)
        >>> _ = quadratic.model[0].weight.data.add_(0.01), model.weight.data.add_(0.01)
        >>> bool((quadratic(x) - squared(x)).abs() < 1e-6)
        True
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise input_error("taylor_expand", "an `order` of at least 1", repr(order), "Pass 1, 2, 3, …")
    return Expanded(model, order, "taylor_expand")


class Expanded(nn.Module):
    """What ``linearize`` and ``taylor_expand`` return.

    Attributes:
        model: the copy whose parameters are the present weights w.
        order: of the polynomial in w - w0.
    """

    def __init__(self, model: nn.Module, order: int, where: str) -> None:
        super().__init__()
        view = ModelView.of(model, where=where)
        if (one := mode_dependent(view.model)) is not None:
            raise unsupported(where, "a model in eval mode", f"{one} in train mode", "Call model.eval()")
        self.order, self._where, self._repeated = order, where, Repeated()
        self.model = copy_of(view.model)
        for part in self.model.modules():  # they watch a training's gradients, and torch's transforms cannot run them
            part._backward_hooks.clear()
            part._backward_pre_hooks.clear()
        self._names = tuple(view.parameters)
        for index, parameter in enumerate(view.parameters.values()):
            self.register_buffer(f"base_{index}", parameter.detach().clone())
        super().train(False)

    def train(self, mode: bool = True) -> Expanded:
        """The mode changes nothing: the copy stays in eval mode, in which it was expanded."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, *args: Batch, **kwargs: Batch) -> Tensor:
        """The polynomial at the present weights."""
        parameters = dict(self.model.named_parameters())
        base = {name: getattr(self, f"base_{index}") for index, name in enumerate(self._names)}
        change = {name: parameters[name] - start for name, start in base.items()}

        def outputs(weights: dict[str, Tensor]) -> Any:
            given, named = copied((args, kwargs))  # the first layer may write to what it is given
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}  # it may write to its own
            with stand_in(self.model, {**buffers, **weights}):
                found = logits_of(self.model(*given, **named))
            if not isinstance(found, Tensor):
                got, remedy = type(found).__name__, "Wrap it to return one tensor"
                raise unsupported(self._where, "a model that returns one tensor, or has `logits`", got, remedy)
            return found

        def with_slope(along: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            with differentiable():
                return _with_slope(outputs, base, along)

        if self.order == 1:
            kept = self._repeated.map_of(self.model, (args, kwargs), base, outputs, with_slope)
            if kept is not None:
                return kept.value + kept(list(change.values()))
            value, slope = with_slope(change)
            return value + slope

        def along(t: Tensor) -> list[Tensor]:
            return [outputs({name: start + t * change[name] for name, start in base.items()})]

        remedy = "Pass order=1, or write that operation with elementary ones"
        with differentiable(every_order=True), forward_derivatives(self._where, remedy):
            start = next(iter(base.values()))
            terms = _jet(along, self.order)(start.new_zeros(()))
        total = terms[0]
        for k, term in enumerate(terms[1:], start=1):
            total = total + term / math.factorial(k)
        return total


def _jet(f: Callable[[Tensor], list[Tensor]], order: int) -> Callable[[Tensor], list[Tensor]]:
    """The function's derivatives 0 to ``order``: each is the forward derivative of all before it."""
    if order == 0:
        return f
    before, functions = _jet(f, order - 1), cast(Any, torch.func)

    def derivatives(t: Tensor) -> list[Tensor]:
        values, slopes = functions.jvp(before, (t,), (torch.ones_like(t),))
        return [*values, slopes[-1]]

    return derivatives


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


def copy_of(model: nn.Module) -> nn.Module:
    """A copy; tensors that hooks have left on a module (``torch.nn.utils.weight_norm``) are values in it."""
    attributes = [value for module in model.modules() for value in vars(module).values()]
    held = {id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and t.grad_fn is not None}
    return copy.deepcopy(model, held)
