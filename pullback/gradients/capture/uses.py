"""What is noted down of recorded calls and of the passes around them; what tells tensors apart: memory and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from pullback.gradients.rules import Rule, Source
from pullback.gradients.rules.registry import Arguments


@dataclass
class Use:
    """A recorded call: a rule, its arguments, and where the gradient of its output arrives."""

    rule: Rule
    function: Callable[..., Any]
    arguments: Arguments
    sources: dict[str, Source]  # argument -> what the trained tensor in it is
    probed: tuple[str, ...]  # arguments whose ordinary gradient is not formed, see ``Rule.probe``
    data: str | None  # the argument that carries the samples
    edge: GradientEdge | Tensor
    output_shape: torch.Size
    versions: dict[str, int] = field(default_factory=dict)  # of the tensors among the arguments when it was called
    front: bool = False  # no other recorded call of samples stands before it in the graph

    @property
    def overwritten(self) -> bool:
        """Whether an argument is no longer what it was."""
        return any(version(self.arguments[name]) != before for name, before in self.versions.items())


@dataclass(frozen=True)
class Derived:
    """A shared tensor that is no parameter, with the graph that leads to the parameters it is made of.

    Args:
        value: the tensor, as it was when it was first used.
        leaves: names of those parameters that are asked for.
        parameters: they themselves.
        table: (parameter, indices) if it is rows looked up in a table by indices that are the same for all samples.
    """

    value: Tensor
    leaves: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    table: tuple[str, Tensor] | None


Projections = dict[int, dict[int, Tensor]]  # place of a use -> axis of its output -> numbers along that axis


@dataclass
class Capture:
    """What the passes over ``num_samples`` samples left behind.

    Args:
        uses: in the order of the forward pass.
        gradients: per use, of each output. This, ``ordinary`` and ``escaped`` are empty if no gradients were taken.
        ordinary: gradient of ``sum_ic u_c f_ic``, parameter -> shape, over recorded and other uses together, where
            it is not zero; u is ``combination``.
        probes: parameter -> ``<gradient, u v^T>`` over those uses that are not in ``ordinary``; u, v of ``direction``.
        derived: tensors computed from parameters, ``~k`` in the uses' sources.
        constants: see ``Recorder``.
        escaped: parameters with a use no rule saw, or whose layer's input was overwritten after it.
        values: the readout, (N, C).
        outputs: what the model returned, detached.
        dtypes: of everything the forward pass made of the samples.
        weighted: see ``weighted_pass``; empty if it was not asked for.
    """

    num_samples: int
    uses: list[Use]
    gradients: list[list[Tensor | None]]
    ordinary: dict[str, Tensor]
    probes: dict[str, Tensor]
    derived: list[Derived]
    constants: list[bool]
    escaped: frozenset[str]
    values: Tensor
    outputs: Any
    dtypes: frozenset[torch.dtype]
    weighted: Projections


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments, and in lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def given_to(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[tuple[Tensor, int]], Any]:
    """The tensors a call is given and how often each was written to before; the argument it changes, if it does."""
    given = [(t, version(t)) for values in (args, kwargs.values()) for t in tensors_in(values)]
    return given, args[0] if args and in_place(func) else None


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A value, or what lists and tuples hold, changed."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(mapped(change, v) for v in value)
    return change(value)


def in_place(func: Callable[..., Any]) -> bool:
    """Whether a call changes its first argument."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__") or name in _ASSIGNED


_ASSIGNED = {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or")}


def version(tensor: Tensor) -> int:
    """How often a tensor, or one that shares its memory, was written to."""
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode, where nobody counts
        return -1


def memory(tensor: Tensor) -> int | None:
    """What tells a tensor's memory from others; None for a layout that has none of its own."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


def spread(tensor: Tensor, shape: torch.Size | None) -> Tensor:
    """A tensor as a call broadcasts it to ``shape``, which is a computation from parameters like any other."""
    return tensor if shape is None or tensor.shape == shape or tensor.dim() > len(shape) else tensor.expand(shape)


class _Own(torch.autograd.Function):
    """The identity."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def own(tensor: Tensor) -> Tensor:
    """The same numbers in the same memory, with a place in the graph that later writes leave where it is."""
    return _Own.apply(tensor)
