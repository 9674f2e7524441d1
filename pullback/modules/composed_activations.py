"""Elementwise activations that are modules made of several calls, and one behind another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pullback.modules.activations import Elementwise
from pullback.theory.expectations.activations import BUILT_IN
from pullback.theory.expectations.calls import SAME, Activation, name_of


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
    at = torch.linspace(-3.1, 2.9, 13, device="cpu")  # no kink of a usual activation lies on it
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
        values = own(v.clone())
        assert isinstance(values, Tensor)
        return values

    phi.__name__ = type(module).__name__
    return phi
