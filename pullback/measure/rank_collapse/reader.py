"""A dispatch mode that sees attention in what a model computes, and changes nothing: it runs the calls as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pullback.measure.rank_collapse.calls import Call, Softmax, fused, native

FUSED = "_scaled_dot_product_"
NATIVE = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
SOFTMAX = ("_softmax", "_safe_softmax")
PRODUCTS = ("bmm", "mm")
KEPT_ROWS = ("_to_copy", "clone", "native_dropout", "mul", "div", "masked_fill", "where", "nan_to_num")
MOST = 4  # softmaxes that wait for their product


@dataclass
class _Waiting:
    """A softmax, and the tensors that hold its rows: by their memory, which cannot be another's while they are kept."""

    softmax: Softmax | None  # None along another axis than the last
    size: int
    held: list[Tensor] = field(default_factory=list)

    def has(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and any(_memory(tensor) == _memory(own) for own in self.held)


class Reader(TorchDispatchMode):
    """Active during a forward pass.

    Below autograd and above every kernel: all of torch's ways to attend are made of a fused call with queries, keys and
    values, or of a softmax along the last axis whose rows are multiplied with values. Torch's own fast paths stay on,
    as they would not with a mode for functions or with hooks on modules.

    Args:
        found: called with each attention.
        strange: called with what attends in a way of its own, in words.
        learned: memory of the parameters; a product with one of them mixes no tokens.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler, for seconds, to keep it away from this class; nothing compiled runs."""
        return False

    def __init__(self, found: Callable[[Call], None], strange: Callable[[str], None], learned: set[int]) -> None:
        super().__init__()
        self._found, self._strange, self._learned = found, strange, learned
        self._waiting: deque[_Waiting] = deque(maxlen=MOST)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._look(func, args, kwargs or {}, result)
        return result

    def forget(self) -> None:
        """Let go of softmaxes that were no attention."""
        self._waiting.clear()

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = _name(func)
        if name.startswith(FUSED):
            self._found(fused(_bound(func, args, kwargs)))
        elif name in NATIVE:
            self._found(native(_bound(func, args, kwargs)))
        elif name in SOFTMAX:
            self._softmax(_bound(func, args, kwargs), result)
        elif "attention" in name or "attn" in name:
            self._strange(f"`{name}`")
        elif self._waiting:
            self._follow(name, args, result)

    def _softmax(self, given: dict[str, Any], P: Tensor) -> None:
        scores = given["self"]
        if scores.dim() > 1 and not scores.is_nested:
            last = given["dim"] % scores.dim() == scores.dim() - 1
            self._waiting.append(_Waiting(Softmax.of(scores, P) if last else None, P.numel(), [P]))

    def _follow(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Rows on their way to a product with values."""
        if name in PRODUCTS:
            left, right = args[:2]
            for one in self._waiting:
                if one.has(left) or one.has(right):
                    V = right if one.has(left) else left.mT
                    if _memory(V) not in self._learned:
                        self._waiting.remove(one)
                        self._product(one.softmax, V)
                    return
        elif name in KEPT_ROWS:
            for one in self._waiting:
                if any(one.has(arg) for arg in args):
                    one.held += [t for t in tree_leaves(result) if _is_copy(t, one.size) and not one.has(t)]

    def _product(self, softmax: Softmax | None, V: Tensor) -> None:
        call = None if softmax is None else softmax.times(V)
        if call is not None:
            self._found(call)
        else:
            self._strange("a softmax along another axis" if softmax is None else "a softmax of other keys than values")


def _is_copy(tensor: Any, size: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() == size


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _name(func: Any) -> str:
    return func.overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else str(func.name())


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of its schema."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs
