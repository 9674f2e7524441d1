"""What stands at the calls of a network that is followed without inputs of its own: signals, weights, numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import Tensor


@dataclass(frozen=True)
class Raw:
    """What is computed from the inputs before any layer: a number or tensor for each of the two sets."""

    left: Any
    right: Any


@dataclass(frozen=True)
class Held:
    """A tensor that is no parameter: a constant before the first layer, fixed weights behind it."""

    tensor: Tensor


@dataclass(frozen=True)
class Samples:
    """A number of samples, as code asks for it to reshape by."""


@dataclass(frozen=True)
class Shape:
    """The shape of a signal; only its number of samples is asked for."""


Value = Any  # Raw, Signal, Held, Drawn, Samples, Shape, or a plain constant


def both(function: Callable[..., Any], args: list[Value], options: dict[str, Value]) -> Raw:
    """A call on inputs alone, on both sets."""
    found = []
    with torch.no_grad():
        for side in ("left", "right"):
            given = [getattr(each, side) if isinstance(each, Raw) else each for each in args]
            named = {key: getattr(each, side) if isinstance(each, Raw) else each for key, each in options.items()}
            found.append(function(*given, **named))
    return Raw(*found)


def callable_of(node: torch.fx.Node) -> Callable[..., Any]:
    """What a call calls."""
    if node.op == "call_method":
        return getattr(Tensor, str(node.target))
    assert callable(node.target)
    return node.target


def function_name(node: torch.fx.Node) -> str:
    """Its name, without the underscores of calls in place and of operators."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    return str(getattr(node.target, "__name__", "")).strip("_")
