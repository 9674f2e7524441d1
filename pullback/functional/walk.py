"""Walks over a module's parts: a monitor makes many, and torch's own take several times as long."""

from __future__ import annotations

from torch import nn


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
