"""Critical points: weights and biases at which gradients neither vanish nor explode, and what lengths do there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from pullback._checks import InputError, input_error
from pullback._results import Shown
from pullback.theory.checks import check_sigmas
from pullback.theory.expectations.activations import Activation, Array, activation_of
from pullback.theory.expectations.gaussian import Nodes
from pullback.theory.mean_field.fixed_points import CRITICAL
from pullback.theory.mean_field.network import MeanField

_LOG_LENGTHS = np.linspace(math.log(1e-10), math.log(1e8), 91)  # where the critical line is looked for
_REACHED = 1e-6  # |chi_1 - 1| at the fixed point layers settle at


@dataclass(frozen=True)
class CriticalPoint(Shown):
    """Where chi_1 = 1 at a fixed point q of the length.

    Attributes:
        sigma_w: of the weights.
        sigma_b: of the biases.
        length: q; nan where every length is a fixed point.
        length_slope: V'(q).
        kind: what lengths next to q do. "stable": layers approach it from both sides; "half-stable": from one;
            "unstable": they leave it; "neutral": they stay as they are.
        reached: whether layers that start from length 1 settle there.
    """

    sigma_w: float
    sigma_b: float
    length: float
    length_slope: float
    kind: str
    reached: bool


def critical_points(activation: str | Callable[..., object] | Activation, sigma_b: float) -> tuple[CriticalPoint, ...]:
    """All critical points at a given ``sigma_b``, by ascending length.

    A length q is critical for sigma_w^2 = 1 / E phi'(sqrt(q) z)^2, and is a fixed point for
    sigma_b^2 = q - sigma_w^2 E phi(sqrt(q) z)^2; every q from 1e-10 to 1e8 that gives ``sigma_b`` is found. Activations
    like tanh have one point, which layers settle at. GELU and SiLU have one as well, but lengths leave it where
    ``sigma_b`` is small.

    Args:
        activation: as of ``MeanField``.
        sigma_b: of the biases.

    Raises:
        InputError: a ``sigma_b`` that is negative or not finite.

    References: Poole et al. (2016), arXiv:1606.05340; Roberts, Yaida and Hanin (2022), arXiv:2106.10165, section 5.3.

    Example:
        >>> [(p.kind, p.reached) for b in (0.2, 0.6) for p in critical_points("gelu", b)]
        [('unstable', False), ('stable', True)]
    """
    where = "critical_points"
    phi = activation_of(activation, where)
    check_sigmas(where, 1.0, sigma_b)
    bias = float(sigma_b)
    if phi.homogeneous:
        neutral = CriticalPoint(1 / math.sqrt(_moments(phi, 1.0)[1]), 0.0, math.nan, 1.0, "neutral", reached=True)
        return (neutral,) if bias == 0 else ()
    second, slope = _moments(phi, 0.0)
    points = [_point(phi, 0.0, 0.0)] if bias == second == 0 < slope else []
    excess = _line(phi) - bias**2
    for k in np.flatnonzero(excess[:-1] * excess[1:] < 0):
        low, high = _LOG_LENGTHS[k], _LOG_LENGTHS[k + 1]
        if max(abs(excess[k]), abs(excess[k + 1])) > 1e-12 * math.exp(high):  # not the rounding of a difference
            root = brentq(lambda x: _bias_square(phi, x) - bias**2, low, high, xtol=1e-14)
            points.append(_point(phi, math.exp(root), bias))
    return tuple(points)


def starting_point(activation: str | Callable[..., object] | Activation) -> CriticalPoint:
    """The critical point that suits the start of a deep network: what ``pb.initialise`` takes.

    With sigma_b = 0 where layers settle at a critical point, or keep every length (ReLU). Else (GELU, SiLU) the one at
    which E phi'^2 is largest over q: lengths approach it slowly, and there chi_1 is 1 to first order also for lengths
    next to q.

    Raises:
        InputError: an activation without a critical point that layers settle at (tanhshrink, SELU).

    Example:
        >>> point = starting_point("gelu")
        >>> point.kind, round(point.sigma_w, 3), round(point.sigma_b, 3), round(point.length, 1)
        ('stable', 1.399, 0.572, 10.2)
    """
    phi = activation_of(activation, "starting_point")
    for point in (*critical_points(phi, 0.0), *_flat_points(phi)):
        if point.reached:
            return point
    raise input_error(
        "starting_point",
        "an activation with a critical point that layers settle at",
        phi.name,
        "Use another activation, or set the weights by `modules.initialise_weights`",
    )


def critical_sigma_w(activation: str | Callable[..., object] | Activation, sigma_b: float) -> float:
    """The sigma_w at which gradients neither vanish nor explode (chi_1 = 1) for biases of this size.

    It is that of the critical point which layers settle at from length 1; ``critical_points`` shows others.

    Raises:
        InputError: there is no such point for this sigma_b: ReLU has one for sigma_b = 0 only, GELU above 0.42, SiLU
            above 0.75; bad input.

    References: Poole et al. (2016), arXiv:1606.05340, fig. 1; Schoenholz et al. (2017), arXiv:1611.01232.

    Example:
        >>> round(critical_sigma_w("tanh", 0.3), 6), round(critical_sigma_w("relu", 0.0), 6)
        (1.395584, 1.414214)
    """
    phi = activation_of(activation, "critical_sigma_w")
    check_sigmas("critical_sigma_w", 1.0, sigma_b)
    for point in critical_points(phi, sigma_b):
        if point.reached:
            return point.sigma_w
    try:
        remedy = f"Use sigma_b={starting_point(phi).sigma_b:.4g}"
    except InputError:
        remedy = "Use another activation"
    expected = f"a `sigma_b` for which {phi.name} has a critical sigma_w that layers settle at"
    raise input_error("critical_sigma_w", expected, repr(sigma_b), remedy)


def _moments(phi: Activation, q: float) -> tuple[float, float]:
    """E phi^2 and E phi'^2 at length q."""
    if q == 0:
        return float(phi.value(np.zeros(1))[0]) ** 2, MeanField(phi, 1.0).phi_slope_square(0.0)
    nodes = Nodes.of(q, phi.kinks)
    return float(nodes.weights @ phi.value(nodes.u) ** 2), float(nodes.weights @ phi.slope(nodes.u) ** 2)


