"""Elementwise activations as they are met in a model: calls of torch, and modules made of several calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from pullback.modules.activations import Elementwise
from pullback.theory.activations import BUILT_IN, LEAK

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
        found = function(v.clone(), *rest, **options)
        assert isinstance(found, Tensor)
        return found

    phi.__name__ = f"{name}({', '.join(map(str, settings))})" if settings else name
    return phi


def composed(first: Activation, then: Activation) -> Activation:
    """One activation directly behind another."""
    inner, outer = (_callable(each) for each in (first, then))

    def phi(v: Tensor) -> Tensor:
        return outer(inner(v))

    phi.__name__ = f"{name_of(then)} of {name_of(first)}"
    return phi


def _callable(activation: Activation) -> Callable[[Tensor], Tensor]:
    if not isinstance(activation, str):
        return activation
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu, "erf": torch.erf, "sin": torch.sin,
        "gelu": nn.functional.gelu, "leaky_relu": nn.functional.leaky_relu, "hard_tanh": nn.functional.hardtanh,
    }  # fmt: skip
    return named[activation]


def of_module(module: nn.Module) -> Activation | None:
    """The activation a module of another home than ``torch.nn`` is as a whole; None if it is none.

    It has no state of its own, and does to every number of a vector what it does to that number alone, other than
    scaling and shifting it. So x * sigmoid(x), or GELU written out, is one function and not those it is made of.
    """
    if isinstance(module, Elementwise):
        name = getattr(module.function, "__name__", "")
        return name if name in SAME and name in BUILT_IN and module.function is getattr(torch, name, None) else (
            module.function
        )  # fmt: skip
    if type(module).__module__.startswith("torch.") or any(True for _ in module.children()):
        return None
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    at = torch.linspace(-3.1, 2.9, 13)  # no kink of a usual activation lies on it
    try:
        own = copy.deepcopy(module).eval()
        own._forward_hooks.clear()
        own._forward_pre_hooks.clear()
        with torch.no_grad():
            together = own(at.clone())
            alone = torch.cat([own(each.clone()) for each in at.split(1)])
    except Exception:  # whatever a module of another kind makes of a vector
        return None
    if not isinstance(together, Tensor) or together.shape != at.shape or not together.is_floating_point():
        return None
    bends = together.diff().diff().abs().max() > 1e-4 * together.abs().max()
    if not bool(bends) or not torch.allclose(together, alone, rtol=1e-5, atol=1e-6):
        return None

    def phi(v: Tensor) -> Tensor:
        found = own(v.clone())
        assert isinstance(found, Tensor)
        return found

    phi.__name__ = type(module).__name__
    return phi
