"""The phase diagram: where in (sigma_w, sigma_b) signals and gradients survive depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from pullback._checks import input_error
from pullback.theory.activations import Activation, Array, activation_of
from pullback.theory.gaussian import mean
from pullback.theory.mean_field import MeanField

_LOG_LENGTHS = np.linspace(math.log(1e-10), math.log(1e8), 91)  # where the critical line is looked for


def critical_sigma_w(activation: str | Callable[..., object] | Activation, sigma_b: float) -> float:
    """The sigma_w at which gradients neither vanish nor explode (chi_1 = 1) for biases of this size.

    A length q is critical for sigma_w^2 = 1 / E phi'(sqrt(q) z)^2, and is a fixed point for
    sigma_b^2 = q - sigma_w^2 E phi(sqrt(q) z)^2; the q that gives ``sigma_b`` is found.

    Raises:
        InputError: no sigma_w is critical for this sigma_b (ReLU has one for sigma_b = 0 only); bad input.

    References: Poole et al. (2016), arXiv:1606.05340, fig. 1; Schoenholz et al. (2017), arXiv:1611.01232.

    Example:
        >>> round(critical_sigma_w("tanh", 0.3), 6), round(critical_sigma_w("relu", 0.0), 6)
        (1.395584, 1.414214)
    """
    where = "critical_sigma_w"
    phi = activation_of(activation, where)
    if not (isinstance(sigma_b, int | float) and math.isfinite(sigma_b) and sigma_b >= 0):
        raise input_error(where, "`sigma_b` of at least 0", repr(sigma_b), "Pass a standard deviation")

    def gain(q: float) -> float:
        return 1 / mean(lambda u: phi.slope(u) ** 2, q, phi.kinks).value

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return q - gain(q) * mean(lambda u: phi.value(u) ** 2, q, phi.kinks).value - sigma_b**2

    candidates = []
    if sigma_b == 0:
        candidates.append(math.sqrt(gain(math.exp(_LOG_LENGTHS[0]))) if not phi.smooth else _at_zero(phi))
    values = [excess(log_q) for log_q in _LOG_LENGTHS]
    for (low, a), (high, b) in zip(
        zip(_LOG_LENGTHS[:-1], values[:-1], strict=True), zip(_LOG_LENGTHS[1:], values[1:], strict=True), strict=True
    ):
        if a * b < 0 and max(abs(a), abs(b)) > 1e-12 * math.exp(high):
            candidates.append(math.sqrt(gain(math.exp(brentq(excess, low, high, xtol=1e-14)))))
    for sigma_w in candidates:  # layers must settle there from the lengths data has
        if math.isfinite(sigma_w) and abs(MeanField(phi, sigma_w, sigma_b).chi - 1) < 1e-6:
            return sigma_w
    raise input_error(
        where,
        f"a `sigma_b` for which {phi.name} has a critical sigma_w",
        repr(sigma_b),
        "Use sigma_b=0" if sigma_b else "Use another activation",
    )


def _at_zero(phi: Activation) -> float:
    slope = abs(float(phi.slope(np.zeros(1))[0]))
    return 1 / slope if slope else math.inf


@dataclass(frozen=True)
class PhaseDiagram:
    """``MeanField`` over a grid; every array is (len(sigma_b), len(sigma_w)).

    Attributes:
        sigma_w: of the columns.
        sigma_b: of the rows.
        q_star: length that layers settle at.
        chi: chi_1.
        c_star: correlation that pairs settle at; nan where lengths grow without bound and it is not defined.
        xi_c: depth scale of correlations: signals are told apart over about 6 of them (Schoenholz et al. 2017).
        xi_grad: depth scale of gradients; negative where they explode.
        critical: sigma_w of the critical line at each sigma_b; nan where there is none.
    """

    sigma_w: Array
    sigma_b: Array
    q_star: Array
    chi: Array
    c_star: Array
    xi_c: Array
    xi_grad: Array
    critical: Array


def phase_diagram(
    activation: str | Callable[..., object] | Activation, sigma_w: Sequence[float], sigma_b: Sequence[float]
) -> PhaseDiagram:
    """Fixed points, depth scales and the critical line over a grid of weight and bias variances.

    Args:
        activation: as of ``MeanField``.
        sigma_w: columns of the grid.
        sigma_b: rows of the grid.

    Cost: a few milliseconds a point.

    Example:
        >>> diagram = phase_diagram("tanh", [0.9, 2.5], [0.3])
        >>> [[round(float(x), 3) for x in diagram.chi[0]], round(float(diagram.critical[0]), 4)]
        [[0.6, 1.585], 1.3956]
    """
    phi = activation_of(activation, "phase_diagram")
    columns, rows = np.asarray(sigma_w, dtype=np.float64), np.asarray(sigma_b, dtype=np.float64)
    names = ("q_star", "chi", "c_star", "xi_c", "xi_grad")
    found = {name: np.full((len(rows), len(columns)), math.nan) for name in names}
    for i, b in enumerate(rows):
        for j, w in enumerate(columns):
            net = MeanField(phi, float(w), float(b))
            for name in names:
                if name in ("c_star", "xi_c") and math.isinf(net.q_star) and not phi.homogeneous:
                    continue
                found[name][i, j] = getattr(net, name)
    return PhaseDiagram(columns, rows, **found, critical=np.array([_critical_or_nan(phi, float(b)) for b in rows]))


def _critical_or_nan(phi: Activation, sigma_b: float) -> float:
    if phi.homogeneous and sigma_b > 0:  # lengths settle only where gradients vanish
        return math.nan
    return critical_sigma_w(phi, sigma_b)
