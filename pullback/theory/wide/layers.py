"""Calls of a network, one by one, as what they do to covariances: the interpreter behind ``limit_of``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.fx
from torch import Tensor, nn

from pullback._checks import PullbackError, UnsupportedError, input_error, unsupported
from pullback.theory.activations import activation_of
from pullback.theory.calls import CALLS, Activation, name_of, of_call
from pullback.theory.wide import settings
from pullback.theory.wide.signals import (
    NeedsPairsError,
    Normalised,
    Signal,
    Weighted,
    activated,
    convolution,
    dense,
    moved,
    normalised,
    of_inputs,
    pooled,
    scaled,
    summed,
)
from pullback.theory.wide.tracing import Step
from pullback.theory.wide.weights import Drawn, Reader


@dataclass(frozen=True)
class Raw:
    """What is computed from the inputs before any layer: a number or tensor for each of the two sets."""

    left: Any
    right: Any


@dataclass(frozen=True)
class Held:
    """A tensor that is no parameter: a constant before the first layer, fixed weights behind it."""

    tensor: Tensor


@dataclass(frozen=True)
class Samples:
    """A number of samples, as code asks for it to reshape by."""


@dataclass(frozen=True)
class Shape:
    """The shape of a signal; only its number of samples is asked for."""


Value = Any  # Raw, Signal, Drawn, Samples, Shape, or a plain constant
SAME = frozenset({"contiguous", "clone", "to", "float", "double", "detach", "dropout", "identity", "alpha_dropout",
                  "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "squeeze"})  # fmt: skip
DROPOUT = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
POOLS = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
GLOBAL = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d
NORMS = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm
PRODUCTS = frozenset({"linear", "matmul", "mm", "mv", "conv1d", "conv2d", "conv3d"})
REMEDY = "See limit_of for the layers that have one"


class Layers:
    """Runs the calls of a network on signals.

    Args:
        reader: of the weights.
        where: the caller, for error messages.
    """

    def __init__(self, reader: Reader, where: str) -> None:
        self._reader, self._where = reader, where
        self._kept: dict[str, Drawn] = {}
        self._gains: dict[str, Normalised] = {}
        self._pairs, self._used = False, set[str]()

    def described(self, steps: Sequence[Step]) -> list[tuple[str, str]]:
        """(name, what it is) of every layer; refuses those that are known to have no limit, and reads all weights."""
        found = []
        for step in steps:
            if isinstance(step.tensor, nn.Parameter):
                drawn = self._drawn(step.tensor, None)
                words = f"weights {drawn.shape}, standard deviation {math.sqrt(drawn.variance):.4g}"
                found.append((step.name, words))
            elif step.module is not None:
                found.append((step.name, self._module_words(step)))
            elif step.node.op.startswith("call") and _function_name(step.node) in CALLS:
                found.append((step.name, _function_name(step.node)))
        return found

    def _module_words(self, step: Step) -> str:
        module, kind = step.module, type(step.module).__name__
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not isinstance(
            module, nn.modules.conv._ConvTransposeNd
        ):
            if getattr(module, "parametrizations", None):
                raise self._refused(step, f"{kind} whose weights are made of other parameters")
            weight, bias = self._of_layer(module)
            if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and weight.shape[1] == 1:
                raise self._refused(step, f"{kind} with a single channel in a group")
            fan_in = math.prod(weight.shape[1:])
            own = "" if bias is None else f", sigma_b = {math.sqrt(bias.variance):.4g}"
            return f"{kind}, {len(module.weight)} units, sigma_w = {math.sqrt(weight.variance * fan_in):.4g}{own}"
        if isinstance(module, NORMS):
            self._normalisation(step)
            return kind
        if isinstance(module, DROPOUT):
            if module.training and module.p > 0:
                raise unsupported(
                    self._where, "a model in eval mode", f"{kind} `{step.name}` in train mode", "Call model.eval()"
                )
            return kind
        if isinstance(module, POOLS | GLOBAL | nn.Flatten | nn.Identity) or settings.is_padding(module):
            return kind
        raise self._refused(step, kind)

    def _refused(self, step: Step, what: str) -> UnsupportedError:
        name = f" `{step.name}`" if step.name else ""
        return unsupported(self._where, "layers with a limit of infinite width", f"{what}{name}", REMEDY)

    def _drawn(self, tensor: Tensor, fan_in: int | None) -> Drawn:
        if not isinstance(tensor, nn.Parameter):
            return self._reader.drawn(tensor)
        key = f"{id(tensor)}"
        if key not in self._kept:
            self._kept[key] = self._reader.drawn(tensor, fan_in)
        return self._kept[key]

    def _of_layer(self, module: Any) -> tuple[Drawn, Drawn | None]:
        fan_in = math.prod(module.weight.shape[1:])
        return self._drawn(module.weight, fan_in), None if module.bias is None else self._drawn(module.bias, fan_in)

    def _normalisation(self, step: Step) -> Normalised:
        if step.name not in self._gains:
            module: Any = step.module
            gain, own = self._reader.gains(module.weight)
            bias = getattr(module, "bias", None)
            shift = None if bias is None else self._drawn(bias, None)
            eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
            self._gains[step.name] = Normalised(
                isinstance(module, nn.GroupNorm), not isinstance(module, nn.RMSNorm), eps, gain,
                0.0 if shift is None else shift.variance, own, 0.0 if shift is None else float(shift.trained),
            )  # fmt: skip
        return self._gains[step.name]

    def run(self, steps: Sequence[Step], inputs: Raw, *, pairs: bool) -> Signal:
        """The signal a network makes of inputs; ``pairs`` follows pairs of different pixels."""
        self._pairs, self._used = pairs, set()
        values: dict[torch.fx.Node, Value] = {}
        for step in steps:
            node = step.node
            if node.op == "placeholder":
                if values and any(isinstance(each, Raw) for each in values.values()):
                    if node.args:
                        values[node] = node.args[0]
                        continue
                    raise self._refused(step, f"a second input {node.name}")
                values[node] = inputs
                continue
            args = torch.fx.map_arg(node.args, lambda each: values[each])
            options = torch.fx.map_arg(node.kwargs, lambda each: values[each])
            if node.op == "output":
                return self._output(args[0])
            try:
                values[node] = self._call(step, list(args), dict(options))
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

    def _call(self, step: Step, args: list[Value], options: dict[str, Value]) -> Value:
        node = step.node
        if node.op == "get_attr":
            if step.tensor is None:
                raise self._refused(step, "an attribute that is no tensor")
            return self._drawn(step.tensor, None) if isinstance(step.tensor, nn.Parameter) else Held(step.tensor)
        args, options = self._resolved(_function_name(node), args, options)
        given = [
            each for each in (*args, *options.values()) if isinstance(each, Raw | Signal | Drawn | Shape | Samples)
        ]
        if step.module is not None:
            if isinstance(args[0], Raw) and not any(True for _ in step.module.parameters()):
                return _both(step.module.double(), args, options)
            return self._module(step, args)
        name = _function_name(node)
        if any(isinstance(each, Held) for each in args):
            found = _both(
                _callable(node), [Raw(a.tensor, a.tensor) if isinstance(a, Held) else a for a in args], options
            )
            return Held(found.left) if isinstance(found.left, Tensor) else found.left
        if given and all(isinstance(each, Raw) for each in given):
            return _both(_callable(node), args, options)
        if any(isinstance(each, Drawn) for each in given) and not any(isinstance(each, Signal | Raw) for each in given):
            return self._of_weights(step, name, args)
        return self._function(step, name, args, options)

    def _resolved(
        self, name: str, args: list[Value], options: dict[str, Value]
    ) -> tuple[list[Value], dict[str, Value]]:
        """Tensors that are no parameters: numbers beside inputs and each other, weights beside signals, in products."""
        every = [*args, *options.values()]
        signals = any(isinstance(each, Signal | Drawn) for each in every)
        numbers = not signals and name not in PRODUCTS

        def seen(each: Value) -> Value:
            if not isinstance(each, Held):
                return each
            return Raw(each.tensor.double(), each.tensor.double()) if numbers else self._drawn(each.tensor, None)

        if numbers and not any(isinstance(each, Raw) for each in every):  # a constant made of constants
            return args, options
        return [seen(each) for each in args], {key: seen(each) for key, each in options.items()}

    def _module(self, step: Step, args: list[Value]) -> Value:
        module: Any = step.module
        x = args[0]
        if isinstance(module, nn.Linear):
            return self._dense(step, x, *self._of_layer(module))
        if isinstance(module, nn.modules.conv._ConvNd):
            return self._convolution(step, x, *self._of_layer(module), settings.of_convolution(module))
        if isinstance(module, NORMS):
            return self._normalised(step, x)
        if not isinstance(x, Signal):
            raise self._refused(step, f"{type(module).__name__} of {type(x).__name__}")
        if isinstance(module, POOLS):
            return self._pooled(step, x, settings.of_pool(module))
        if isinstance(module, GLOBAL):
            if set(settings.several(module.output_size, len(x.size))) - {1, None}:
                raise self._refused(step, f"{type(module).__name__} to more than one position")
            return self._mean(step, x, keep=True)
        if isinstance(module, nn.Flatten):
            return self._flattened(step, x, module.start_dim, module.end_dim)
        if settings.is_padding(module):
            return self._padded(step, x, module.padding, settings.padding_mode(module))
        return x  # identities: dropout in eval mode

    # Layers with weights

    def _once(self, step: Step, drawn: Drawn) -> None:
        """Weights met twice make layers that are not independent."""
        if drawn.name in self._used:
            raise self._refused(step, f"weights `{drawn.name}` used twice, by")
        self._used.add(drawn.name)

    def _signal(self, x: Value, *, channels_last: bool) -> Signal:
        """Inputs as a signal, once a layer needs them so."""
        if isinstance(x, Signal):
            return x
        left, right = (np.asarray(each, dtype=np.float64) for each in (x.left, x.right))
        return of_inputs(left, right, channels_last=channels_last, pairs=self._pairs)

    def _weighted(self, step: Step, weight: Drawn, bias: Drawn | None, units: float) -> Weighted:
        for each in (weight, *([] if bias is None else [bias])):
            self._once(step, each)
        shift, own = (0.0, 0.0) if bias is None else (bias.spread, bias.own)
        return Weighted(weight.spread * units, shift, weight.own * units, own, weight.name)

    def _dense(self, step: Step, x: Value, weight: Drawn, bias: Drawn | None) -> Signal:
        s = self._signal(x, channels_last=True)
        if s.size and not s.channels_last and not s.flat and s.pixels > 1:
            raise self._refused(step, "a linear layer over an axis of positions,")
        units = weight.shape[-1] if not weight.transposed else weight.shape[0]
        return dense(s, self._weighted(step, weight, bias, units / (s.pixels if s.flat else 1)))

    def _convolution(
        self, step: Step, x: Value, weight: Drawn, bias: Drawn | None, how: settings.Convolution
    ) -> Signal:
        axes = len(weight.shape) - 2
        if isinstance(x, Raw) and (x.left.dim() != axes + 2 or how.groups > 1):
            got = "groups of input channels" if how.groups > 1 else f"inputs {tuple(x.left.shape)}"
            raise self._refused(step, f"a convolution over {axes} axes with {got},")
        s = self._signal(x, channels_last=False)
        if len(s.size) != axes or s.channels_last or s.flat:
            raise self._refused(step, "a convolution of what has no such positions,")
        places, size = how.places(s.size, weight.shape[2:])
        return convolution(s, self._weighted(step, weight, bias, weight.shape[1]), places, size)

    def _normalised(self, step: Step, x: Value) -> Signal:
        module, how = step.module, self._normalisation(step)
        shape = getattr(module, "normalized_shape", None)
        s = self._signal(x, channels_last=shape is not None and len(shape) == 1)
        axes = len(s.size) + 1
        if s.flat and s.pixels > 1:
            raise self._refused(step, f"{type(module).__name__} of flattened positions,")
        if shape is not None and len(shape) not in ((1, axes) if s.channels_last or axes == 1 else (axes,)):
            raise self._refused(step, f"{type(module).__name__} over some of the positions,")
        return normalised(s, replace(how, whole=how.whole or (shape is not None and len(shape) == axes)))

    # Pixels

    def _pooled(self, step: Step, s: Signal, how: settings.Pool) -> Signal:
        if s.channels_last or s.flat or not s.size:
            raise self._refused(step, "pooling of what has no positions,")
        matrix, size = how.matrix(s.size)
        if not self._pairs:
            raise NeedsPairsError
        return pooled(s, matrix, size)

    def _mean(self, step: Step, s: Signal, *, keep: bool, total: bool = False) -> Signal:
        if s.flat or not s.size:
            raise self._refused(step, "a mean over units,")
        matrix = np.full((1, s.pixels), 1.0 if total else 1 / s.pixels)
        return pooled(s, matrix, (1,) * len(s.size) if keep else ())

    def _flattened(self, step: Step, s: Signal, start: int, end: int) -> Signal:
        axes = 2 + len(s.size) if not s.flat else 2
        if start % axes != 1 or end % axes != axes - 1:
            raise self._refused(step, f"flattening of axes {start} to {end},")
        return replace(s, flat=s.flat or bool(s.size))

    def _padded(self, step: Step, s: Signal, widths: Sequence[int], mode: str) -> Signal:
        if s.channels_last or s.flat or len(widths) > 2 * len(s.size):
            raise self._refused(step, "padding of what has no positions,")
        places, size = settings.border(s.size, widths, mode)
        return moved(s, places, size)

    # Functions

    def _of_weights(self, step: Step, name: str, args: list[Value]) -> Value:
        """What is made of weights and numbers alone."""
        first, *rest = args
        number = rest[0] if rest else None
        if not isinstance(first, Drawn):
            first, number = number, first
        if name in ("mul", "truediv", "div") and isinstance(number, int | float) and isinstance(first, Drawn):
            if name != "mul" and first is not args[0]:
                raise self._refused(step, "a number divided by weights,")
            return first.times(float(number) if name == "mul" else 1 / number)
        if name in ("t", "transpose", "getattr") and isinstance(first, Drawn) and len(first.shape) == 2:
            if name == "getattr" and number not in ("T", "mT"):
                raise self._refused(step, f"`{number}` of weights,")
            return first.turned()
        raise self._refused(step, f"{name} of weights,")

    def _function(self, step: Step, name: str, args: list[Value], options: dict[str, Value]) -> Value:
        x = args[0] if args else None
        if name in ("add", "iadd", "sub", "isub") and len(args) == 2:
            return self._summed(step, args[0], args[1], 1.0 if name.endswith("add") else -1.0)
        if name in ("mul", "imul", "truediv", "div", "itruediv", "neg") and not isinstance(x, Samples | Shape):
            return self._scaled(step, name, args)
        if name == "linear":
            bias = args[2] if len(args) > 2 else options.get("bias")
            return self._dense(step, x, self._weights(step, args[1]), self._weights(step, bias, none=True))
        if name in ("matmul", "mm", "mv"):
            weight = self._weights(step, args[1])
            return self._dense(step, x, weight.turned() if len(weight.shape) == 2 else weight, None)
        if name in ("conv1d", "conv2d", "conv3d"):
            how, weight, bias = settings.of_call(*args[1:], **options)
            return self._convolution(step, x, self._weights(step, weight), self._weights(step, bias, none=True), how)
        if name == "getattr" and args[1] == "shape":
            return Shape()
        if name in ("size", "len") and (len(args) == 1 or args[1] == 0):
            return Samples() if len(args) > 1 or name == "len" else Shape()
        if name == "getitem" and isinstance(x, Shape) and args[1] == 0:
            return Samples()
        if isinstance(x, Signal):
            return self._of_signal(step, name, x, args[1:], options)
        raise self._refused(step, f"{name},")

    def _of_signal(self, step: Step, name: str, s: Signal, rest: list[Value], options: dict[str, Value]) -> Value:
        if name in CALLS:
            return self._activated(step, of_call(name, _callable(step.node), rest, options), s)
        if name in ("mean", "sum"):
            dims = rest[0] if rest else options.get("dim")
            dims = [dims] if isinstance(dims, int) else list(dims or ())
            axes = 2 + len(s.size)
            positions = range(1, axes - 1) if s.channels_last else range(2, axes)
            if s.flat or sorted(d % axes for d in dims) != list(positions) or not s.size:
                raise self._refused(step, f"{name} over axes {dims},")
            keep = bool(options.get("keepdim") or (len(rest) > 1 and rest[1]))
            return self._mean(step, s, keep=keep, total=name == "sum")
        if name == "flatten":
            given = {"start_dim": 0, "end_dim": -1} | options | dict(zip(("start_dim", "end_dim"), rest, strict=False))
            return self._flattened(step, s, given["start_dim"], given["end_dim"])
        if name in ("view", "reshape"):
            shape = list(rest[0]) if rest and isinstance(rest[0], tuple | list | torch.Size) else rest
            if len(shape) != 2 or not (isinstance(shape[0], Samples) or shape[0] == -1):
                raise self._refused(step, f"{name} to other than (N, -1),")
            return replace(s, flat=s.flat or bool(s.size))
        if name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
            return self._pooled(step, s, settings.of_pool_call(len(s.size), *rest, **options))
        if name.startswith("adaptive_avg_pool"):
            size = rest[0] if rest else options["output_size"]
            if set(settings.several(size, len(s.size))) != {1}:
                raise self._refused(step, f"{name} to more than one position,")
            return self._mean(step, s, keep=True)
        if name == "pad":
            mode = str(rest[1] if len(rest) > 1 else options.get("mode", "constant"))
            filling = rest[2] if len(rest) > 2 else options.get("value")
            if mode == "constant" and filling:
                raise self._refused(step, f"padding with {filling},")
            return self._padded(step, s, rest[0] if rest else options["pad"], settings.MODES.get(mode, mode))
        if name in SAME:
            training = options.get("training", rest[1] if len(rest) > 1 else False)
            if "dropout" in name and training:
                raise unsupported(self._where, "dropout in eval mode", f"`{step.name}`", "Call model.eval()")
            if name == "squeeze" and s.pixels > 1:
                raise self._refused(step, "squeeze of positions,")
            return s
        raise self._refused(step, f"{name},")

    def _weights(self, step: Step, value: Value, *, none: bool = False) -> Any:
        if (none and value is None) or isinstance(value, Drawn):
            return value
        raise self._refused(step, "a product with what are no weights,")

    def _activated(self, step: Step, activation: Activation, s: Signal) -> Signal:
        if not s.gaussian:
            what = f"{name_of(activation)} of units that are not Gaussian (no linear layer before it),"
            raise self._refused(step, what)
        return activated(s, activation_of(activation, self._where))

    def _summed(self, step: Step, a: Value, b: Value, sign: float) -> Value:
        if not any(isinstance(each, Signal) for each in (a, b)):
            raise self._refused(step, "a sum of inputs and weights,")
        if isinstance(b, Drawn) and isinstance(a, Signal):  # a bias of one's own
            if len(b.shape) > 1 and math.prod(b.shape) != b.shape[0]:
                raise self._refused(step, f"a sum with weights {b.shape},")
            self._once(step, b)
            side = [replace(each, covariance=each.covariance + b.spread) for each in (a.left, a.right)]
            return replace(a, nngp=a.nngp + b.spread, ntk=a.ntk + b.own, left=side[0], right=side[1])
        last = next(each.channels_last for each in (a, b) if isinstance(each, Signal))
        one, other = (
            self._signal(each, channels_last=last) if isinstance(each, Raw | Signal) else None for each in (a, b)
        )
        if one is None or other is None:
            raise self._refused(step, "a sum of units and a number,")
        if one.size != other.size or one.flat != other.flat or one.nngp.shape != other.nngp.shape:
            raise self._refused(step, f"a sum of positions {one.size} and {other.size},")
        if one.origins & other.origins or not (one.origins or other.origins):
            shared = ", ".join(sorted(one.origins & other.origins))
            raise self._refused(step, f"a sum of branches that share the units of `{shared}`,")
        return summed(one, other, sign)

    def _scaled(self, step: Step, name: str, args: list[Value]) -> Value:
        factors = [each for each in args if isinstance(each, int | float)]
        if name == "neg":
            return scaled(args[0], -1.0)
        signals = [each for each in args if isinstance(each, Signal)]
        if len(signals) != 1 or len(factors) != 1 or (name.endswith("div") and not isinstance(args[0], Signal)):
            raise self._refused(step, f"{name} of several signals or weights,")
        return scaled(signals[0], 1 / factors[0] if name.endswith("div") else float(factors[0]))


def _both(function: Callable[..., Any], args: list[Value], options: dict[str, Value]) -> Raw:
    """A call on inputs alone, on both sets."""
    found = []
    with torch.no_grad():
        for side in ("left", "right"):
            given = [getattr(each, side) if isinstance(each, Raw) else each for each in args]
            named = {key: getattr(each, side) if isinstance(each, Raw) else each for key, each in options.items()}
            found.append(function(*given, **named))
    return Raw(*found)


def _callable(node: torch.fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        return getattr(Tensor, str(node.target))
    assert callable(node.target)
    return node.target


def _function_name(node: torch.fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    return str(getattr(node.target, "__name__", "")).strip("_")
