"""``MeanField`` at many (sigma_w, sigma_b) at once: the numbers of a phase diagram, without a loop over its points.

Lengths: E phi(sqrt(q) z)^2 and E phi'(sqrt(q) z)^2 do not depend on the sigmas, and in x = log q they are analytic
for |Im x| < pi / 2, since x moves the density of log |z| along. On intervals of length 1 their Chebyshev series
therefore gain a factor of 6.4 a term, kinks or not, and every fixed point is the root of a polynomial.

Correlations: C is convex on [0, 1] (its series has no negative coefficient), so that Newton's iteration from 0 climbs
to the least fixed point without overshooting, for all points together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.polynomial.chebyshev import chebfit, chebpts1, chebval
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray

from pullback._checks import self_check_error
from pullback.theory.expectations.activations import Activation, Array
from pullback.theory.expectations.closed_forms import closed_form
from pullback.theory.expectations.gaussian import Nodes
from pullback.theory.expectations.hermite import coefficients
from pullback.theory.mean_field.fixed_points import CRITICAL, LONGEST
from pullback.theory.mean_field.network import SERIES_ERROR, MeanField

_DEGREE = 23  # 6.4^-23 is below rounding
_TERMS = 512  # of Hermite series
_STEPS = 100  # of Newton's iteration: it halves the distance where C is nearly tangent, next to the critical line
_ROUNDING = 1e-15  # of C(c) - c
QUANTITIES = ("q_star", "chi", "c_star", "xi_c", "xi_grad")


def phase_grid(phi: Activation, sigma_w: Array, sigma_b: Array) -> dict[str, Array]:
    """``QUANTITIES`` of ``MeanField(phi, sigma_w[k], sigma_b[k])`` for every k, (M,) each.

    c_star and xi_c are nan where lengths grow without bound and they are not defined.
    """
    quantities = {name: np.full(len(sigma_w), math.nan) for name in QUANTITIES}
    lengths, slopes = (_homogeneous if phi.homogeneous else _settled)(phi, sigma_w, sigma_b)
    quantities["q_star"] = lengths
    quantities["chi"] = sigma_w**2 * slopes
    with np.errstate(divide="ignore"):
        quantities["xi_grad"] = np.where(
            np.abs(quantities["chi"] - 1) < CRITICAL, math.inf, -1 / np.log(quantities["chi"])
        )
    settled = np.isfinite(lengths) & (lengths > 0)
    ordered = settled & (quantities["chi"] <= 1 + CRITICAL)
    quantities["c_star"][ordered] = 1
    quantities["xi_c"][ordered] = _scales(quantities["chi"][ordered])
    alike = ~settled & ((lengths == 0) | phi.homogeneous)  # correlations of directions: one answer for all of them
    if alike.any():
        k = int(np.flatnonzero(alike)[0])
        net = MeanField(phi, float(sigma_w[k]), float(sigma_b[k]))
        quantities["c_star"][alike], quantities["xi_c"][alike] = net.c_star, net.xi_c
    chaotic = settled & ~ordered
    if chaotic.any():
        c, rate = _correlations(phi, sigma_w[chaotic], sigma_b[chaotic], lengths[chaotic])
        quantities["c_star"][chaotic], quantities["xi_c"][chaotic] = c, _scales(rate)
    return quantities


def _homogeneous(phi: Activation, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array]:
    """q* and E phi'^2 by the closed form."""
    second, slope = _moments(phi, 1.0)
    gain = sigma_w**2 * second
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.where(gain < 1, sigma_b**2 / (1 - gain), math.inf)
    neutral = np.abs(gain - 1) < 1e-12
    return np.where(neutral, np.where(sigma_b == 0, 1.0, math.inf), lengths), np.full(len(sigma_w), slope)


def _moments(phi: Activation, q: float) -> tuple[float, float]:
    """E phi^2 and E phi'^2."""
    nodes = Nodes.of(q, phi.kinks)
    return float(nodes.weights @ phi.value(nodes.u) ** 2), float(nodes.weights @ phi.slope(nodes.u) ** 2)


