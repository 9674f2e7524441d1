"""Activation functions as the theory needs them: values, two derivatives, and where they have kinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pullback._checks import check_option, input_error

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_SCAN = 40.0  # kinks of a user's activation are looked for between -40 and 40
_GRID = 8001


@dataclass(frozen=True)
class Activation:
    """An elementwise function.

    Attributes:
        name: as users name it.
        value: phi, elementwise on float64 arrays.
        slope: phi', taken as zero or one side's value on a kink.
        bend: phi'' away from kinks.
        kinks: where phi' jumps, ascending; integrals are split there.
        homogeneous: phi(s u) = s phi(u) for s > 0: lengths then only scale, and every integral has a closed form in q.
    """

    name: str
    value: Function
    slope: Function
    bend: Function
    kinks: tuple[float, ...] = ()
    homogeneous: bool = False

    @property
    def smooth(self) -> bool:
        """Whether phi' has no jumps."""
        return not self.kinks


def activation_of(activation: str | Callable[..., object] | Activation, where: str) -> Activation:
    """An activation by name, or a user's elementwise torch function, differentiated by autograd.

    Raises:
        InputError: an unknown name; a function that is not elementwise, or not finite.
    """
    if isinstance(activation, Activation):
        return activation
    if callable(activation):
        return _from_torch(activation, where)
    check_option(where, "activation", activation, tuple(BUILT_IN))
    return BUILT_IN[activation]


def _zero(u: Array) -> Array:
    return np.zeros_like(u)


def _normal(u: Array) -> Array:
    """Density of the standard normal."""
    return np.exp(-u * u / 2) / math.sqrt(2 * math.pi)


def _tanh_bend(u: Array) -> Array:
    t = np.tanh(u)
    return -2 * t * (1 - t * t)


def _silu_slope(u: Array) -> Array:
    s = special.expit(u)
    return s * (1 + u * (1 - s))


def _silu_bend(u: Array) -> Array:
    s = special.expit(u)
    return s * (1 - s) * (2 + u * (1 - 2 * s))


def _leaky(leak: float) -> Activation:
    return Activation(
        "leaky_relu",
        lambda u: np.where(u > 0, u, leak * u),
        lambda u: np.where(u > 0, 1.0, leak),
        _zero,
        (0.0,),
        homogeneous=True,
    )


LEAK = 0.01  # slope of the negative side of "leaky_relu", as in torch

BUILT_IN: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("tanh", np.tanh, lambda u: 1 - np.tanh(u) ** 2, _tanh_bend),
        Activation(
            "erf",
            special.erf,
            lambda u: 2 / math.sqrt(math.pi) * np.exp(-u * u),
            lambda u: -4 / math.sqrt(math.pi) * u * np.exp(-u * u),
        ),
        Activation(
            "relu",
            lambda u: np.maximum(u, 0.0),
            lambda u: (u > 0).astype(np.float64),
            _zero,
            (0.0,),
            homogeneous=True,
        ),
        _leaky(LEAK),
        Activation(
            "hard_tanh",
            lambda u: np.clip(u, -1.0, 1.0),
            lambda u: (np.abs(u) < 1).astype(np.float64),
            _zero,
            (-1.0, 1.0),
        ),
        Activation(
            "gelu",
            lambda u: u * special.ndtr(u),
            lambda u: special.ndtr(u) + u * _normal(u),
            lambda u: (2 - u * u) * _normal(u),
        ),
        Activation("silu", lambda u: u * special.expit(u), _silu_slope, _silu_bend),
        Activation("sin", np.sin, np.cos, lambda u: -np.sin(u)),
        Activation("linear", lambda u: u * 1.0, np.ones_like, _zero, homogeneous=True),
    )
}


def _from_torch(function: Callable[..., object], where: str) -> Activation:
    """A user's activation by autograd in float64, its kinks found by a scan of its slope."""
    import torch
    from torch import Tensor

    def derivative(u: Array, order: int) -> Array:
        x = torch.from_numpy(np.atleast_1d(np.asarray(u, dtype=np.float64)).copy()).requires_grad_()
        with torch.enable_grad():
            y = function(x.clone())  # a copy, as some activations work in place
            if not isinstance(y, Tensor) or y.shape != x.shape:
                got = f"shape {tuple(y.shape)} for {tuple(x.shape)}" if isinstance(y, Tensor) else type(y).__name__
                raise input_error(where, "an elementwise activation", got, "Pass a function of one tensor")
            for _ in range(order):
                if not y.requires_grad:
                    return np.zeros_like(u)
                (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        whole = y.detach() + torch.zeros_like(x)  # autograd may answer with a tensor of zeros that has no memory
        return whole.numpy().reshape(np.shape(u))

    name = getattr(function, "__name__", type(function).__name__)
    at = np.linspace(-_SCAN, _SCAN, _GRID)
    values = derivative(at, 0)
    if not np.isfinite(values).all():
        bad = at[~np.isfinite(values)][0]
        raise input_error(where, "a finite activation", f"{name}({bad:g}) not finite", "Pass a function of all reals")
    kinks = _kinks(lambda u: derivative(u, 1), lambda u: derivative(u, 2), at)
    return Activation(name, lambda u: derivative(u, 0), lambda u: derivative(u, 1), lambda u: derivative(u, 2), kinks)


def _kinks(slope: Function, bend: Function, at: Array) -> tuple[float, ...]:
    """Where the slope jumps: it changes between grid points by far more than its own derivative explains."""
    s, b = slope(at), bend(at)
    step = at[1] - at[0]
    change = np.abs(np.diff(s))
    explained = step * (np.abs(b[1:]) + np.abs(b[:-1]))
    suspects = np.flatnonzero(change > 4 * explained + 1e-3 * max(1.0, np.abs(s).max()) * step)
    kinks: list[float] = []
    for k in suspects:
        low, high = at[k], at[k + 1]
        jump = s[k + 1] - s[k]
        for _ in range(60):  # halve towards the side on which the slope changes
            middle = (low + high) / 2
            left = slope(np.array([low, middle]))
            low, high = (low, middle) if abs(left[1] - left[0]) > abs(jump) / 2 else (middle, high)
        aside = 1e-12 * max(
            1.0, abs(high)
        )  # on the kink itself a slope is either side's, in torch 2.6 by the array's length
        ends = slope(np.array([low - aside, high + aside]))
        if abs(ends[1] - ends[0]) > abs(jump) / 2 and not (kinks and abs(kinks[-1] - high) < 1e-9):
            kinks.append(0.0 if abs(high) < 1e-12 else float(high))
    return tuple(kinks)
