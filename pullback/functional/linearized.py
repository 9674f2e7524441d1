"""``linearize``: a model that is linear in its parameters, and agrees with another to first order at its weights."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pullback._checks import unsupported
from pullback.functional.batch import Batch, copied
from pullback.functional.losses import logits_of
from pullback.functional.model_view import ModelView
from pullback.functional.stand_in import stand_in


def linearize(model: nn.Module) -> Linearized:
    """First-order Taylor model f_lin(x; w) = f(x; w0) + J(x; w0) (w - w0) around the model's present weights w0.

    The answer is a module of its own, with a copy of the parameters that starts at w0 (names get the prefix
    ``model.``, their order stays): train it, or take its matrices. Its Jacobian and tangent kernel never change, and
    at w0 its Hessian is the Gauss-Newton matrix of the model.

    Args:
        model: in eval mode, with one tensor (or an object with ``logits``) as its output. It is copied, not changed.

    Returns:
        A module in eval mode that is called as the model is, and returns a tensor. Parameters that were frozen are
        constants.

    Raises:
        InputError: no trainable parameters.
        UnsupportedError: modules in train mode, whose linearisation would change from call to call.

    Cost: a call is one forward pass that carries a derivative along, about two; attention runs unfused.

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
        training = [name or type(module).__name__ for name, module in view.model.named_modules() if module.training]
        if training:
            got = f"`{training[0]}` in train mode"
            raise unsupported("linearize", "a model in eval mode", got, "Call model.eval()")
        self.model = copy.deepcopy(view.model)
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

        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # torch's own tables for forward derivatives, on first use
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            found: Any = torch.func.jvp(outputs, (base,), (change,))
            value, slope = found
        return value + slope
