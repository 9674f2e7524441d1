"""Batches that come again: from the second call in a row on, graphs of the first are used."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pullback._checks import PullbackError
from pullback.functional.linear_map import LinearMap
from pullback.functional.stand_in import stand_in

Weights = dict[str, Tensor]


class Repeated:
    """Keeps the ``LinearMap`` of a call that came twice in a row; copies begin anew."""

    def __init__(self) -> None:
        self._stamp: Stamp | None = None
        self._map: LinearMap | None = None
        self._tried = False

    def __reduce__(self) -> Any:
        return Repeated, ()

    def map_of(
        self,
        model: nn.Module,
        call: Any,
        base: Weights,
        outputs: Callable[[Weights], Tensor],
        with_slope: Callable[[Weights], tuple[Tensor, Tensor]],
    ) -> LinearMap | None:
        """The map of this call; None the first time, and where there is none that the other way confirms.

        Args:
            model: what is called.
            call: its arguments.
            base: the parameters it is linear around.
            outputs: of the call, at given parameters.
            with_slope: outputs at ``base``, and their derivative along a change, the other way.
        """
        if not plain_call(model, call):
            self._stamp = self._map = None
            return None
        now = Stamp(call, [*base.values(), *model.buffers()])
        if not now.same_as(self._stamp):
            self._stamp, self._map, self._tried = now, None, False
        elif not self._tried:
            self._tried = True
            self._map = _confirmed(model, base, outputs, with_slope)
        return self._map


def _confirmed(
    model: nn.Module,
    base: Weights,
    outputs: Callable[[Weights], Tensor],
    with_slope: Callable[[Weights], tuple[Tensor, Tensor]],
) -> LinearMap | None:
    """A map that gives what the other way does; a graph that reads weights later (checkpointing) meets NaN."""
    try:
        with stand_in(model, {name: torch.full_like(start, math.nan) for name, start in base.items()}):
            linear = LinearMap(outputs, base)
            with torch.no_grad():
                same = linear.agrees(lambda v: with_slope(dict(zip(base, v, strict=True))))
    except (RuntimeError, PullbackError):  # an operation with no second derivative, or that hides it
        return None
    return linear if same else None


class Stamp:
    """What a kept graph depends on: tensors of a call, by what they are and hold, and buffers by what they hold.

    Sums notice writes that no version counts (NumPy, ``.data``).
    """

    def __init__(self, call: Any, held: Sequence[Tensor]) -> None:
        leaves = tree_leaves(call)
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._own = [weakref.ref(leaf) for leaf in given]
        self._rest = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        self._numbers = [
            (t.data_ptr(), t._version, t.shape, t.dtype, float(t.detach().sum(dtype=torch.float64)))
            for t in (*given, *held)
        ]

    def same_as(self, other: Stamp | None) -> bool:
        """Whether both are of the same call."""
        if other is None or self._numbers != other._numbers or len(self._rest) != len(other._rest):
            return False
        pairs = zip(self._own, other._own, strict=True)
        rest = zip(self._rest, other._rest, strict=True)
        return all(a() is not None and a() is b() for a, b in pairs) and all(_same(a, b) for a, b in rest)


def _same(a: Any, b: Any) -> bool:
    plain = a is None or isinstance(a, bool | int | float | str)
    return a is b or (plain and type(a) is type(b) and a == b)


def plain_call(model: nn.Module, call: Any) -> bool:
    """Whether nothing but the numbers matters to a call: no hooks, transformations, autocast or inference mode."""
    tensors = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    return not (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or any(torch.is_autocast_enabled(kind) for kind in {t.device.type for t in tensors})
        or any(t.requires_grad or t.is_inference() or t.is_sparse or t.device.type == "meta" for t in tensors)
        or any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
        or bool(nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks)
    )
