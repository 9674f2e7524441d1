"""Layers of a followed network on signals: weights and norms, activations and sums; what has no limit is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pullback._checks import input_error
from pullback.theory.expectations.activations import Array, activation_of
from pullback.theory.expectations.calls import Activation, name_of
from pullback.theory.wide import convolution_settings as settings
from pullback.theory.wide.call_values import Raw, Value
from pullback.theory.wide.drawn_weights import Drawn
from pullback.theory.wide.modules import Modules
from pullback.theory.wide.nonlinear import activated, normalised
from pullback.theory.wide.pixels import patches
from pullback.theory.wide.signals import Signal, Weighted, convolution, dense, of_inputs, scaled, summed
from pullback.theory.wide.tracing import Step
from pullback.theory.wide.uniform_units import units_of


class Units:
    """One run through a network.

    Args:
        modules: of the network.
        pairs: follow pairs of different pixels.
    """

    def __init__(self, modules: Modules, *, pairs: bool) -> None:
        self.where, self.refused, self._modules = modules.where, modules.refused, modules
        self.pairs, self._used = pairs, set[str]()

    def _once(self, step: Step, drawn: Drawn) -> None:
        """Weights met twice make layers that are not independent."""
        if drawn.name in self._used:
            raise self.refused(step, f"weights `{drawn.name}` used twice, by")
        self._used.add(drawn.name)

    def signal(self, x: Value, *, channels_last: bool) -> Signal:
        """Inputs as a signal, once a layer needs them so."""
        if isinstance(x, Signal):
            return x
        left, right = (np.asarray(each, dtype=np.float64) for each in (x.left, x.right))
        return of_inputs(left, right, channels_last=channels_last, pairs=self.pairs)

    def _fits(self, step: Step, x: Value, axis: int, units: int) -> None:
        """Inputs are fixed numbers, of which a layer takes so many."""
        if isinstance(x, Raw) and x.left.shape[axis] != units:
            raise input_error(
                self.where, f"inputs with {units} units for `{step.name}`", f"{x.left.shape[axis]}",
                "Pass inputs as the network takes them",
            )  # fmt: skip

    def _weighted(self, step: Step, weight: Drawn, bias: Drawn | None, units: float) -> Weighted:
        for each in (weight, *([] if bias is None else [bias])):
            self._once(step, each)
        shift, own = (0.0, 0.0) if bias is None else (bias.spread, bias.own)
        return Weighted(weight.spread * units, shift, weight.own * units, own, weight.name)

    def dense(self, step: Step, x: Value, weight: Drawn, bias: Drawn | None) -> Signal:
        """A product with weights."""
        units = weight.shape[-1] if not weight.transposed else weight.shape[0]
        self._fits(step, x, -1, units)
        s = self.signal(x, channels_last=True)
        if s.size and not s.channels_last and not s.flat and s.pixels > 1:
            raise self.refused(step, "a linear layer over an axis of positions,")
        out = dense(s, self._weighted(step, weight, bias, units / (s.pixels if s.flat else 1)))
        return self._with_units(x, out, weight, bias, lambda side: side.reshape(len(side), -1, units))

    def convolution(self, step: Step, x: Value, weight: Drawn, bias: Drawn | None, how: settings.Convolution) -> Signal:
        """A convolution."""
        axes = len(weight.shape) - 2
        if isinstance(x, Raw) and (x.left.dim() != axes + 2 or how.groups > 1):
            got = "groups of input channels" if how.groups > 1 else f"inputs {tuple(x.left.shape)}"
            raise self.refused(step, f"a convolution over {axes} axes with {got},")
        self._fits(step, x, 1, weight.shape[1])
        s = self.signal(x, channels_last=False)
        if len(s.size) != axes or s.channels_last or s.flat:
            raise self.refused(step, "a convolution of what has no such positions,")
        places, size = how.places(s.size, weight.shape[2:])
        out = convolution(s, self._weighted(step, weight, bias, weight.shape[1]), places, size)
        return self._with_units(x, out, weight, bias, lambda side: patches(side, places))

    def _with_units(
        self, x: Value, out: Signal, weight: Drawn, bias: Drawn | None, met: Callable[[Array], Array]
    ) -> Signal:
        """What a layer makes of inputs themselves, with its units where they are not Gaussian; ``met``: (N, P, K)."""
        if not isinstance(x, Raw) or not weight.uniform:
            return out
        left, right = (met(np.asarray(each, dtype=np.float64)) for each in (x.left, x.right))
        return replace(out, units=units_of(out.nngp, left, right, weight.spread, 0.0 if bias is None else bias.spread))

    def normalised(self, step: Step, x: Value) -> Signal:
        """A layer, group or RMS norm."""
        module, how = step.module, self._modules.normalisation(step)
        shape = getattr(module, "normalized_shape", None)
        s = self.signal(x, channels_last=shape is not None and len(shape) == 1)
        axes = len(s.size) + 1
        if s.flat and s.pixels > 1:
            raise self.refused(step, f"{type(module).__name__} of flattened positions,")
        if shape is not None and len(shape) not in ((1, axes) if s.channels_last or axes == 1 else (axes,)):
            raise self.refused(step, f"{type(module).__name__} over some of the positions,")
        return normalised(s, replace(how, whole=how.whole or (shape is not None and len(shape) == axes)))

    def activated(self, step: Step, activation: Activation, s: Signal) -> Signal:
        """An elementwise function of Gaussian units."""
        if not s.gaussian:
            what = f"{name_of(activation)} of units that are not Gaussian (no linear layer before it),"
            raise self.refused(step, what)
        return activated(s, activation_of(activation, self.where))

    def summed(self, step: Step, a: Value, b: Value, sign: float) -> Value:
        """A sum or difference of signals, or of a signal and weights."""
        if not any(isinstance(each, Signal) for each in (a, b)):
            raise self.refused(step, "a sum of inputs and weights,")
        if isinstance(b, Drawn) and isinstance(a, Signal):  # a bias of one's own
            if len(b.shape) > 1 and math.prod(b.shape) != b.shape[0]:
                raise self.refused(step, f"a sum with weights {b.shape},")
            self._once(step, b)
            side = [replace(each, covariance=each.covariance + b.spread) for each in (a.left, a.right)]
            return replace(a, nngp=a.nngp + b.spread, ntk=a.ntk + b.own, left=side[0], right=side[1])
        last = next(each.channels_last for each in (a, b) if isinstance(each, Signal))
        one, other = (
            self.signal(each, channels_last=last) if isinstance(each, Raw | Signal) else None for each in (a, b)
        )
        if one is None or other is None:
            raise self.refused(step, "a sum of units and a number,")
        if one.size != other.size or one.flat != other.flat or one.nngp.shape != other.nngp.shape:
            raise self.refused(step, f"a sum of positions {one.size} and {other.size},")
        if one.origins & other.origins or not (one.origins or other.origins):
            shared = ", ".join(sorted(one.origins & other.origins))
            raise self.refused(step, f"a sum of branches that share the units of `{shared}`,")
        return summed(one, other, sign)

    def scaled(self, step: Step, name: str, args: list[Value]) -> Value:
        """A product with a number."""
        factors = [each for each in args if isinstance(each, int | float)]
        if name == "neg":
            return scaled(args[0], -1.0)
        signals = [each for each in args if isinstance(each, Signal)]
        if len(signals) != 1 or len(factors) != 1 or (name.endswith("div") and not isinstance(args[0], Signal)):
            raise self.refused(step, f"{name} of several signals or weights,")
        return scaled(signals[0], 1 / factors[0] if name.endswith("div") else float(factors[0]))
