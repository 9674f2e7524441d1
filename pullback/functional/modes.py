"""Which modules answer differently in train and in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


def mode_dependent(model: nn.Module) -> str | None:
    """A module in train mode whose answer depends on that, as ``name (kind)``; None if there is none.

    Torch's own kinds are judged by their settings (a dropout of 0 has no mode), any other by whether its code or that
    of its hooks reads ``training``.
    """
    for name, module in model.named_modules():
        if module.training and _depends(module):
            kind = type(module).__name__
            return f"`{name}` ({kind})" if name else f"`{kind}`"
    return None


def _depends(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return bool(module.p > 0)
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, _NormBase):
        return module.running_mean is not None or module.running_var is not None
    if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):  # their dropouts are layers of their own
        return _reads_training(_hooks(module))
    return _reads_training([*_methods(type(module)), *_hooks(module)])


def calls_by_name(module: nn.Module, names: Iterable[str]) -> bool:
    """Whether the code of a module's class, or of its bases below those of torch, has one of these names in it."""
    codes = [
        getattr(getattr(function, "__wrapped__", function), "__code__", None)
        for base in type(module).__mro__
        if not base.__module__.startswith("torch.nn")
        for function in vars(base).values()
    ]
    return any(_names(code, name) for code in codes if code is not None for name in names)


def _methods(kind: type) -> Iterator[Any]:
    """Functions that a class and its bases below ``nn.Module`` define."""
    for base in kind.__mro__:
        if base is nn.Module:
            return
        yield from (getattr(value, "fget", value) for value in vars(base).values())


def _hooks(module: nn.Module) -> Iterator[Any]:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        yield hook
        yield from (value for base in type(hook).__mro__ for value in vars(base).values())
    if "forward" in vars(module):
        yield vars(module)["forward"]


def _reads_training(functions: Any) -> bool:
    codes = [getattr(getattr(f, "__wrapped__", f), "__code__", None) for f in functions]
    return any(_names(code, "training") for code in codes if code is not None)


def _names(code: CodeType, name: str) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return name in code.co_names or any(_names(each, name) for each in inner)
