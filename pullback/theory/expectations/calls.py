"""Elementwise activations as they are met in a model: names and settings of torch's calls, as functions of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from pullback.theory.expectations.activations import LEAK

Activation = str | Callable[[Tensor], Tensor]

# names of torch's functions, as functions, methods and in place
CALLS = frozenset({
    "arctan", "atan", "celu", "clamp", "clamp_max", "clamp_min", "clip", "cos", "elu", "erf", "expit", "gelu",
    "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "logsigmoid", "mish", "prelu",
    "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "sin", "softplus", "softshrink", "softsign", "tanh",
    "tanhshrink", "threshold",
})  # fmt: skip
# of torch.nn; their calls say which function of which settings it is
MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.PReLU, nn.RReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
SAME = ("relu", "tanh", "silu", "erf", "sin")  # functions that theory knows by the same name, without settings


def name_of(activation: Activation) -> str:
    """A name that tells activations of different settings apart."""
    return activation if isinstance(activation, str) else getattr(activation, "__name__", repr(activation))


def of_call(name: str, function: Callable[..., Any], rest: Sequence[Any], options: Mapping[str, Any]) -> Activation:
    """The activation that a call ``function(h, *rest, **options)`` is of h.

    Raises:
        ValueError: the settings are tensors, and so the function differs from unit to unit.
    """
    options = {key: value for key, value in options.items() if key not in ("input", "inplace", "training")}
    settings = [value for value in (*rest, *options.values()) if not isinstance(value, bool)]
    if name == "prelu" and isinstance(settings[0], Tensor):
        slopes = settings[0].detach().double().unique()
        if len(slopes) == 1:
            return of_call("leaky_relu", nn.functional.leaky_relu, (float(slopes),), {})
    if any(isinstance(value, Tensor | torch.fx.Node) for value in settings):
        message = f"{name} with settings that are tensors"
        raise ValueError(message)
    if name in SAME:
        return name
    if name == "gelu" and "tanh" not in settings:
        return "gelu"
    if name == "leaky_relu" and settings in ([], [LEAK]):
        return "leaky_relu"
    if name == "hardtanh" and settings in ([], [-1.0, 1.0]):
        return "hard_tanh"

    def phi(v: Tensor) -> Tensor:  # the call may write over its argument
        values = function(v.clone(), *rest, **options)
        assert isinstance(values, Tensor)
        return values

    phi.__name__ = f"{name}({', '.join(map(str, settings))})" if settings else name
    return phi
