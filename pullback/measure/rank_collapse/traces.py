"""Where tensors come from: whether inputs went into them, whether they are products of two such, and their layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1, "addmv": 1, "addbmm": 1}  # name: first factor
LAYERS = ("convolution", "native_layer_norm", "native_group_norm", "native_batch_norm")  # of weights of the model's
EXPONENTIALS = ("_softmax", "_safe_softmax", "_log_softmax", "exp", "exp_", "sigmoid", "sigmoid_")
SIZES = ("_like", "new_")  # in names of what takes the sizes of its argument alone
MOST = 4  # tensors that are kept for what was made of them


@dataclass
class Trace:
    """What is known of some memory.

    Attributes:
        layout: shape, strides and offset of the tensor it was made as.
        given: it is an input of the model.
        data: inputs of the model went into it.
        weighed: an exponential did.
        pair: a product of two tensors that inputs went into did, and no product since.
        source: the tensor it was a copy of before entries were dropped or rounded, its layout that of this one.
        factors: of a product entry by entry, each spread along an axis of the other.
    """

    layout: tuple[tuple[int, ...], tuple[int, ...], int]
    given: bool = False
    data: bool = False
    weighed: bool = False
    pair: bool = False
    source: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None

    def release(self) -> None:
        """Let go of what it was made of."""
        self.source = self.factors = None

    def before(self, view: Tensor) -> Tensor | None:
        """The same view of the source; None without one, or one in another order of memory."""
        if self.source is None or self.source.stride() != self.layout[1]:
            return None
        offset = view.storage_offset() - self.layout[2] + self.source.storage_offset()
        return self.source.as_strided(view.shape, view.stride(), offset)

    def as_made(self, part: Tensor) -> Tensor:
        """The tensor as it was made, of one that shares its memory."""
        return part.as_strided(*self.layout)


class Traces:
    """Of all memory that operations wrote to, by its address: what is freed is overwritten once it is used again.

    Args:
        inputs: of the model.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        self._known = {memory(x): Trace(layout(x), given=True, data=True) for x in inputs if is_plain(x)}
        self._keeping: list[Trace] = []

    def of(self, tensor: Tensor) -> Trace | None:
        """None where no operation made it: of parameters, buffers and constants."""
        return self._known.get(memory(tensor))

    def has_data(self, tensor: Tensor) -> bool:
        """Whether inputs went into it."""
        trace = self.of(tensor)
        return trace is not None and trace.data

    def is_pair(self, tensor: Tensor) -> bool:
        """Whether it is a product of two that inputs went into, scores for example."""
        trace = self.of(tensor)
        return trace is not None and trace.pair

    def note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """An operation was run; views say nothing new."""
        given = plain((args, kwargs))
        old, written = {memory(x) for x in given}, name.endswith("_") or "out" in kwargs
        new = [x for x in plain(result) if written or memory(x) not in old or self.of(x) is None]
        if not new:
            return
        known = [trace for x in given if (trace := self.of(x)) is not None]
        factors = factors_of(name, args) or (args[:2] if name == "mul" and is_outer(*args[:2]) else None)
        sized = any(part in name for part in SIZES)
        pair = all(map(self.has_data, factors)) if factors else any(trace.pair for trace in known)
        data = not sized and any(trace.data for trace in known)
        weighed = not sized and not factors and (name in EXPONENTIALS or any(trace.weighed for trace in known))
        pair = not sized and name not in LAYERS and pair
        for x in new:
            before, whole = self.of(x), layout(x)
            if before is not None and written and x.numel() != torch.Size(before.layout[0]).numel():
                whole = before.layout  # a part of it was written
            number = x.is_floating_point()  # what is none may be a mask
            self._known[memory(x)] = Trace(whole, False, data, weighed and number, pair and number)

    def without_first_axis(self, made: Any) -> None:
        """What was made of four axes, the first with one entry, counts as made of the other three."""
        for x in plain(made):
            trace = self.of(x)
            if trace is not None and len(trace.layout[0]) == 4 and trace.layout[0][0] == 1:
                shape, strides, offset = trace.layout
                trace.layout = shape[1:], strides[1:], offset

    def mixed(self, tensor: Tensor, again: bool) -> None:
        """A product was told of, which what follows is not part of unless it comes in ``again``."""
        trace = self.of(tensor)
        if trace is not None:
            trace.pair = again

    def keep(self, tensor: Tensor, source: Tensor | None = None, factors: tuple[Tensor, Tensor] | None = None) -> None:
        """Remember with a tensor what it was made of, for as long as its memory is its own, and of few."""
        trace = self.of(tensor)
        if trace is not None:
            trace.source, trace.factors = source, factors
            self._keeping.append(trace)
            if len(self._keeping) > MOST:
                self._keeping.pop(0).release()


def factors_of(name: str, args: Any) -> tuple[Tensor, Tensor] | None:
    """The two matrices that an operation multiplies, (G, T, S) and (G, S, d) or without G."""
    if name not in PRODUCTS:
        return None
    left, right = args[PRODUCTS[name] : PRODUCTS[name] + 2]
    return (left, right.unsqueeze(-1)) if name.endswith("mv") else (left, right)


def is_outer(left: Any, right: Any) -> bool:
    """Whether each of two tensors is spread along an axis of the other, the result having three or more."""
    if not (is_plain(left) and is_plain(right)) or max(left.dim(), right.dim()) < 3:
        return False
    one, other = (spread(x, max(left.dim(), right.dim())) for x in (left, right))
    return any(a > b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def spread(x: Tensor, dims: int) -> list[int]:
    """Sizes, 1 along axes that it is expanded along."""
    sizes = [1 if stride == 0 else size for size, stride in zip(x.shape, x.stride(), strict=True)]
    return [1] * (dims - x.dim()) + sizes


def plain(values: Any) -> list[Tensor]:
    """Tensors with memory of their own among values; by hand, as torch's trees take several times as long."""
    if isinstance(values, tuple | list):
        return [leaf for each in values for leaf in plain(each)]
    if isinstance(values, dict):
        return plain(list(values.values()))
    return [values] if is_plain(values) else []


def is_plain(x: Any) -> bool:
    """Whether it is a dense tensor with entries."""
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and x.numel() > 0


def memory(tensor: Tensor) -> int:
    """Address of what it shares with its views."""
    return tensor.untyped_storage().data_ptr()


def layout(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides and offset."""
    return tuple(x.shape), x.stride(), int(x.storage_offset())
