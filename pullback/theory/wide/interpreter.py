"""Calls of a network, one by one, as what they do to covariances: the interpreter behind ``limit_of``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from pullback._checks import PullbackError, input_error, unsupported
from pullback.theory.wide import convolution_settings as settings
from pullback.theory.wide.call_values import Held, Raw, Samples, Shape, Value, both, callable_of, function_name
from pullback.theory.wide.drawn_weights import Drawn
from pullback.theory.wide.functions import of_function, of_weights
from pullback.theory.wide.layers_on_signals import Units
from pullback.theory.wide.modules import GLOBAL, NORMS, POOLS, Modules
from pullback.theory.wide.positions import bordered, flattened, mean_of, pooled_by
from pullback.theory.wide.signals import NeedsPairsError, Signal
from pullback.theory.wide.tracing import Step

PRODUCTS = frozenset({"linear", "matmul", "mm", "mv", "conv1d", "conv2d", "conv3d"})


class Layers:
    """Runs the calls of a network on signals.

    Args:
        modules: of the network.
    """

    def __init__(self, modules: Modules) -> None:
        self._modules, self._where, self._refused = modules, modules.where, modules.refused

    def run(self, steps: Sequence[Step], inputs: Raw, *, pairs: bool) -> Signal:
        """The signal a network makes of inputs; ``pairs`` follows pairs of different pixels."""
        units = Units(self._modules, pairs=pairs)
        values: dict[torch.fx.Node, Value] = {}
        for step in steps:
            node = step.node
            if node.op == "placeholder":
                values[node] = inputs
                continue
            args = torch.fx.map_arg(node.args, lambda each: values[each])
            options = torch.fx.map_arg(node.kwargs, lambda each: values[each])
            if node.op == "output":
                return self._output(args[0])
            try:
                values[node] = self._call(units, step, list(args), dict(options))
            except (PullbackError, NeedsPairsError):
                raise
            except Exception as error:  # shapes that do not fit, as torch says it
                words = str(error).strip().split("\n")[0].rstrip(".")
                raise input_error(
                    self._where, f"inputs that `{step.name}` takes", f"{type(error).__name__} ({words})",
                    "Pass inputs as the network takes them",
                ) from error  # fmt: skip
        message = "a graph ends in its output"
        raise AssertionError(message)

    def _output(self, out: Value) -> Signal:
        expected = "one tensor made by layers with random weights, without positions"
        if not isinstance(out, Signal):
            got = "inputs" if isinstance(out, Raw) else type(out).__name__
            raise input_error(self._where, expected, got, "Pass a network of layers that returns one tensor")
        if out.pixels > 1 and not out.flat:
            raise input_error(self._where, expected, f"positions {out.size}", "Flatten them, or take their mean")
        if not out.gaussian:
            raise unsupported(
                self._where, "an output that a layer with random weights makes", "a function of such outputs",
                "Leave it out: the kernel of a non-linear output stays random at every width",
            )  # fmt: skip
        return out

    def _call(self, units: Units, step: Step, args: list[Value], options: dict[str, Value]) -> Value:
        node = step.node
        if node.op == "get_attr":
            assert step.tensor is not None  # symbols stand for tensors alone
            return (
                self._modules.drawn(step.tensor, None) if isinstance(step.tensor, nn.Parameter) else Held(step.tensor)
            )
        args, options = self._resolved(function_name(node), args, options)
        given = [
            each for each in (*args, *options.values()) if isinstance(each, Raw | Signal | Drawn | Shape | Samples)
        ]
        if step.module is not None:
            if isinstance(args[0], Raw) and not any(True for _ in step.module.parameters()):
                return both(step.module.double(), args, options)
            return self._module(units, step, args)
        name = function_name(node)
        if any(isinstance(each, Held) for each in args):
            found = both(
                callable_of(node), [Raw(a.tensor, a.tensor) if isinstance(a, Held) else a for a in args], options
            )
            return Held(found.left) if isinstance(found.left, Tensor) else found.left
        if given and all(isinstance(each, Raw) for each in given):
            return both(callable_of(node), args, options)
        if any(isinstance(each, Drawn) for each in given) and not any(isinstance(each, Signal | Raw) for each in given):
            return of_weights(units, step, name, args)
        return of_function(units, step, name, args, options)

    def _resolved(
        self, name: str, args: list[Value], options: dict[str, Value]
    ) -> tuple[list[Value], dict[str, Value]]:
        """Tensors that are no parameters: numbers beside inputs and each other, weights beside signals, in products."""
        every = [*args, *options.values()]
        signals = any(isinstance(each, Signal | Drawn) for each in every)
        numbers = not signals and name not in PRODUCTS

        def resolved(each: Value) -> Value:
            if not isinstance(each, Held):
                return each
            return (
                Raw(each.tensor.double(), each.tensor.double()) if numbers else self._modules.drawn(each.tensor, None)
            )

        if numbers and not any(isinstance(each, Raw) for each in every):  # a constant made of constants
            return args, options
        return [resolved(each) for each in args], {key: resolved(each) for key, each in options.items()}

    def _module(self, units: Units, step: Step, args: list[Value]) -> Value:
        module: Any = step.module
        x = args[0]
        if isinstance(module, nn.Linear):
            return units.dense(step, x, *self._modules.of_layer(module))
        if isinstance(module, nn.modules.conv._ConvNd):
            return units.convolution(step, x, *self._modules.of_layer(module), settings.of_convolution(module))
        if isinstance(module, NORMS):
            return units.normalised(step, x)
        if not isinstance(x, Signal):
            raise self._refused(step, f"{type(module).__name__} of {type(x).__name__}")
        if isinstance(module, POOLS):
            return pooled_by(self._refused, step, x, settings.of_pool(module))
        if isinstance(module, GLOBAL):
            if set(settings.several(module.output_size, len(x.size))) - {1, None}:
                raise self._refused(step, f"{type(module).__name__} to more than one position")
            return mean_of(self._refused, step, x, keep=True)
        if isinstance(module, nn.Flatten):
            return flattened(self._refused, step, x, module.start_dim, module.end_dim)
        if settings.is_padding(module):
            return bordered(self._refused, step, x, module.padding, settings.padding_mode(module))
        return x  # identities: dropout in eval mode
