"""Walks over a module's parts: a monitor makes many, and torch's own take several times as long."""

from __future__ import annotations

from torch import nn


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The module and all below it, each once, in the order of ``module.modules()``."""
    parts: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if part not in parts:
            parts[part] = None
            waiting += [child for child in reversed(part._modules.values()) if child is not None]
    return list(parts)


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Every parameter, each once, in the order of ``module.parameters()``."""
    held = (p for part in parts_of(module) for p in part._parameters.values() if p is not None)
    return list({id(p): p for p in held}.values())


def every_parameter_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, also under its further names, in the order of ``named_parameters(remove_duplicate=False)``."""
    parameters: dict[str, nn.Parameter] = {}
    waiting = [("", module)]
    while waiting:
        prefix, part = waiting.pop()
        parameters.update((prefix + name, p) for name, p in part._parameters.items() if p is not None)
        children = [(f"{prefix}{name}.", child) for name, child in part._modules.items() if child is not None]
        waiting += reversed(children)
    return parameters
