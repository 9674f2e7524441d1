"""Which module is running, and which of them is the layer that an attention belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_leaves

from pullback.functional.model_view import ROOT_LAYER
from pullback.measure.rank_collapse.fused_attention import Shape

Key = tuple[str, int]  # name of a module, number of its call


@dataclass(eq=False)
class Frame:
    """One call of a module.

    Attributes:
        module: what is called.
        key: its name, and the number of the call, from 1 on.
        given: tensors among its positional inputs; let go of when the call ends.
        output: shape of the first tensor it returned, if one of its inputs has that shape; else None.
        attends: attention seen while it ran, in a module within or in itself.
        own: the part seen in itself.
    """

    module: nn.Module
    key: Key
    given: list[Tensor]
    output: tuple[int, ...] | None = None
    attends: int = 0
    own: int = 0
    held: dict[str, Any] = field(default_factory=dict)  # what a pass keeps with it

    @property
    def name(self) -> str:
        """Of the module, with the number of a later call."""
        name, number = self.key
        return name if number == 1 else f"{name}#{number}"


@contextmanager
def frames(model: nn.Module, left: Callable[[Frame, Tensor | None, list[Tensor]], None]) -> Iterator[list[Frame]]:
    """The calls that run, outermost first.

    By hooks on all modules there are, not on those of the model: torch leaves its fast paths for modules with hooks.

    Args:
        model: whose modules count.
        left: called as a module ends, with its first tensor (None without one) and the tensors it was given.
    """
    names = {id(module): name or ROOT_LAYER for name, module in model.named_modules()}
    stack: list[Frame] = []
    numbers: dict[str, int] = {}

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if (name := names.get(id(module))) is not None:
            numbers[name] = numbers.get(name, 0) + 1
            stack.append(Frame(module, (name, numbers[name]), _tensors(args)))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if id(module) in names and stack:
            frame, first = stack.pop(), _first(output)
            given = _tensors((args, kwargs))
            if first is not None and any(_alike(first, each) for each in given):
                frame.output = shape_of(first)
            left(frame, first, given)
            frame.given = []

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, with_kwargs=True)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
            _global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch 2.13 leaves it there


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _first(output: Any) -> Tensor | None:
    """The tensor a module returns, the first of several."""
    while isinstance(output, tuple | list | Mapping) and len(output):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def shape_of(x: Tensor) -> tuple[int, ...]:
    """Of a tensor; of a nested one with the longest of its parts."""
    return (x.size(0), max(len(row) for row in x.unbind()), x.size(2)) if x.is_nested else tuple(x.shape)


def _alike(x: Tensor, y: Tensor) -> bool:
    return y.is_floating_point() and x.dim() == y.dim() and x.is_nested == y.is_nested and shape_of(x) == shape_of(y)


@dataclass(frozen=True)
class Layer:
    """Where the tokens of an attention are found.

    Attributes:
        key: of the module whose output they are; None for the outputs of the heads themselves.
        samples: N.
        tokens: T of the longest sample.
        order: axes of the output: "samples first", "tokens first", "channels first" (N, D, ...), or "rows" (N T, D).
        shape: of the output, and of the tokens that the module is given.
    """

    key: Key | None
    samples: int
    tokens: int
    order: str = "samples first"
    shape: tuple[int, ...] = ()

    def is_one(self, X: Tensor) -> bool:
        """Whether a tensor has the shape of the output."""
        return X.is_floating_point() and shape_of(X) == self.shape

    def by_sample(self, X: Tensor) -> list[Tensor]:
        """Tokens of each sample, (T, D), as views."""
        if X.is_nested:
            return list(X.unbind())
        if self.order == "rows":
            return list(X.unflatten(0, (self.samples, self.tokens)))
        if self.order == "tokens first":
            X = X.transpose(0, 1)
        elif self.order == "channels first":
            X = X.movedim(1, -1)
        return list(X.flatten(1, -2))


def layer_of(running: list[Frame], call: Shape, inputs: int) -> Layer:
    """The layer an attention belongs to, of the calls that ran around it, outermost first.

    Candidates return tokens of the shape they were given. First come elements of a list of modules with several of
    their class: the innermost such list, the blocks of a stack. Then elements of a ``ModuleList``, the outermost first;
    then those with one attention alone, elements of a ``Sequential`` and the outermost first; then the innermost.
    Without any, tokens are what the heads return.

    Args:
        running: frames, once they have ended.
        call: the attention.
        inputs: samples in the batch, where nothing else tells.
    """
    candidates = [(frame, found) for frame in running if (found := _tokens_in(frame, call)) is not None]
    alike = _alike_elements(running)
    stacked = [found for frame, found in candidates if alike.get(frame.key, (0, False))[0] > 1]
    listed = [found for frame, found in candidates if alike.get(frame.key, (0, False))[1]]
    single = [(frame.key in alike, found) for frame, found in candidates if frame.attends == 1]
    element = [found for is_element, found in single if is_element]
    outermost = element[:1] or [found for _, found in single][:1]
    chosen = stacked[-1:] or listed[:1] or outermost or [found for _, found in candidates][-1:]
    if chosen:
        return chosen[0]
    samples = call.batch if not call.packed else inputs if call.batch % inputs == 0 else call.batch
    return Layer(None, samples, max(call.lengths))


def _alike_elements(running: list[Frame]) -> dict[Key, tuple[int, bool]]:
    """Of frames that are elements of a list: how many of its elements have that class, and whether it is none of calls.

    A ``Sequential`` calls its elements itself, and may be a whole model; other lists hold blocks.
    """
    found: dict[Key, tuple[int, bool]] = {}
    parents = {id(part): part for frame in running for part in (frame.module, *frame.module.children())}
    for parent in parents.values():
        if isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            elements = list(parent.children())
            for frame in running:
                if any(frame.module is element for element in elements):
                    alike = sum(type(element) is type(frame.module) for element in elements)
                    found[frame.key] = (alike, not isinstance(parent, nn.Sequential))
    return found


def _tokens_in(frame: Frame, call: Shape) -> Layer | None:
    """How a frame's output holds the tokens of an attention; None if it does not."""
    shape = frame.output
    if shape is None or len(shape) < 2:
        return None
    T, total = max(call.lengths), sum(call.lengths)
    if len(set(call.lengths)) > 1:  # of a nested tensor
        return Layer(frame.key, shape[0], shape[1], shape=shape) if shape[:2] == (call.batch, T) else None
    if len(shape) == 2:
        samples = 1 if call.packed else call.batch
        return Layer(frame.key, samples, T, "rows", shape) if shape[0] == samples * T else None
    spatial = 1
    for size in shape[2:]:
        spatial *= size
    middle = spatial // shape[-1] * shape[1]
    orders = [("samples first", shape[0], middle)]
    if len(shape) == 3:
        seconds = ("tokens first", shape[1], shape[0])
        orders = [seconds, *orders] if _tokens_first(frame.module) else [*orders, seconds]
    else:
        orders.append(("channels first", shape[0], spatial))
    for order, samples, tokens in orders:
        whole = tokens == T and call.batch % samples == 0 if call.packed else samples * tokens == total
        if whole and tokens % T == 0:
            return Layer(frame.key, samples, tokens, order, shape)
    return None


def _tokens_first(module: nn.Module) -> bool:
    """Whether the attention within says ``batch_first=False``."""
    said = (getattr(part, "batch_first", None) for part in module.modules())
    return next((not value for value in said if isinstance(value, bool)), False)
