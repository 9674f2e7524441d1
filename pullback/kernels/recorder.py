"""Sees every function of torch the forward pass calls, and records the uses of parameters among them.

A tensor is of one of three kinds. *Sample* tensors hold data of the batch. *Shared* tensors require a gradient and
are computed from parameters alone: parameters themselves, their views, a normalised weight, a table of positions.
The rest are constants. A use is the call in which a shared tensor meets sample tensors; there a detached alias
stands in for it, so that the graph behind the use is cut and the gradient that arrives belongs to that use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from pullback.functional import ModelView
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import layer_of
from pullback.kernels.refused import refuse
from pullback.kernels.rules import COPIES, LOOKUPS, REISSUED, RULES, Rule, Source
from pullback.kernels.rules.registry import Arguments


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


@dataclass(frozen=True)
class Derived:
    """A shared tensor that is no parameter, with the graph that leads to the parameters it is made of.

    Args:
        value: the tensor.
        leaves: names of those parameters that are asked for.
        parameters: they themselves.
        table: (parameter, indices) if it is rows looked up in a table by indices that are the same for all samples.
    """

    value: Tensor
    leaves: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    table: tuple[str, Tensor] | None


class Reissuing(TorchFunctionMode):
    """Only runs replacements: for those who count what a model does, not what it was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = self.reissued(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if output is NotImplemented else output

    def reissued(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of the replacement of a call, or NotImplemented."""
        if func not in REISSUED:
            return NotImplemented
        with self:
            return REISSUED[func](*args, **kwargs)


class SelfDifferentiating(Exception):
    """The model takes derivatives or batches functions itself: nothing in its forward pass may be replaced."""


class Recorder(Reissuing):
    """Active during one forward pass.

    Args:
        view: the parameters asked for.
        count: number of samples in the batch.
        where: the caller, for error messages.
        constants: decisions of an earlier pass over more samples, in order: does a constant or shared input of a
            layer hold one row a sample? A batch of one cannot tell.
        blind: replace and record nothing, only refuse.

    Attributes:
        uses: in the order of the forward pass.
        dtypes: of everything the forward pass made of the samples.
        aliases: what each stands for, and it; sources named ``~k`` stand for ``derived[k]``.
    """

    def __init__(
        self,
        view: ModelView,
        x: Batch,
        count: int,
        where: str,
        constants: list[bool] | None = None,
        *,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self._blind = blind
        self.names = {id(p): name for name, p in view.parameters.items()}
        self.view, self.count, self.where = view, count, where
        self.layers = {id(b): layer_of(name) for name, b in view.model.named_buffers()}
        self.layers |= {id(p): layer_of(name) for name, p in view.model.named_parameters()}
        self.samples: Any = WeakIdKeyDictionary()
        for tensor in tensors(x):
            self.samples[tensor] = True
        self.dtypes: set[torch.dtype] = set()
        self.uses: list[Use] = []
        self.aliases: list[tuple[Source, Tensor]] = []
        self.derived: list[Derived] = []
        self.constants: list[bool] = []
        self._earlier = constants
        self._saved_by = _saved_by()
        self._places: dict[int, int] = {}  # id of a derived tensor -> its place; the list keeps it alive

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        refuse(func, args, kwargs, self.layers, self.where)
        if self._blind:
            return func(*args, **kwargs)
        if func is torch.autograd.grad or torch._C._functorch.peek_interpreter_stack() is not None:
            raise SelfDifferentiating
        if _saved_by() == self._saved_by and (output := self.reissued(func, args, kwargs)) is not NotImplemented:
            return output
        found = list(_tensors_in(args)) + list(_tensors_in(kwargs.values()))
        tainted = any(t in self.samples for t in found)
        shared = [t for t in found if t.requires_grad and t not in self.samples and self.reaches(t)]
        if not shared or not torch.is_grad_enabled():
            output = func(*args, **kwargs)
        else:
            output, tainted = self._shared_call(func, args, kwargs, shared, tainted)
        if tainted:
            written = args[:1] if _in_place(func) else ()
            for tensor in _tensors_in((output, *written)):
                self.samples[tensor] = True
                self.dtypes.add(tensor.dtype)
        return output

    def _shared_call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shared: list[Tensor],
        tainted: bool,
    ) -> tuple[Any, bool]:
        """Output of a call with shared tensors among its arguments, and whether it holds samples."""
        rule = RULES.get(func)
        if rule is not None:
            arguments = rule.bind(args, kwargs)
            trained = {k for k in rule.parameters if any(arguments.get(k) is t for t in shared)}
            data = rule.data_of(arguments, frozenset(trained)) if trained else None
            if data is not None and rule.accepts(arguments) and self.per_sample(arguments[data]):
                return self.ruled(rule, func, arguments, trained, data), True
        if tainted and not _writes_to(func, args, shared):
            stand_in = {id(t): self.copy(t) for t in shared}
            swap = lambda t: stand_in.get(id(t), t) if isinstance(t, Tensor) else t  # noqa: E731
            args, kwargs = _mapped(swap, args), {k: _mapped(swap, v) for k, v in kwargs.items()}
            return func(*args, **kwargs), True
        output = func(*args, **kwargs)
        if func in LOOKUPS and not tainted and isinstance(output, Tensor):
            arguments = RULES[func].bind(args, kwargs)
            if id(table := arguments["weight"]) in self.names and LOOKUPS[func](arguments):
                self._place(output, (self.names[id(table)], arguments["input"]))
        return output, tainted

    def per_sample(self, data: Any) -> bool:
        """Whether a layer's input holds one row (or several) a sample."""
        if not isinstance(data, Tensor):
            return False
        if data in self.samples:
            return True
        if id(data) in self.layers:  # a mask, a frozen weight: the model's own, whatever its sizes
            return False
        place = len(self.constants)
        if self._earlier is not None and place < len(self._earlier):
            known = self._earlier[place]
        else:
            known = data.is_floating_point() and self.count in data.shape
        self.constants.append(known)
        return known

    def ruled(self, rule: Rule, func: Callable[..., Any], arguments: Arguments, trained: set[str], data: str) -> Any:
        """Output of a call that a rule reads, run on aliases of its parameters and recorded."""
        sources = {}
        held = arguments[data]
        if isinstance(held, Tensor) and held.requires_grad and held not in self.samples and self.reaches(held):
            arguments = arguments | {data: self.copy(held)}  # rows of a table, spread over the samples
        swapped = dict(arguments)
        probed = []
        for argument in sorted(trained):
            source = self._source(arguments[argument], rule.views)
            sources[argument] = source
            direct = source.name in self.view.parameters
            if rule.probe is not None and direct and _saved_by() == self._saved_by:
                probed.append(argument)
                swapped[argument] = arguments[argument].detach()
            else:
                swapped[argument] = self._alias(source, arguments[argument])
        if probed and not any(isinstance(v, Tensor) and v.requires_grad for v in swapped.values()):
            swapped[data] = swapped[data].detach().requires_grad_()  # so that the output has a gradient
        recorded = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        if _in_place(func):
            recorded[data] = recorded[data].clone()
        positional = [swapped.pop(k) for k in rule.signature[: rule.positional]]
        output = func(*positional, **swapped)
        if output.requires_grad:
            edge = get_gradient_edge(output)
            self.uses.append(Use(rule, func, recorded, sources, tuple(probed), data, edge, output.shape))
        return output

    def copy(self, tensor: Tensor) -> Tensor:
        """An alias of a shared tensor in a call no rule knows: its gradient can be read if it has a row a sample."""
        source = self._source(tensor, views=False)
        alias = self._alias(source, tensor)
        self.uses.append(Use(COPIES, COPIES.build, {}, {"value": source}, (), None, alias, tensor.shape))
        return alias

    def _alias(self, source: Source, tensor: Tensor) -> Tensor:
        alias = tensor.detach().requires_grad_()
        self.aliases.append((source, alias))
        return alias

    def _source(self, tensor: Tensor, views: bool) -> Source:
        """Which parameter a shared tensor is, or of which it is a view a rule can read, or that it is derived."""
        if (name := self.names.get(id(tensor))) is not None:
            return Source(name, tensor.shape)
        base = tensor._base
        if views and base is not None and (name := self.names.get(id(base))) is not None:
            if tensor.dim() == base.dim() and tensor.stride() == base.stride() and tensor.shape[1:] == base.shape[1:]:
                start = (tensor.storage_offset() - base.storage_offset()) // max(1, base.stride(0))
                return Source(name, base.shape, rows=(start, start + len(tensor)))
            if tensor.dim() == 2 and tensor.stride() == base.stride()[::-1] and tensor.shape == base.shape[::-1]:
                return Source(name, base.shape, transposed=True)
        return Source(f"~{self._place(tensor, None)}", tensor.shape)

    def _place(self, tensor: Tensor, table: tuple[str, Tensor] | None) -> int:
        """Where a derived tensor stands in the list."""
        if id(tensor) not in self._places:
            leaves = self._leaves(tensor)
            self._places[id(tensor)] = len(self.derived)
            parameters = tuple(self.view.parameters[name] for name in leaves)
            self.derived.append(Derived(tensor, leaves, parameters, table))
        return self._places[id(tensor)]

    def reaches(self, tensor: Tensor) -> bool:
        """Whether a shared tensor depends on a parameter that is asked for."""
        return id(tensor) in self.names or (not tensor.is_leaf and bool(self._leaves(tensor)))

    def _leaves(self, tensor: Tensor) -> tuple[str, ...]:
        if id(tensor) in self._places:
            return self.derived[self._places[id(tensor)]].leaves
        names, seen, stack = set(), set(), [tensor.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if (variable := getattr(node, "variable", None)) is not None and id(variable) in self.names:
                names.add(self.names[id(variable)])
            stack += [following for following, _ in node.next_functions]
        return tuple(name for name in self.view.parameters if name in names)


def _saved_by() -> Any:
    """The hooks that save tensors for the backward pass, if any.

    Inside an activation checkpoint they are the checkpoint's. What it computes anew in the backward pass no mode
    sees, so calls there must not be changed: other tensors would be saved than are computed.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments, and in lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_mapped(change, v) for v in value)
    return change(value)


def _in_place(func: Callable[..., Any]) -> bool:
    """Whether a call changes its first argument."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__")


def _writes_to(func: Callable[..., Any], args: tuple[Any, ...], shared: list[Tensor]) -> bool:
    """Whether a call changes a shared tensor: an alias of it cannot be written to."""
    return _in_place(func) and bool(args) and any(args[0] is t for t in shared)
