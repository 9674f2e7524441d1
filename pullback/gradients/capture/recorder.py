"""Sees every function of torch the forward pass calls, and records the uses of parameters among them.

A tensor is of one of three kinds. *Sample* tensors hold data of the batch. *Shared* tensors require a gradient and
are computed from parameters alone: parameters themselves, their views, a normalised weight, a table of positions.
The rest are constants. A use is the call in which a shared tensor meets sample tensors; there a detached alias
stands in for it, so that the graph behind the use is cut and the gradient that arrives belongs to that use.

Models write over what they computed. What is noted of a tensor is therefore noted at once: the place in the graph where
its gradient arrives (of an output that is a view, autograd would move it), and its version, by which a layer input that
is overwritten later is told. What a call writes to is told by versions too, and all that shares its memory counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from pullback.functional import ModelView
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import layer_of
from pullback.functional.plain_calls import plain_arguments
from pullback.functional.refused import refuse
from pullback.functional.saved_tensors import saved_by
from pullback.functional.walk import parts_of
from pullback.gradients.capture.uses import (
    Derived,
    Use,
    given_to,
    in_place,
    mapped,
    memory,
    own,
    spread,
    tensors_in,
    version,
)
from pullback.gradients.rules import COPIES, LOOKUPS, REISSUED, RULES, Rule, Source, written_shape
from pullback.gradients.rules.registry import Arguments


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
        self.samples: Any = WeakIdKeyDictionary()  # tensor -> whether a rule read a call that led to it
        self._num_ruled = 0
        for tensor in tensors(x):
            self.samples[tensor] = False
        self.dtypes: set[torch.dtype] = set()
        self.uses: list[Use] = []
        self.aliases: list[tuple[Source, Tensor]] = []
        self.derived: list[Derived] = []
        self.constants: list[bool] = []
        self._earlier = constants
        self._saved_by = saved_by()
        self._places: dict[tuple[int, int], int] = {}  # id and version of a derived tensor -> its place
        self._alive: list[Tensor] = []  # those tensors
        self._written: dict[int, StorageWeakRef] = {}  # memory samples were written to

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        refuse(func, args, kwargs, lambda: self.layers, self.where)
        if self._blind:
            return func(*args, **kwargs)
        if func is torch.autograd.grad or torch._C._functorch.peek_interpreter_stack() is not None:
            raise SelfDifferentiating
        if saved_by() == self._saved_by and (output := self.reissued(func, args, kwargs)) is not NotImplemented:
            return output
        given, target = given_to(func, args, kwargs)
        found = [t for t, _ in given]
        tainted = any(self.holds_samples(t) for t in found)
        shared = [t for t in found if t.requires_grad and not self.holds_samples(t) and self.reaches(t)]
        behind, ruled = any(self._behind(t) for t in found), self._num_ruled
        if not shared or not torch.is_grad_enabled():
            output = call(func, args, kwargs)
        else:
            output, tainted = self._shared_call(func, args, kwargs, shared, tainted, target)
        if tainted:
            behind = behind or self._num_ruled > ruled
            self.mark(tensors_in((output,)), behind)
            self._mark_written((t for t, earlier in given if version(t) != earlier), behind)
        return output

    @cached_property
    def layers(self) -> dict[int, str]:
        """Id of each of the model's own tensors -> its layer."""
        held = [*self.view.model.named_buffers(), *self.view.model.named_parameters()]
        return {id(tensor): layer_of(name) for name, tensor in held}

    def holds_samples(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from samples, or shares memory that samples were written to."""
        return tensor in self.samples or (bool(self._written) and memory(tensor) in self._written)

    def mark(self, found: Iterable[Tensor], behind: bool = True) -> None:
        """Note tensors down as computed from samples, and whether a rule read a call that led to them."""
        for tensor in found:
            self.samples[tensor] = behind
            self.dtypes.add(tensor.dtype)

    def _mark_written(self, found: Iterable[Tensor], behind: bool) -> None:
        for tensor in found:
            if id(tensor) not in self.names and (place := memory(tensor)) is not None:
                self.mark([tensor], behind)
                self._written.setdefault(place, StorageWeakRef(tensor.untyped_storage()))

    def _shared_call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shared: list[Tensor],
        tainted: bool,
        target: Any,
    ) -> tuple[Any, bool]:
        """Output of a call with shared tensors among its arguments, and whether it holds samples."""
        complex_ = any(t.is_complex() for t in tensors_in((args, kwargs)))  # rules are written for real numbers
        if complex_ or any(target is t for t in shared):  # no alias of the target can be written to
            return call(func, args, kwargs), tainted  # its parameters go to the fallback
        rule = RULES.get(func)
        if rule is not None and not (isinstance(target, Tensor) and target._is_view()):  # writes move a view's gradient
            reading = rule.read(args, kwargs, shared)
            if reading is not None and self.per_sample(reading.arguments[reading.data]):
                return self.ruled(rule, func, *reading), True
        if tainted:
            shape = written_shape(func, args)  # spread over the samples, what they share has a row for each
            stand_in = {id(t): self.copy(spread(t, shape)) for t in shared}
            swap = lambda t: stand_in.get(id(t), t) if isinstance(t, Tensor) else t
            args, kwargs = mapped(swap, args), {k: mapped(swap, v) for k, v in kwargs.items()}
            return call(func, args, kwargs), True
        output = call(func, args, kwargs)
        if func in LOOKUPS and not tainted and isinstance(output, Tensor):
            arguments = RULES[func].bind(args, kwargs)
            if id(table := arguments["weight"]) in self.names and LOOKUPS[func](arguments):
                self._place(output, (self.names[id(table)], arguments["input"]))
        return output, tainted

    def settle(self) -> None:
        """Copy what was recorded in memory the model keeps: once the forward pass is over, the next writes there."""
        homes = [
            v for m in parts_of(self.view.model) for k, v in vars(m).items() if k not in _ELSEWHERE and v is not None
        ]
        inside = [held for v in homes for held in (v.values() if isinstance(v, dict) else v if _is_list(v) else (v,))]
        kept = {memory(held) for held in inside if isinstance(held, Tensor)} - {None}
        if not kept:
            return
        for use in (use for use in self.uses if not use.overwritten):
            for name, value in use.arguments.items():
                if (
                    isinstance(value, Tensor)
                    and memory(value) in kept
                    and (name == use.data or self.holds_samples(value))
                ):
                    use.arguments[name] = value.clone()
                    use.versions[name] = 0

    def per_sample(self, data: Any) -> bool:
        """Whether a layer's input holds one row (or several) a sample."""
        if not isinstance(data, Tensor):
            return False
        if self.holds_samples(data):
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
        self._num_ruled += 1
        front = not self._behind(held)
        if isinstance(held, Tensor) and held.requires_grad and not self.holds_samples(held) and self.reaches(held):
            arguments = arguments | {data: self.copy(held)}  # rows of a table, spread over the samples
        swapped = dict(arguments)
        probed = []
        for argument in sorted(trained):
            source = self._source(arguments[argument], rule.views)
            sources[argument] = source
            direct = source.name in self.view.parameters
            if rule.probe is not None and direct and saved_by() == self._saved_by:
                probed.append(argument)
                swapped[argument] = arguments[argument].detach()
            else:
                swapped[argument] = self._alias(source, arguments[argument])
        bare = probed and not any(isinstance(v, Tensor) and v.requires_grad for v in swapped.values())
        if bare and swapped[data].is_floating_point():  # torch's own error says what others are
            swapped[data] = swapped[data].detach().requires_grad_()  # so that the output has a gradient
        recorded = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        if in_place(func):
            recorded[data] = recorded[data].clone()
        versions = {k: version(v) for k, v in recorded.items() if isinstance(v, Tensor)}
        positional = [swapped.pop(k) for k in rule.signature[: rule.positional]]
        output = call(func, tuple(positional), swapped)
        if output.requires_grad:
            output = own(output) if output._is_view() else output
            edge, names = get_gradient_edge(output), tuple(probed)
            self.uses.append(Use(rule, func, recorded, sources, names, data, edge, output.shape, versions, front))
        return output

    def _behind(self, tensor: Any) -> bool:
        """Whether the graph of a tensor leads through a recorded call of samples."""
        return isinstance(tensor, Tensor) and tensor.requires_grad and bool(self.samples.get(tensor))

    def copy(self, tensor: Tensor) -> Tensor:
        """An alias of a shared tensor in a call no rule knows: its gradient can be read if it has a row a sample."""
        source = self._source(tensor, views=False)
        alias = self._alias(source, tensor)
        leaf = self.aliases[-1][1]
        self.uses.append(Use(COPIES, COPIES.build, {}, {"value": source}, (), None, leaf, tensor.shape))
        return alias

    def _alias(self, source: Source, tensor: Tensor) -> Tensor:
        """What a call gets for a shared tensor; like it, and unlike a leaf, a derived one may be written to."""
        leaf = tensor.detach().requires_grad_()
        self.aliases.append((source, leaf))
        return leaf if source.name in self.view.parameters else own(leaf)

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

    def behind(self, source: Source) -> tuple[str, ...]:
        """Names of the parameters a source is made of."""
        return self.derived[int(source.name[1:])].leaves if source.name.startswith("~") else (source.name,)

    def _place(self, tensor: Tensor, table: tuple[str, Tensor] | None) -> int:
        """Where a derived tensor stands in the list; overwritten, it is another one."""
        key = id(tensor), version(tensor)
        if key not in self._places:
            leaves = self._leaves(tensor)
            parameters = tuple(self.view.parameters[name] for name in leaves)
            self.derived.append(Derived(own(tensor), leaves, parameters, table))
            self._alive.append(tensor)
            self._places[key] = len(self.derived) - 1
        return self._places[key]

    def reaches(self, tensor: Tensor) -> bool:
        """Whether a shared tensor depends on a parameter that is asked for."""
        return id(tensor) in self.names or (not tensor.is_leaf and bool(self._leaves(tensor)))

    def _leaves(self, tensor: Tensor) -> tuple[str, ...]:
        if (place := self._places.get((id(tensor), version(tensor)))) is not None:
            return self.derived[place].leaves
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


# attributes of a module that hold no tensor that it writes to: parameters, parts, hooks, flags
_ELSEWHERE = frozenset(vars(nn.Module())) - {"_buffers"}


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call returns, as ``PlainCalls`` would make it: that mode is left out while calls are recorded."""
    args, kwargs = plain_arguments(func, args, kwargs)
    return func(*args, **kwargs)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
