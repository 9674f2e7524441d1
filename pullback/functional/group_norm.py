"""Group norm with a backward pass that is safe on a CPU whatever the memory format.

Asked for the gradients of scale and shift but not of the input, torch's backward pass of a ``channels_last`` group norm
on a CPU reads memory that is not there and ends the process. Calls here ask for just that (rows of one layer, weights
whose gradients are not formed), so the input is laid out plainly before the call. Values and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_GROUP_NORMS = {
    *(F.group_norm, torch.group_norm, torch.native_group_norm),
    *(torch.ops.aten.group_norm, torch.ops.aten.group_norm.default),
    *(torch.ops.aten.native_group_norm, torch.ops.aten.native_group_norm.default),
}


class PlainGroupNorm(TorchFunctionMode):
    """Active while a model is evaluated: inputs of group norms on a CPU are made contiguous."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = plain_group_norm(func, args, kwargs or {})
        return func(*args, **kwargs)


def plain_group_norm(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call; those of a group norm on a CPU with the input contiguous."""
    if func not in _GROUP_NORMS:
        return args, kwargs
    if args:
        return (_contiguous(args[0]), *args[1:]), kwargs
    return args, {k: _contiguous(v) if k == "input" else v for k, v in kwargs.items()}


def _contiguous(x: Any) -> Any:
    return x.contiguous() if isinstance(x, Tensor) and x.device.type == "cpu" else x
