"""The order of calls in a model: of one forward pass on an example, or of its code alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pullback._checks import input_error
from pullback.functional.batch import Batch, copied, tensors
from pullback.functional.model_view import called
from pullback.functional.undisturbed import undisturbed
from pullback.modules.composed_activations import of_module
from pullback.modules.fan_in import is_linear_map
from pullback.modules.order import Flow, Order
from pullback.theory.expectations.calls import MODULES, Activation

TRANSFORMERS = (
    nn.Transformer, nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)  # fmt: skip
HUGGING_FACE = ("transformers.modeling_utils", "PreTrainedModel")
NORMALISES = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.LocalResponseNorm


def order_of(model: nn.Module, x: Batch | None, where: str) -> Order:
    """The order of calls of a forward pass on ``x``, or without one as far as the code alone shows it.

    Nothing of the model changes. Without ``x`` a copy that shares its parameters is run on symbols by ``torch.fx``,
    which cannot follow code that decides by values or shapes; models of Hugging Face are given the smallest input that
    their configuration allows, and torch's transformers among other layers a few zeros.

    Raises:
        InputError: without ``x``, such a model.
    """
    with undisturbed(model, training=False), torch.no_grad():
        units = {name: found for name, m in model.named_modules() if (found := of_module(m)) is not None}
        if x is not None:
            return _of_pass(model, x, units)
        try:
            made = example_of(model)
            return _of_code(model, units) if made is None else _of_pass(model, made, units)
        except Exception as error:  # any code of a user's
            words = str(error).strip().split("\n")[0].rstrip(".") or "no message"
            got = f"{type(error).__name__} ({words})"
            raise input_error(
                where, "a model whose order of calls its code alone shows", got, "Pass an example of its inputs as x="
            ) from error


def example_of(model: nn.Module) -> Batch | None:
    """An input of a transformer of torch, or of a model of Hugging Face by its configuration; None of others."""
    if isinstance(model, TRANSFORMERS):
        return tuple(_sequences(model))
    if not any((kind.__module__, kind.__name__) == HUGGING_FACE for kind in type(model).__mro__):
        return None
    config: Any = model.config
    like = next(model.parameters())
    if getattr(model, "main_input_name", "") == "pixel_values":
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return {"pixel_values": torch.zeros(2, config.num_channels, *sides, dtype=like.dtype, device=like.device)}
    given: Any = model.dummy_inputs
    vocabulary = getattr(config, "vocab_size", None) or 2
    return {name: (value.to(like.device) % vocabulary) for name, value in given.items()}


def _weights_of(model: nn.Module) -> dict[int, frozenset[str | None]]:
    """Tensors a model holds -> the linear and convolutional layers whose weight it is or makes, else {None}."""
    found: dict[int, frozenset[str | None]] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                found[id(value)] = frozenset({None})
    for name, layer in model.named_modules():
        if is_linear_map(layer):
            for part, value in layer.named_parameters():
                if part != "bias" and not part.startswith("parametrizations.bias"):
                    found[id(value)] = (found[id(value)] - {None}) | {name}
    return found


def _of_pass(model: nn.Module, x: Batch, units: dict[str, Activation]) -> Order:
    """Of one forward pass, in eval mode, on a copy of ``x``."""
    given = copied(x)
    watcher = _Watcher(model, Order())
    for tensor in tensors(given):
        watcher.meet(tensor, watcher.order.start())
    with watcher.whole(model, units), watcher:
        out = called(model, given)
    flows = [watcher.flow(leaf) for leaf in tensors(out)]
    watcher.order.end(flows)
    watcher.order.outputs = {call for flow in flows for call in flow.pending}
    return watcher.order


class _Watcher(TorchFunctionMode):
    """Sees every call of torch, and keeps where the tensors come from."""

    def __init__(self, model: nn.Module, order: Order) -> None:
        super().__init__()
        self.order = order
        self._weights = _weights_of(model)
        self._layers = dict(model.named_modules())
        self._flows = WeakIdKeyDictionary()
        self._muted = 0

    def meet(self, tensor: Tensor, flow: Flow) -> None:
        """Take a tensor for what comes from there."""
        self._flows[tensor] = flow

    def flow(self, tensor: Tensor) -> Flow:
        """Where a tensor comes from."""
        if (known := self._flows.get(tensor)) is not None:
            assert isinstance(known, Flow)
            return known
        weights = self._weights.get(id(tensor))
        return Flow(unseen=tensor.is_floating_point()) if weights is None else Flow(weights=weights)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._muted:
            return func(*args, **kwargs)
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        flows, before = [self.flow(tensor) for tensor in operands], len(self.order.calls)
        shapes = [tuple(tensor.shape) for tensor, flow in zip(operands, flows, strict=True) if not flow.weights]
        result = func(*args, **kwargs)
        made = self.order.call(func, args, kwargs, flows)
        name = getattr(func, "__name__", "")
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._flows[leaf] = made
        if operands and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
            self._flows[operands[0]] = made
        for layer in self.order.calls[before:]:
            self._note(layer, shapes, result)
        return result

    def _note(self, layer: str, shapes: list[tuple[int, ...]], result: Any) -> None:
        """Sizes of the maps a convolution goes between."""
        module = self._layers[layer]
        if isinstance(module, nn.modules.conv._ConvNd) and isinstance(result, Tensor) and shapes:
            axes = len(module.kernel_size)
            self.order.sizes.setdefault(layer, []).append((shapes[0][-axes:], tuple(result.shape[-axes:])))

    @contextmanager
    def whole(self, model: nn.Module, units: dict[str, Activation]) -> Iterator[None]:
        """Take activations that are modules made of several calls as one call each."""
        hooks = []

        def enter(module: nn.Module, args: Any) -> None:
            self._muted += 1

        def leave(activation: Activation) -> Any:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                self._muted -= 1
                if not self._muted and args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                    self._flows[out] = self.order.activation(activation, self.flow(args[0]))

            return hook

        try:
            for name, activation in units.items():
                module = model.get_submodule(name)
                hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(activation))]
            yield
        finally:
            for hook in hooks:
                hook.remove()


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


def _of_code(model: nn.Module, units: dict[str, Activation]) -> Order:
    """Of the code, followed on symbols."""
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
    order, weights, flows = Order(), _weights_of(model), dict[torch.fx.Node, Flow]()
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


def _ran(model: nn.Module, module: nn.Module, seen: list[Flow], order: Order, units: dict[str, Activation]) -> Flow:
    """A transformer of torch, whose code decides by shapes: run on two zeros in the place of each of two sequences."""
    given = _sequences(module)
    watcher = _Watcher(model, order)
    for tensor, flow in zip(given, seen, strict=False):
        watcher.meet(tensor, flow)
    with watcher.whole(model, units), watcher:
        return watcher.flow(module(*given))


def _sequences(module: nn.Module) -> list[Tensor]:
    """One input of an encoder of torch, two of a decoder: sequences of two zeros."""
    attention = next(each for each in module.modules() if isinstance(each, nn.MultiheadAttention))
    like = next(module.parameters())
    inputs = 1 if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) else 2
    return [torch.zeros(2, 2, attention.embed_dim, dtype=like.dtype, device=like.device) for _ in range(inputs)]


def _module(
    module: nn.Module,
    name: str,
    seen: list[Flow],
    weights: dict[int, frozenset[str | None]],
    order: Order,
    units: dict[str, Activation],
) -> Flow:
    """A call of a module as a whole."""
    if name in units:
        return order.activation(units[name], seen[0])
    order.normalises |= isinstance(module, NORMALISES)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.Bilinear | nn.Embedding | nn.EmbeddingBag):
        return order.layer([], seen)
    held = frozenset[str | None]().union(*(weights[id(p)] for p in module.parameters()))
    if is_linear_map(module):
        return order.layer([name], seen)
    if isinstance(module, nn.MultiheadAttention):
        return order.attention([each for each in held if each is not None], seen)
    if isinstance(module, nn.GLU):
        return order.call(nn.functional.glu, (), {}, seen)
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin):
        return order.call(torch.softmax, (), {}, seen)
    return order.call(nn.functional.layer_norm if isinstance(module, NORMALISES) else len, (), {}, seen)


def _attribute(model: nn.Module, path: str) -> Any:
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name)
    return found