def _settled(phi: Activation, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array]:
    """q*, found as in ``MeanField``: from 1 in the direction V moves it, in steps of e; and E phi'^2 there."""
    weight, bias = sigma_w**2, sigma_b**2
    direction = np.sign(weight * _moments(phi, 1.0)[0] + bias - 1)
    lengths, slopes = np.ones(len(sigma_w)), np.full(len(sigma_w), _moments(phi, 1.0)[1])
    for way in (-1, 1):
        open_ = direction == way
        for end in range(1, math.floor(math.log(LONGEST)) + 1):
            if not open_.any():
                break
            q = math.exp(way * end)
            inside = open_ & ((weight * _moments(phi, q)[0] + bias - q) * way <= 0)
            if inside.any():
                low = min(way * end, way * (end - 1))
                lengths[inside], slopes[inside] = _roots(phi, low, weight[inside], bias[inside], way)
            open_ &= ~inside
        beyond = MeanField(phi, 1.0)
        if way == 1:
            lengths[open_], slopes[open_] = math.inf, beyond.phi_slope_square(LONGEST)
        else:
            lengths[open_] = bias[open_]
            slopes[open_] = [beyond.phi_slope_square(float(q)) for q in bias[open_]]
    return lengths, slopes


def _roots(phi: Activation, low: int, weight: Array, bias: Array, way: int) -> tuple[Array, Array]:
    """q* with log q* between ``low`` and ``low`` + 1, and E phi'^2 there."""
    nodes = chebpts1(_DEGREE + 1)
    values = np.array([_moments(phi, math.exp(low + (x + 1) / 2)) for x in nodes])
    second, slope = (chebfit(nodes, column, _DEGREE) for column in values.T)
    a, b = np.full(len(weight), -1.0), np.full(len(weight), 1.0)
    for _ in range(54):  # halve: V is above the diagonal on one side of the fixed point
        middle = (a + b) / 2
        growth = weight * chebval(middle, second) + bias - np.exp(low + (middle + 1) / 2)
        right = growth > 0 if way == 1 else growth >= 0
        a, b = np.where(right, middle, a), np.where(right, b, middle)
    x = (a + b) / 2
    return np.exp(low + (x + 1) / 2), chebval(x, slope)


def _scales(rate: Array) -> Array:
    """-1 / log(rate); inf at 1."""
    with np.errstate(divide="ignore"):
        return np.where(rate >= 1 - CRITICAL, math.inf, np.where(rate <= 0, 0.0, -1 / np.log(np.maximum(rate, 0))))


def _correlations(phi: Activation, sigma_w: Array, sigma_b: Array, lengths: Array) -> tuple[Array, Array]:
    """c* below 1 and C'(c*), in the chaotic phase."""
    pairs = closed_form(phi)
    if pairs is not None:
        return _climb(partial(pairs, lengths, lengths), sigma_w**2, sigma_b**2, lengths)
    (values, second), (slopes, slope) = (coefficients(f, lengths, phi.kinks, _TERMS) for f in (phi.value, phi.slope))
    series = [np.ascontiguousarray((each**2).T) for each in (values, slopes)]  # (terms, M)
    c, rate = _climb(lambda c: [polyval(c, each, tensor=False) for each in series], sigma_w**2, sigma_b**2, lengths)
    exact = np.ones(len(c), dtype=bool)
    for squares, whole in zip(series, (second, slope), strict=True):
        exact &= np.maximum(whole - squares.sum(0), 0) * c**_TERMS <= SERIES_ERROR * whole
    for k in np.flatnonzero(~exact):  # the series' tail counts: steep activations, kinks
        net = MeanField(phi, float(sigma_w[k]), float(sigma_b[k]))
        c[k], rate[k] = net.c_star, net.c_slope(net.c_star)
    return c, rate


def _climb(
    pairs: Callable[[Array], Sequence[NDArray[np.floating]]], weight: Array, bias: Array, lengths: Array
) -> tuple[Array, Array]:
    """Least fixed points of C, and C' there; ``pairs`` gives E phi(u1) phi(u2) and E phi'(u1) phi'(u2) at c."""
    c = np.zeros(len(weight))
    for _ in range(_STEPS):
        values, slopes = pairs(c)
        rise = (weight * values + bias) / lengths - c
        climbing = (rise > _ROUNDING) & (weight * slopes < 1)
        if not climbing.any():
            below = (c > 0) & (weight * slopes < 1)
            c = np.where(below, np.clip(c + rise / np.where(below, 1 - weight * slopes, 1), 0, 1), c)
            return c, weight * pairs(c)[1]
        c = np.where(climbing, np.minimum(c + rise / np.where(climbing, 1 - weight * slopes, 1), 1.0), c)
    raise self_check_error(
        "phase_diagram", "correlations that settle", f"{int(climbing.sum())} that still move", "Use MeanField there"
    )