def _bias_square(phi: Activation, log_length: float) -> float:
    """The sigma_b^2 at which a length is a critical fixed point; negative where it cannot be one."""
    second, slope = _moments(phi, math.exp(log_length))
    return math.exp(log_length) - second / slope if slope else -math.inf


@lru_cache(maxsize=32)
def _line(phi: Activation) -> Array:
    """sigma_b^2 along ``_LOG_LENGTHS``."""
    return np.array([_bias_square(phi, float(x)) for x in _LOG_LENGTHS])


def _point(phi: Activation, q: float, sigma_b: float) -> CriticalPoint:
    sigma_w = 1 / math.sqrt(_moments(phi, q)[1])
    net = MeanField(phi, sigma_w, sigma_b)
    slope = net.q_slope(q)
    reached = abs(net.chi - 1) < _REACHED
    if abs(slope - 1) > CRITICAL:
        return CriticalPoint(sigma_w, sigma_b, q, slope, "stable" if slope < 1 else "unstable", reached)
    return CriticalPoint(sigma_w, sigma_b, q, slope, _kind_beyond_first_order(net, q), reached)


def _kind_beyond_first_order(net: MeanField, q: float) -> str:
    """Of a fixed point with V'(q) = 1: what lengths do a little further away, where V tells them from q."""
    for step in (1e-3, 1e-2, 1e-1, 1.0):
        sides = [step] if q == 0 else [step * q / 2, -step * q / 2]
        moves = [(net.q_map(q + side) - q - side) / side for side in sides]
        if any(abs(move) > 1e-10 for move in moves):
            return "stable" if max(moves) < 1e-10 else "half-stable" if min(moves) < -1e-10 else "unstable"
    return "neutral"


def _flat_points(phi: Activation) -> Iterator[CriticalPoint]:
    """Critical points at which E phi'^2 has a maximum in q."""

    def slope(x: float) -> float:
        return _moments(phi, math.exp(x))[1]

    if phi.homogeneous:
        return
    values = np.array([slope(float(x)) for x in _LOG_LENGTHS])
    inner = (values[1:-1] > values[:-2]) & (values[1:-1] > values[2:]) & (_line(phi)[1:-1] > 0)
    for k in np.flatnonzero(inner):
        ends = (_LOG_LENGTHS[k], _LOG_LENGTHS[k + 2])
        best = minimize_scalar(lambda x: -slope(x), bounds=ends, method="bounded", options={"xatol": 1e-9}).x
        yield _point(phi, math.exp(best), math.sqrt(_bias_square(phi, best)))
