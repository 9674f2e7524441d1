"""Piecewise linear activations: expectations over pairs of Gaussians in closed form, for whole arrays.

With phi(u) = offset + slope u + sum_i jump_i (u - kink_i)_+, everything follows from P(X > h, Y > k) and
E (X - h)_+ (Y - k)_+ of standard normals of correlation c. The first is made of Owen's T (Owen 1956), the second of the
first and of normal densities (Rosenbaum 1961).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, owens_t

from pullback.theory.expectations.activations import Activation, Array

_SCAN = np.linspace(-40.0, 40.0, 4001)  # as far as kinks of a user's activation are looked for
_TINY = 1e-150  # stands for a standard deviation of zero; its inverse squared is still a number


@dataclass(frozen=True)
class Pieces:
    """phi(u) = offset + slope u + sum_i jumps_i (u - kinks_i)_+."""

    offset: float
    slope: float
    kinks: tuple[float, ...]
    jumps: tuple[float, ...]

    def value(self, u: Array) -> Array:
        """phi(u)."""
        ramps = sum(jump * np.maximum(u - kink, 0) for kink, jump in zip(self.kinks, self.jumps, strict=True))
        return self.offset + self.slope * u + ramps


@lru_cache(maxsize=32)
def pieces_of(phi: Activation) -> Pieces | None:
    """The pieces of an activation, or None if it is not continuous and piecewise linear."""
    if not phi.kinks or np.any(phi.bend(_SCAN)):
        return None
    kinks = np.array(phi.kinks)
    inside = np.concatenate([[kinks[0] - 1], (kinks[1:] + kinks[:-1]) / 2, [kinks[-1] + 1]])
    slopes = phi.slope(inside)
    offset = float(phi.value(inside[:1])[0] - slopes[0] * inside[0])
    pieces = Pieces(offset, float(slopes[0]), phi.kinks, tuple(np.diff(slopes).tolist()))
    return pieces if np.allclose(pieces.value(_SCAN), phi.value(_SCAN), rtol=1e-13, atol=1e-13) else None


def pair_moments(pieces: Pieces, left: Array, right: Array, c: Array) -> tuple[Array, Array]:
    """E phi(u) phi(v) and E phi'(u) phi'(v) for inputs of variances ``left``, ``right`` and correlation ``c``.

    The three arrays broadcast against each other. Rounding grows with the variances where phi is bounded, as large
    terms then cancel: about 1e-16 times a variance.
    """
    s, t = np.maximum(np.sqrt(left), _TINY), np.maximum(np.sqrt(right), _TINY)
    a, b = pieces.offset, pieces.slope
    values, slopes = a * a + b * b * c * s * t, b * b + 0 * c * s * t
    for kink, jump in _jumps(pieces):
        for own, other in ((s, t), (t, s)):
            h = kink / own
            values = values + jump * own * (a * _ramp(h) + b * c * other * ndtr(-h))
            slopes = slopes + jump * b * ndtr(-h)
        for second, other_jump in _jumps(pieces):
            both, ramps = _tails(kink / s, second / t, c)
            values = values + jump * other_jump * s * t * ramps
            slopes = slopes + jump * other_jump * both
    return values, slopes


def _jumps(pieces: Pieces) -> Iterator[tuple[float, float]]:
    return zip(pieces.kinks, pieces.jumps, strict=True)


def _density(h: Array) -> Array:
    return np.exp(-h * h / 2) / math.sqrt(2 * math.pi)


def _ramp(h: Array) -> Array:
    """E (X - h)_+ of a standard normal."""
    return _density(h) - h * ndtr(-h)


def _tails(h: Array, k: Array, c: Array) -> tuple[Array, Array]:
    """P(X > h, Y > k) and E (X - h)_+ (Y - k)_+ for standard normals of correlation ``c``."""
    h, k, c = np.broadcast_arrays(h, k, c)
    apart, against = np.maximum(1 - c, _TINY), np.maximum(1 + c, _TINY)
    s = np.sqrt(apart * against)
    # k - c h and h - c k over s, written so that nothing cancels at c = 1 and c = -1
    near = c >= 0
    first = np.where(near, k - h + apart * h, k + h - against * h) / s
    second = np.where(near, h - k + apart * k, h + k - against * k) / s
    exponent = np.where(
        near,
        (h - k) ** 2 / (2 * apart * against) + h * k / against,
        (h + k) ** 2 / (2 * apart * against) - h * k / apart,
    )
    both = _orthant(h, k, c, first, second)
    ramps = (c + h * k) * both - k * _density(h) * ndtr(-first) - h * _density(k) * ndtr(-second)
    return both, ramps + s * np.exp(-exponent) / (2 * math.pi)


def _orthant(h: Array, k: Array, c: Array, first: Array, second: Array) -> Array:
    """P(X > h, Y > k) by Owen's T, with ``first`` = (k - c h) / sqrt(1 - c^2) and ``second`` the other way round."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.where(h == 0, np.copysign(math.inf, first), first / h)
        two = np.where(k == 0, np.copysign(math.inf, second), second / k)
    apart = (h * k < 0) | ((h * k == 0) & (h + k < 0))
    mass = (ndtr(-h) + ndtr(-k)) / 2 - owens_t(h, one) - owens_t(k, two) - np.where(apart, 0.5, 0.0)
    return np.where((h == 0) & (k == 0), 0.25 + np.arcsin(np.clip(c, -1, 1)) / (2 * math.pi), mass)
