"""Calls of torch whose backward pass is of no use here, in a form with the same values and gradients that is.

- Group norm on a CPU: asked for the gradients of scale and shift but not of the input, the backward pass of a
  ``channels_last`` one reads memory that is not there and ends the process. Its input is laid out plainly.
- Tables with ``sparse=True``: their gradients have a layout few operations know, and no second derivative. They are
  made dense; sparse ones are for optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily

_aten = torch.ops.aten
_GROUP_NORMS = {
    *(F.group_norm, torch.group_norm, torch.native_group_norm),
    *(_aten.group_norm, _aten.group_norm.default, _aten.native_group_norm, _aten.native_group_norm.default),
}
_SPARSE: dict[Callable[..., Any], int] = {
    F.embedding: 6,
    F.embedding_bag: 7,
}  # the place of `sparse` among the arguments
_SPARSE |= dict.fromkeys((torch.embedding, _aten.embedding, _aten.embedding.default), 4)
_SPARSE |= dict.fromkeys((torch.embedding_bag, _aten.embedding_bag, _aten.embedding_bag.default), 5)


class PlainCalls(TorchFunctionMode):
    """Active while a model, a loss or a function is evaluated whose derivatives are taken."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = plain_arguments(func, args, kwargs or {})
        return func(*args, **kwargs)


@contextmanager
def plain_calls() -> Iterator[None]:
    """``PlainCalls``, unless it is active already: a mode is asked about every call of torch, attributes included."""
    if any(isinstance(mode, PlainCalls) for mode in _get_current_function_mode_stack()):
        yield
    else:
        with PlainCalls():
            yield


@contextmanager
def own_calls() -> Iterator[None]:
    """For computations of this package's own between evaluations: ``PlainCalls`` is not asked about them."""
    active = _get_current_function_mode_stack()
    if active and isinstance(active[-1], PlainCalls):
        with _pop_mode_temporarily():
            yield
    else:
        yield


def plain_arguments(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call: of a group norm with the input contiguous, of a table without ``sparse``."""
    if func in _GROUP_NORMS:
        if args:
            return (_contiguous(args[0]), *args[1:]), kwargs
        return args, {k: _contiguous(v) if k == "input" else v for k, v in kwargs.items()}
    if (place := _SPARSE.get(func)) is not None:
        args = (*args[:place], False, *args[place + 1 :]) if len(args) > place else args
        return args, kwargs | {"sparse": False} if "sparse" in kwargs else kwargs
    return args, kwargs


def _contiguous(x: Any) -> Any:
    return x.contiguous() if isinstance(x, Tensor) and x.device.type == "cpu" else x
