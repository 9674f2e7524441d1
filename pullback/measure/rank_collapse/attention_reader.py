"""A dispatch mode that sees attention in what a model computes, and changes nothing: it runs the calls as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pullback.measure.rank_collapse.attention_weights import Masks, sums_to_one
from pullback.measure.rank_collapse.fused_attention import Call, fused, native, without_first_axis
from pullback.measure.rank_collapse.recognised_products import OTHER_AXIS, entry_by_entry, read
from pullback.measure.rank_collapse.traces import Traces, factors_of, is_outer, is_plain, plain

FUSED = "_scaled_dot_product_"
NATIVE = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
OWN = ("aten", "prims", "prim", "higher_order", "_c10d_functional", "c10d")  # namespaces of torch itself
CASTS = ("_to_copy", "clone")
COPIES = ("_to_copy", "clone", "native_dropout", "mul", "div", "masked_fill", "where", "nan_to_num")


class Reader(TorchDispatchMode):
    """Active during a forward pass.

    Below autograd and above every kernel: all ways to attend are made of a fused call with queries, keys and values, or
    of rows of weights that sum to one and are multiplied with values. Torch's own fast paths stay on, as they would not
    with a mode for functions or with hooks on modules.

    Args:
        found: called with each attention.
        strange: called with what mixes tokens in a way of its own, in words; or with the size of a square matrix, which
            does if that is the number of tokens.
        inputs: tensors the model is given.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler, for seconds, to keep it away from this class; nothing compiled runs."""
        return False

    def __init__(
        self, report: Callable[[Call], None], strange: Callable[[str | int], None], inputs: Iterable[Tensor]
    ) -> None:
        super().__init__()
        self._found, self._strange = report, strange
        self._traces, self._masks = Traces(inputs), Masks()
        self._fronted: tuple[FrameType, int] | None = (
            None  # the call that put an axis in front of three, while it lasts
        )
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is looked at: what runs is no part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = _name(func), kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        self._masks.look(name, args)
        source = self._source(name, args)
        result = func(*args, **kwargs)
        self._traces.note(name, args, kwargs, result)
        if source is not None:
            self._copied(name, source, result)
        inside = self._in_front(name, args, _place())
        if inside:
            self._traces.without_first_axis(result)
        if name.startswith(FUSED):
            given = _bound(func, args, kwargs)
            self._found(fused(without_first_axis(given) if inside else given))
        else:
            self._look(func, name, args, kwargs, result)
        return result

    def _in_front(self, name: str, args: tuple[Any, ...], place: tuple[FrameType, int]) -> bool:
        """Whether this is part of a call that made four axes of three.

        So torch attends from 2.15 on, and samples would pass for heads of one. What a model makes four axes of itself
        it does in another place of its program than where it attends.
        """
        if name == "unsqueeze" and args[1:] == (0,) and args[0].dim() == 3:
            self._fronted = place
        elif self._fronted is not None and (self._fronted[0] is not place[0] or self._fronted[1] != place[1]):
            self._fronted = None
        return self._fronted is not None

    def _look(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if name in NATIVE:
            self._found(native(_bound(func, args, kwargs)))
        elif "attention" in name or "attn" in name or self._is_own(func, args):
            self._strange(f"`{name}`")
        elif (factors := factors_of(name, args)) is not None:
            if all(map(is_plain, factors)):
                self._multiplied(*factors, result)
        elif name == "mul" and is_outer(*args[:2]) and all(map(self._traces.has_data, args[:2])):
            self._traces.keep(result, factors=args[:2])
        elif name == "sum" and len(args) > 1 and is_plain(args[0]):
            self._summed(args[0], args[1], result)

    def _multiplied(self, left: Tensor, right: Tensor, result: Tensor) -> bool:
        """A product of matrices; whether there is anything to say of it."""
        call = read(left, right, self._traces, self._masks)
        if isinstance(call, Call):
            self._found(call)
        elif call:
            self._strange(call)
        if call is not None and not isinstance(call, int):
            self._traces.mixed(result, again=call == OTHER_AXIS)
        return call is not None

    def _summed(self, product: Tensor, axes: Any, result: Tensor) -> None:
        """A sum along an axis, of a product entry by entry."""
        trace = self._traces.of(product)
        if trace is None or trace.factors is None or not isinstance(axes, list | tuple) or len(axes) != 1:
            return
        if trace.layout[0] == tuple(product.shape):
            for P, V in entry_by_entry(*trace.factors, axes[0]):
                if self._multiplied(P, V, result):
                    break
        trace.release()

    def _source(self, name: str, args: tuple[Any, ...]) -> Tensor | None:
        """Rows that sum to one among what an operation is about to copy, round or drop entries of."""
        if name.rstrip("_") in COPIES:
            for x in args:
                trace = self._traces.of(x) if is_plain(x) else None
                if trace is not None and not trace.given:
                    if (before := trace.before(x)) is not None:
                        return before
                    if sums_to_one(x):
                        return x.clone() if name.endswith("_") and x is args[0] else x
        return None

    def _copied(self, name: str, source: Tensor, result: Any) -> None:
        """Rows went on; those that sum to one again have been made anew."""
        for copy in plain(result):
            alike = copy.shape == source.shape and copy.is_floating_point()
            if alike and (name in CASTS or not sums_to_one(copy)):
                self._traces.keep(copy, source=source)

    def _is_own(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether an operation of another library is given queries, keys and values."""
        if getattr(func, "namespace", OWN[0]) in OWN:
            return False
        given = [x for x in plain(args) if x.dim() > 2 and x.is_floating_point() and self._traces.has_data(x)]
        if len(given) < 3:
            return False
        Q, K, V = given[:3]
        return Q.shape[-1] == K.shape[-1] and K.shape[:-1] == V.shape[:-1]


def _place() -> tuple[FrameType, int]:
    """The call that is made, and where it is in it, below the two calls of the mode's own.

    The frame itself and not its code: of a mode of functions every call has the same code and the same place in it.
    """
    frame = sys._getframe(2)
    return frame, frame.f_lasti


def _name(func: Any) -> str:
    return func.overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else str(func.name())


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of its schema."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs
