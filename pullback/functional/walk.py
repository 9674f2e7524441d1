"""Walks over a module's parts: a monitor makes many, and torch's own take several times as long."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The module and all below it, each once, in the order of ``module.modules()``."""
    parts: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        part = waiting.pop()
        if part is not None and part not in parts:
            parts[part] = None
            if children := part._modules:
                waiting.extend(reversed(children.values()))
    return list(parts)


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Every parameter, each once, in the order of ``module.parameters()``."""
    parameters: dict[int, nn.Parameter] = {}
    for part in parts_of(module):
        if own := part._parameters:
            parameters.update((id(p), p) for p in own.values() if p is not None)
    return list(parameters.values())


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Every parameter and then every buffer, each once, as ``[*module.parameters(), *module.buffers()]``."""
    buffers: dict[int, Tensor] = {}
    for part in parts_of(module):
        if own := part._buffers:
            buffers.update((id(b), b) for b in own.values() if b is not None)
    return [*parameters_of(module), *buffers.values()]


def types_of(module: nn.Module) -> set[type]:
    """The types of all parameters and buffers; that of None where one is not there."""
    held: list[Mapping[str, Tensor | None]] = []
    for part in parts_of(module):
        held += part._parameters, part._buffers
    return {type(tensor) for own in held for tensor in own.values()}


def every_parameter_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, also under its further names, in the order of ``named_parameters(remove_duplicate=False)``."""
    parameters: dict[str, nn.Parameter] = {}
    waiting = [("", module)]
    while waiting:
        prefix, part = waiting.pop()
        if own := part._parameters:
            parameters.update((prefix + name, p) for name, p in own.items() if p is not None)
        if below := part._modules:
            waiting += [(f"{prefix}{n}.", child) for n, child in reversed(below.items()) if child is not None]
    return parameters


def named_parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, each under its first name, as ``dict(module.named_parameters())``."""
    first: dict[int, str] = {}
    named = every_parameter_of(module)
    return {name: p for name, p in named.items() if first.setdefault(id(p), name) == name}
