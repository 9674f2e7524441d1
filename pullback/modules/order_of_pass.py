"""The order of calls of one forward pass, watched as they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pullback.functional.batch import Batch, copied, tensors
from pullback.functional.model_view import called
from pullback.modules.fan_in import is_linear_map
from pullback.modules.order import Flow, Order
from pullback.theory.expectations.calls import Activation


def order_of_pass(model: nn.Module, x: Batch, units: dict[str, Activation]) -> Order:
    """The order of one forward pass, in eval mode, on a copy of ``x``."""
    given = copied(x)
    watcher = Watcher(model, Order())
    for tensor in tensors(given):
        watcher.meet(tensor, watcher.order.start())
    with watcher.activations_as_calls(model, units), watcher:
        out = called(model, given)
    flows = [watcher.flow(leaf) for leaf in tensors(out)]
    watcher.order.end(flows)
    watcher.order.outputs = {call for flow in flows for call in flow.pending}
    return watcher.order


def weights_of(model: nn.Module) -> dict[int, frozenset[str | None]]:
    """Tensors a model holds -> the linear and convolutional layers whose weight it is or makes, else {None}."""
    holders: dict[int, frozenset[str | None]] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                holders[id(value)] = frozenset({None})
    for name, layer in model.named_modules():
        if is_linear_map(layer):
            for part, value in layer.named_parameters():
                if part != "bias" and not part.startswith("parametrizations.bias"):
                    holders[id(value)] = (holders[id(value)] - {None}) | {name}
    return holders


class Watcher(TorchFunctionMode):
    """Sees every call of torch, and keeps where the tensors come from."""

    def __init__(self, model: nn.Module, order: Order) -> None:
        super().__init__()
        self.order = order
        self._weights = weights_of(model)
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
    def activations_as_calls(self, model: nn.Module, units: dict[str, Activation]) -> Iterator[None]:
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
