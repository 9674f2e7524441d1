"""Calls of functions in a followed network: what each does to signals, weights and numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pullback._checks import unsupported
from pullback.theory.expectations.calls import CALLS, of_call
from pullback.theory.wide import convolution_settings as settings
from pullback.theory.wide.call_values import Samples, Shape, Value, callable_of
from pullback.theory.wide.drawn_weights import Drawn
from pullback.theory.wide.layers_on_signals import Units
from pullback.theory.wide.positions import bordered, flattened, mean_of, pooled_by
from pullback.theory.wide.signals import Signal
from pullback.theory.wide.tracing import Step

SAME = frozenset({"contiguous", "clone", "to", "float", "double", "detach", "dropout", "identity", "alpha_dropout",
                  "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "squeeze"})  # fmt: skip


def of_weights(units: Units, step: Step, name: str, args: list[Value]) -> Value:
    """What is made of weights and numbers alone."""
    first, *rest = args
    number = rest[0] if rest else None
    if not isinstance(first, Drawn):
        first, number = number, first
    if name in ("mul", "truediv", "div") and isinstance(number, int | float) and isinstance(first, Drawn):
        if name != "mul" and first is not args[0]:
            raise units.refused(step, "a number divided by weights,")
        return first.times(float(number) if name == "mul" else 1 / number)
    if name in ("t", "transpose", "getattr") and isinstance(first, Drawn) and len(first.shape) == 2:
        if name == "getattr" and number not in ("T", "mT"):
            raise units.refused(step, f"`{number}` of weights,")
        return first.turned()
    raise units.refused(step, f"{name} of weights,")


def of_function(units: Units, step: Step, name: str, args: list[Value], options: dict[str, Value]) -> Value:
    """What a call of a function or method makes of signals."""
    x = args[0] if args else None
    if name in ("add", "iadd", "sub", "isub") and len(args) == 2:
        return units.summed(step, args[0], args[1], 1.0 if name.endswith("add") else -1.0)
    if name in ("mul", "imul", "truediv", "div", "itruediv", "neg") and not isinstance(x, Samples | Shape):
        return units.scaled(step, name, args)
    if name == "linear":
        bias = args[2] if len(args) > 2 else options.get("bias")
        return units.dense(step, x, _weights(units, step, args[1]), _weights(units, step, bias, none=True))
    if name in ("matmul", "mm", "mv"):
        weight = _weights(units, step, args[1])
        return units.dense(step, x, weight.turned() if len(weight.shape) == 2 else weight, None)
    if name in ("conv1d", "conv2d", "conv3d"):
        how, weight, bias = settings.of_call(*args[1:], **options)
        return units.convolution(step, x, _weights(units, step, weight), _weights(units, step, bias, none=True), how)
    if name == "getattr" and args[1] == "shape":
        return Shape()
    if name in ("size", "len") and (len(args) == 1 or args[1] == 0):
        return Samples() if len(args) > 1 or name == "len" else Shape()
    if name == "getitem" and isinstance(x, Shape) and args[1] == 0:
        return Samples()
    if isinstance(x, Signal):
        return _of_signal(units, step, name, x, args[1:], options)
    raise units.refused(step, f"{name},")


def _of_signal(units: Units, step: Step, name: str, s: Signal, rest: list[Value], options: dict[str, Value]) -> Value:
    if name in CALLS:
        if any(isinstance(each, Drawn) for each in (*rest, *options.values())):
            raise units.refused(step, f"{name} with weights of its own,")
        return units.activated(step, of_call(name, callable_of(step.node), rest, options), s)
    if name in ("mean", "sum"):
        dims = rest[0] if rest else options.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or ())
        axes = 2 + len(s.size)
        positions = range(1, axes - 1) if s.channels_last else range(2, axes)
        if s.flat or sorted(d % axes for d in dims) != list(positions) or not s.size:
            raise units.refused(step, f"{name} over axes {dims},")
        keep = bool(options.get("keepdim") or (len(rest) > 1 and rest[1]))
        return mean_of(units.refused, step, s, keep=keep, total=name == "sum")
    if name == "flatten":
        given = {"start_dim": 0, "end_dim": -1} | options | dict(zip(("start_dim", "end_dim"), rest, strict=False))
        return flattened(units.refused, step, s, given["start_dim"], given["end_dim"])
    if name in ("view", "reshape"):
        shape = list(rest[0]) if rest and isinstance(rest[0], tuple | list | torch.Size) else rest
        if len(shape) != 2 or not (isinstance(shape[0], Samples) or shape[0] == -1):
            raise units.refused(step, f"{name} to other than (N, -1),")
        return replace(s, flat=s.flat or bool(s.size))
    if name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        return pooled_by(units.refused, step, s, settings.of_pool_call(len(s.size), *rest, **options))
    if name.startswith("adaptive_avg_pool"):
        size = rest[0] if rest else options["output_size"]
        if set(settings.several(size, len(s.size))) != {1}:
            raise units.refused(step, f"{name} to more than one position,")
        return mean_of(units.refused, step, s, keep=True)
    if name == "pad":
        mode = str(rest[1] if len(rest) > 1 else options.get("mode", "constant"))
        filling = rest[2] if len(rest) > 2 else options.get("value")
        if mode == "constant" and filling:
            raise units.refused(step, f"padding with {filling},")
        return bordered(units.refused, step, s, rest[0] if rest else options["pad"], settings.MODES.get(mode, mode))
    if name in SAME:
        training = options.get("training", rest[1] if len(rest) > 1 else False)
        if "dropout" in name and training:
            raise unsupported(units.where, "dropout in eval mode", f"`{step.name}`", "Call model.eval()")
        if name == "squeeze" and s.pixels > 1:
            raise units.refused(step, "squeeze of positions,")
        return s
    raise units.refused(step, f"{name},")


def _weights(units: Units, step: Step, value: Value, *, none: bool = False) -> Any:
    if (none and value is None) or isinstance(value, Drawn):
        return value
    raise units.refused(step, "a product with what are no weights,")
