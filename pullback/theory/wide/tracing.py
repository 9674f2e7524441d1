"""The calls of a network in their order, by ``torch.fx`` on symbols; the network itself is only read."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.theory.expectations.calls import MODULES


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        node: of the graph.
        name: of the module whose code made the call, as the model names it; of the call itself outside of any.
        module: the module that is called; None for functions and tensors.
        tensor: a parameter or buffer; None for calls.
    """

    node: torch.fx.Node
    name: str
    module: nn.Module | None = None
    tensor: Tensor | None = None


class _Tracer(torch.fx.Tracer):
    """Follows the code into containers, activations and modules that are not torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*MODULES, nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        return type(m).__module__.startswith("torch.nn") or bool(getattr(m, "parametrizations", None))


def steps_of(model: nn.Module, where: str) -> list[Step]:
    """The calls of a model in eval mode, its own parameters in them.

    Raises:
        InputError: code that decides by values or shapes.
    """
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    root = nn.Sequential(copy.deepcopy(model, shared))
    for module in root.modules():  # the user's hooks are not to meet symbols
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        nodes = list(_Tracer().trace(root).nodes)
    except Exception as error:  # any code of a user's
        words = str(error).strip().split("\n")[0].rstrip(".") or "no message"
        expected = "a model whose calls its code alone shows"
        got = f"{type(error).__name__} ({words})"
        raise input_error(
            where, expected, got, "Write its forward pass without decisions by shapes or values"
        ) from error
    return [_step(root, node) for node in nodes]


def _step(root: nn.Module, node: torch.fx.Node) -> Step:
    target = str(node.target)
    if node.op == "call_module":
        return Step(node, _shown(target), module=root.get_submodule(target))
    stack = list(node.meta.get("nn_module_stack", {}))
    name = _shown(str(stack[-1])) if stack else ""
    if node.op == "get_attr":
        found: Any = root
        for part in target.split("."):
            found = getattr(found, part)
        return Step(node, _shown(target), tensor=found if isinstance(found, Tensor) else None)
    return Step(node, name or node.name)


def _shown(path: str) -> str:
    """A name as the model has it, which stands in a container of one."""
    return path.partition(".")[2]
