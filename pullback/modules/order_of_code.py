"""The order of calls of a model whose code is followed on symbols, without an example."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from pullback.modules.example_inputs import TRANSFORMERS, sequences
from pullback.modules.fan_in import is_linear_map
from pullback.modules.order import Flow, Order
from pullback.modules.order_of_pass import Watcher, weights_of
from pullback.theory.expectations.calls import MODULES, Activation

NORMALISES = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.LocalResponseNorm


class _Tracer(torch.fx.Tracer):
    """Follows the code into everything but layers, activations taken as a whole, and other modules of torch."""

    def __init__(self, units: dict[str, Activation]) -> None:
        super().__init__()
        self.units = units

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_linear_map(m) or module_qualified_name in self.units:
            return True
        if isinstance(m, MODULES) or not type(m).__module__.startswith("torch.nn"):
            return False
        return isinstance(m, (nn.MultiheadAttention, *TRANSFORMERS)) or not any(True for _ in m.children())


def order_of_code(model: nn.Module, units: dict[str, Activation]) -> Order:
    """The order of the code, followed on symbols."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    shared |= {id(v): v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)}
    own = copy.deepcopy(model, shared).eval()
    for module in own.modules():  # the user's hooks are not to meet symbols
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    if is_linear_map(own) or "" in units:  # nothing around it to follow
        own = nn.Sequential(own)
        units = {"0": units[""]} if units else units
    nodes = list(_Tracer(units).trace(own, _defaults(own)).nodes)
    return _walk(own, nodes, units)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Arguments of the forward pass that have a plain default: it is taken, so that code may decide by it."""
    parameters = inspect.signature(model.forward).parameters
    plain_kinds = (bool, int, float, str, type(None))
    return {name: each.default for name, each in parameters.items() if isinstance(each.default, plain_kinds)}


def _walk(model: nn.Module, nodes: list[torch.fx.Node], units: dict[str, Activation]) -> Order:
    """Go along the calls that were recorded."""
    order, weights, flows = Order(), weights_of(model), dict[torch.fx.Node, Flow]()
    held: dict[torch.fx.Node, Any] = {}
    for node in nodes:
        args, options = torch.fx.map_arg((node.args, node.kwargs), lambda each: held.get(each, each))
        seen = [flows[each] for each in node.all_input_nodes]
        if node.op == "placeholder":
            made = order.start()
        elif node.op == "get_attr":
            held[node] = _attribute(model, str(node.target))
            made = Flow(weights=weights.get(id(held[node]), frozenset({None})))
        elif node.op == "output":
            order.end(seen)
            order.outputs = {call for flow in seen for call in flow.pending}
            break
        elif node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if isinstance(module, TRANSFORMERS):
                named = (node.kwargs[name] for name in ("src", "tgt", "memory") if name in node.kwargs)
                sequences = [each for each in (*node.args, *named) if isinstance(each, torch.fx.Node)]
                made = _ran(model, module, [flows[each] for each in sequences], order, units)  # one may be there twice
            else:
                made = _module(module, str(node.target), seen, weights, order, units)
        else:
            method = node.op == "call_method"
            function = getattr(Tensor, str(node.target), None) if method else node.target
            made = order.call(function or len, args, options, seen)  # type: ignore[arg-type]
            if method and str(node.target).endswith("_") and node.all_input_nodes:
                flows[node.all_input_nodes[0]] = made
        flows[node] = made
    return order


def _ran(model: nn.Module, module: nn.Module, flows: list[Flow], order: Order, units: dict[str, Activation]) -> Flow:
    """A transformer of torch, whose code decides by shapes: run on two zeros in the place of each of two sequences."""
    given = sequences(module)
    watcher = Watcher(model, order)
    for tensor, flow in zip(given, flows, strict=False):
        watcher.meet(tensor, flow)
    with watcher.activations_as_calls(model, units), watcher:
        return watcher.flow(module(*given))


def _module(
    module: nn.Module,
    name: str,
    flows: list[Flow],
    weights: dict[int, frozenset[str | None]],
    order: Order,
    units: dict[str, Activation],
) -> Flow:
    """A call of a module as a whole."""
    if name in units:
        return order.activation(units[name], flows[0])
    order.normalises |= isinstance(module, NORMALISES)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.Bilinear | nn.Embedding | nn.EmbeddingBag):
        return order.layer([], flows)
    held = frozenset[str | None]().union(*(weights[id(p)] for p in module.parameters()))
    if is_linear_map(module):
        return order.layer([name], flows)
    if isinstance(module, nn.MultiheadAttention):
        return order.attention([each for each in held if each is not None], flows)
    if isinstance(module, nn.GLU):
        return order.call(nn.functional.glu, (), {}, flows)
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin):
        return order.call(torch.softmax, (), {}, flows)
    return order.call(nn.functional.layer_norm if isinstance(module, NORMALISES) else len, (), {}, flows)


def _attribute(model: nn.Module, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return value
