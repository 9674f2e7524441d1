"""Gaussian expectations of an activation in one and two variables, each with a bound on its error.

Everything is an integral over z ~ N(0, 1), with density exp(-z^2 / 2) / sqrt(2 pi) (the seed's exp(-z^2) is not
one). Integrals are made of Gauss-Legendre panels that end at kinks and shrink towards them and towards the origin,
where an activation of a long input is steep. Pairs of correlated inputs go through the Hermite series of the
activation, whose tail is known exactly from Parseval's identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from pullback.theory.expectations.activations import Array, Function

REACH = 13.0  # the density beyond is below 1e-37
_NODES = 24  # of a panel
_TERMS = 192  # of a Hermite series, at most
_HERMITE_NODES = (12, 20), (48, 64)  # of the inner rule for smooth functions of strongly correlated inputs, and
_SMOOTH_ERROR = 1e-14  # the relative error up to which it is taken


@dataclass(frozen=True)
class Integral:
    """A value and a bound on its error (the difference to a coarser rule, or a series' exact tail)."""

    value: float
    error: float


@cache
def _legendre(count: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(count)


def _breaks(centres: tuple[float, ...], scale: float) -> Array:
    """Ends of panels in z for functions of u = scale z with centres in u."""
    ends = [np.linspace(-REACH, REACH, 21)]
    steps = 0.25 * 2.0 ** np.arange(8)
    ends += [(centre + np.concatenate([-steps, [0.0], steps])) / scale for centre in {0.0, *centres}]
    joined = np.unique(np.concatenate(ends))
    return joined[np.abs(joined) <= REACH]


def gauss_panels(breaks: Array, count: int = _NODES) -> tuple[Array, Array]:
    """Nodes z and weights that hold the density."""
    x, w = _legendre(count)
    half, middle = np.diff(breaks)[:, None] / 2, ((breaks[1:] + breaks[:-1]) / 2)[:, None]
    z = (middle + half * x).ravel()
    return z, (half * w).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Nodes:
    """A rule for E f(sqrt(q) z): the inputs u = sqrt(q) z, z and the weights; a coarser one for the error."""

    u: Array
    z: Array
    weights: Array
    coarse: tuple[Array, Array, Array]

    @classmethod
    def of(cls, q: float, kinks: tuple[float, ...] = (), more: Array | None = None) -> Nodes:
        """For inputs of variance ``q``, and functions with these kinks; ``more`` are further ends of panels in z."""
        scale = math.sqrt(q)
        breaks = _breaks(kinks, max(scale, 1e-150))
        if more is not None:
            breaks = np.unique(np.concatenate([breaks, more[np.abs(more) <= REACH]]))
        (z, w), (zc, wc) = gauss_panels(breaks), gauss_panels(breaks, _NODES // 2)
        return cls(scale * z, z, w, (scale * zc, zc, wc))

    def mean(self, function: Callable[[Array, Array], Array]) -> Integral:
        """E f(u, z)."""
        fine = float(self.weights @ function(self.u, self.z))
        u, z, w = self.coarse
        return Integral(fine, abs(fine - float(w @ function(u, z))) + 4 * np.finfo(float).eps * abs(fine))


def mean(function: Function, q: float, kinks: tuple[float, ...] = ()) -> Integral:
    """E f(sqrt(q) z)."""
    return Nodes.of(q, kinks).mean(lambda u, _: function(u))


@dataclass(frozen=True)
class Series:
    """Hermite series of f(sqrt(q) z): E f(u1) f(u2) = sum_k a_k^2 c^k for inputs of correlation c.

    Args:
        squares: a_k^2 by k.
        whole: E f^2, so that the tail is ``whole - squares.sum()``.
    """

    squares: Array
    whole: Integral

    @classmethod
    def of(cls, function: Function, q: float, kinks: tuple[float, ...] = ()) -> Series:
        """For inputs of variance ``q``. Terms are added until the tail is rounding, at most 192."""
        nodes = Nodes.of(q, kinks)
        values = nodes.weights * function(nodes.u)
        whole = nodes.mean(lambda u, _: function(u) ** 2)
        previous, current = np.zeros_like(nodes.z), np.ones_like(nodes.z)  # normalised Hermite polynomials
        squares, tail = [], whole.value
        for k in range(_TERMS):
            squares.append(float(values @ current) ** 2)
            tail -= squares[-1]
            if tail <= 1e-15 * whole.value:
                break
            previous, current = current, (nodes.z * current - math.sqrt(k) * previous) / math.sqrt(k + 1)
        return cls(np.array(squares), whole)

    @property
    def tail(self) -> float:
        """Sum of the squares left out."""
        return max(0.0, self.whole.value - float(self.squares.sum()))

    def at(self, c: float) -> Integral:
        """E f(u1) f(u2) at correlation ``c``; the error is at most the tail times c to its first power."""
        if c == 1:
            return self.whole
        powers = c ** np.arange(len(self.squares), dtype=np.float64)
        rest = self.tail * abs(c) ** len(self.squares)
        return Integral(float(self.squares @ powers), float(rest) + self.whole.error)


def pair_mean(f: Function, q1: float, q2: float, c: float, kinks: tuple[float, ...] = ()) -> Integral:
    """E f(u1) f(u2) for inputs of variances q1, q2 and correlation c, by two nested rules.

    Slower than a series, and exact up to c = 1, where a kinked function's series converges slowly.
    """
    s = math.sqrt(max(0.0, (1 - c) * (1 + c)))
    if s < 1e-12:
        sign = 1.0 if c > 0 else -1.0
        ratio = sign * math.sqrt(q2 / q1) if q1 > 0 else 0.0
        return mean(lambda u: f(u) * f(ratio * u), q1, tuple(sorted({*kinks, *(k / ratio for k in kinks if ratio)})))
    outer = Nodes.of(q1, kinks, _turns(q2, c, s, kinks))
    for counts in _HERMITE_NODES if not kinks else ():
        quick = _nested_smooth(f, outer, q2, c, s, counts)
        if quick.error <= _SMOOTH_ERROR * abs(quick.value):
            return quick
    fine = _nested(f, (outer.u, outer.z, outer.weights), q2, c, s, kinks, _NODES)
    coarse = _nested(f, outer.coarse, q2, c, s, kinks, _NODES // 2)
    return Integral(fine, abs(fine - coarse) + 1e-15 * abs(fine))


def _nested_smooth(f: Function, outer: Nodes, q: float, c: float, s: float, counts: tuple[int, int]) -> Integral:
    """The same with a Gauss-Hermite rule inside: exact where f hardly turns within sqrt(q) s, as next to c = 1."""
    values = []
    for count in counts:
        t, weights = np.polynomial.hermite_e.hermegauss(count)

        def both(u: Array, z: Array, t: Array = t, weights: Array = weights) -> Array:
            return f(u) * (f(math.sqrt(q) * np.add.outer(c * z, s * t)) @ weights) / math.sqrt(2 * math.pi)

        values.append(outer.mean(both))
    coarse, fine = values
    return Integral(fine.value, abs(fine.value - coarse.value) + fine.error)


def _turns(q: float, c: float, s: float, kinks: tuple[float, ...]) -> Array:
    """Ends of panels where E f(sqrt(q) (c z + s t)) over t turns: within s of every kink, however small s is."""
    if c == 0 or q == 0 or not kinks:
        return np.empty(0)
    steps = s * 2.0 ** np.arange(-2, 1 - math.log2(s))
    return np.add.outer(np.array(kinks) / (c * math.sqrt(q)), np.concatenate([-steps, [0.0], steps])).ravel()


def _nested(
    f: Function, outer: tuple[Array, Array, Array], q2: float, c: float, s: float, kinks: tuple[float, ...], count: int
) -> float:
    """Sum over z of w f(u) E_t f(sqrt(q2) (c z + s t)), the inner panels ending at the kinks of their own z."""
    u, z, w = outer
    root = math.sqrt(q2)
    base = np.linspace(-REACH, REACH, 21)
    steps = 0.25 * 2.0 ** np.arange(8)
    around = np.concatenate([k + np.concatenate([-steps, [0.0], steps]) for k in {0.0, *kinks}])
    moving = (around[None, :] / root - c * z[:, None]) / s
    ends = np.sort(np.clip(np.concatenate([np.broadcast_to(base, (len(z), len(base))), moving], 1), -REACH, REACH), 1)
    x, weights = _legendre(count)
    inner = np.zeros_like(z)
    for k in range(ends.shape[1] - 1):  # a panel of all outer nodes at a time keeps memory small
        half, middle = (ends[:, k + 1] - ends[:, k]) / 2, (ends[:, k + 1] + ends[:, k]) / 2
        if not half.any():
            continue
        t = middle[:, None] + half[:, None] * x
        density = np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        inner += half * ((f(root * (c * z[:, None] + s * t)) * density) @ weights)
    return float(w @ (f(u) * inner))
