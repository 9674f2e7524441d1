"""Signals in wide random networks: lengths q, correlations c, their fixed points, depth scales and phases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pullback._checks import check_option, input_error
from pullback._results import Shown
from pullback.theory.checks import check_depth, check_sigmas
from pullback.theory.expectations.activations import Activation, activation_of
from pullback.theory.expectations.closed_forms import closed_form
from pullback.theory.expectations.gaussian import Integral, Series, mean, pair_mean
from pullback.theory.mean_field.curves import CurveMetrics, curve_metrics
from pullback.theory.mean_field.fixed_points import (
    CRITICAL,
    LONGEST,
    SHORTEST,
    depth_scale,
    settled_correlation,
    settled_length,
)
from pullback.theory.mean_field.jacobians import JacobianMoments, jacobian_moments

SERIES_ERROR = 1e-13  # relative, above which a correlation goes through closed forms or the nested rule
_ROUNDING = 1e-15  # of C(c) - c


@dataclass(frozen=True)
class MeanField(Shown):
    """Infinitely wide random network: W ~ N(0, sigma_w^2 / fan_in), b ~ N(0, sigma_b^2), phi between the layers.

    For inputs h of a layer, over its units: q = E h^2, c the correlation of two inputs' h. ``q`` and ``c`` follow

        V(q) = (sigma_w^2 / rho) E phi(sqrt(q) z)^2 + sigma_b^2
        C(c) = (sigma_w^2 E phi(u1) phi(u2) + sigma_b^2) / q*,  u1, u2 of variance q* and correlation c

    with rho the probability that dropout keeps a unit, its masks independent for the two inputs. Where both inputs see
    the same mask, sigma_w^2 / rho stands in C too, and c = 1 is a fixed point again.

    Args:
        activation: "tanh", "erf", "relu", "leaky_relu", "hard_tanh", "gelu", "silu", "sin", "linear", or an elementwise
            torch function.
        sigma_w: standard deviation of the weights times sqrt(fan_in).
        sigma_b: of the biases.
        keep_prob: rho; 1 is no dropout.
        shared_mask: whether dropout draws one mask for both inputs.

    Raises:
        InputError: a sigma that is negative or not finite; ``keep_prob`` outside (0, 1]; a bad activation.

    References: Poole et al. (2016), arXiv:1606.05340; Schoenholz et al. (2017), arXiv:1611.01232.

    Example:
        >>> net = MeanField("tanh", 1.3, 0.3)
        >>> round(net.q_star, 6), net.phase, round(net.xi_c, 3)
        (0.607047, 'ordered', 16.108)
    """

    activation: str | Callable[..., object] | Activation
    sigma_w: float
    sigma_b: float = 0.0
    keep_prob: float = 1.0
    shared_mask: bool = False

    def __post_init__(self) -> None:
        where = "MeanField"
        check_sigmas(where, self.sigma_w, self.sigma_b)
        if not 0 < self.keep_prob <= 1:
            raise input_error(where, "`keep_prob` in (0, 1]", repr(self.keep_prob), "Pass the share of units kept")
        object.__setattr__(self, "activation", activation_of(self.activation, where))

    @property
    def phi(self) -> Activation:
        """The activation."""
        assert isinstance(self.activation, Activation)
        return self.activation

    @property
    def pair_gain(self) -> float:
        """Factor of E phi(u1) phi(u2) in the next layer: sigma_w^2, or sigma_w^2 / rho where the mask is shared."""
        return self.sigma_w**2 / (self.keep_prob if self.shared_mask else 1.0)

    @property
    def _masks_agree(self) -> bool:
        return self.shared_mask or self.keep_prob == 1

    # Lengths

    def q_map(self, q: float) -> float:
        """Length of the next layer's inputs, V(q)."""
        return self.sigma_w**2 / self.keep_prob * self.second_moment(q).value + self.sigma_b**2

    def second_moment(self, q: float) -> Integral:
        """E phi(sqrt(q) z)^2."""
        if self.phi.homogeneous:
            one = mean(lambda u: self.phi.value(u) ** 2, 1.0, self.phi.kinks)
            return Integral(q * one.value, q * one.error)
        return mean(lambda u: self.phi.value(u) ** 2, q, self.phi.kinks)

    def q_slope(self, q: float) -> float:
        """V'(q), from first derivatives alone: E phi(u) phi'(u) z / sqrt(q)."""
        gain = self.sigma_w**2 / self.keep_prob
        if q == 0 or self.phi.homogeneous:
            return gain * (self.phi_slope_square(0.0) if q == 0 else self.second_moment(1.0).value)
        root = math.sqrt(q)
        value = mean(lambda u: self.phi.value(u) * self.phi.slope(u) * u, q, self.phi.kinks).value
        return gain * value / (root * root)

    @cached_property
    def q_star(self) -> float:
        """The length that layers settle at when they start from 1; inf where lengths grow without bound.

        For a homogeneous activation that neither shrinks nor stretches (ReLU at sigma_w = sqrt(2), sigma_b = 0) every
        length stays as it is: 1 is returned.
        """
        if self.phi.homogeneous:
            gain = self.q_slope(1.0)
            if abs(gain - 1) < 1e-12:
                return 1.0 if self.sigma_b == 0 else math.inf
            return math.inf if gain > 1 else self.sigma_b**2 / (1 - gain)
        return settled_length(self.q_map, self.sigma_b)

    # Gradients

    def phi_slope_square(self, q: float) -> float:
        """E phi'(sqrt(q) z)^2."""
        if self.phi.homogeneous:
            q = 1.0
        if q == 0 and 0.0 in self.phi.kinks:
            q = SHORTEST  # both sides of a kink at the origin count half
        if q == 0:
            return float(self.phi.slope(np.zeros(1))[0]) ** 2
        return mean(lambda u: self.phi.slope(u) ** 2, q, self.phi.kinks).value

    @cached_property
    def chi(self) -> float:
        """chi_1 = sigma_w^2 E phi'(sqrt(q*) z)^2: a layer's factor of mean squared gradients, without dropout."""
        if math.isinf(self.q_star) and not self.phi.homogeneous:
            return self.sigma_w**2 * self.phi_slope_square(LONGEST)
        return self.sigma_w**2 * self.phi_slope_square(1.0 if math.isinf(self.q_star) else self.q_star)

    @property
    def phase(self) -> str:
        """Whether chi_1 / rho says "ordered" (gradients vanish), "critical", or "chaotic" (they explode)."""
        gain = self.chi / self.keep_prob
        return "critical" if abs(gain - 1) < CRITICAL else "ordered" if gain < 1 else "chaotic"

    # Correlations

    @cached_property
    def _series(self) -> tuple[Series, Series]:
        q = self._length
        return Series.of(self.phi.value, q, self.phi.kinks), Series.of(self.phi.slope, q, self.phi.kinks)

    @property
    def _length(self) -> float:
        """q*, or any length where correlations do not depend on it."""
        if math.isinf(self.q_star):
            if not self.phi.homogeneous:
                raise input_error(
                    "MeanField",
                    "a finite fixed point of the length for correlations",
                    f"one beyond {LONGEST:g}",
                    "Lower sigma_w",
                )
            return 1.0
        if self.q_star == 0:
            return SHORTEST
        return self.q_star

    def pair(self, c: float) -> Integral:
        """E phi(u1) phi(u2) at length q* and correlation c."""
        return self._pairs(c)[0]

    def _pairs(self, c: float) -> tuple[Integral, Integral]:
        """E phi(u1) phi(u2) and E phi'(u1) phi'(u2), each by its series where that is exact."""
        integrals = [series.at(c) for series in self._series]
        if all(
            value.error <= SERIES_ERROR * each.whole.value for value, each in zip(integrals, self._series, strict=True)
        ):
            return integrals[0], integrals[1]
        pairs, q = closed_form(self.phi), self._length
        if pairs is not None:
            moments = pairs(np.array(q), np.array(q), np.array(c))
            return tuple(Integral(float(value), SERIES_ERROR * max(1.0, q)) for value in moments)  # type: ignore[return-value]
        return pair_mean(self.phi.value, q, q, c, self.phi.kinks), pair_mean(self.phi.slope, q, q, c, self.phi.kinks)

    def c_map(self, c: float) -> float:
        """Correlation of the next layer's inputs, C(c), for two inputs of length q*.

        With dropout C(1) < 1, as the masks of the two inputs differ, unless they share one. Where lengths grow without
        bound (ReLU with sigma_w > sqrt(2)) the bias no longer counts.
        """
        if not -1 <= c <= 1:
            raise input_error("MeanField.c_map", "a correlation from -1 to 1", repr(c), "Pass a correlation")
        if self.q_star == 0 or math.isinf(self.q_star):  # lengths still change: correlations are of directions
            correlation = self._share * self.pair(c).value / self.second_moment(self._length).value
        else:
            correlation = (self.pair_gain * self.pair(c).value + self.sigma_b**2) / self.q_star
        return max(-1.0, min(1.0, correlation))  # rounding may lead out, and the next call would refuse it

    def c_slope(self, c: float) -> float:
        """C'(c) = sigma_w^2 E phi'(u1) phi'(u2), divided by rho where the mask is shared."""
        value = self._pairs(c)[1]
        if self.q_star == 0 or math.isinf(self.q_star):
            return self._share * value.value * self._length / self.second_moment(self._length).value
        return self.pair_gain * value.value

    @property
    def _share(self) -> float:
        """Of the second moment that two inputs have in common at c = 1: rho where their masks differ."""
        return 1.0 if self._masks_agree else self.keep_prob

    @cached_property
    def c_star(self) -> float:
        """Correlation that every pair of inputs settles at: 1 in the ordered phase, below in the chaotic one."""
        if self._masks_agree and self.c_slope(1.0) <= 1 + CRITICAL:
            return 1.0
        if self.c_map(0.0) <= _ROUNDING:
            return 0.0

        return settled_correlation(self.c_map)

    # Depth scales

    @property
    def xi_q(self) -> float:
        """Layers over which |q - q*| falls by e: -1 / log |V'(q*)|; inf where it does not fall exponentially.

        Where lengths grow without bound, the layers over which they grow by e, as a negative number.
        """
        if math.isinf(self.q_star):
            gain = self.q_slope(1.0 if self.phi.homogeneous else LONGEST)
            return -1 / math.log(gain) if gain > 1 + CRITICAL else math.inf
        return depth_scale(abs(self.q_slope(self.q_star)))

    @property
    def xi_c(self) -> float:
        """Layers over which |c - c*| falls by e: -1 / log C'(c*); inf on the critical line."""
        return depth_scale(self.c_slope(self.c_star))

    @property
    def xi_grad(self) -> float:
        """Layers over which mean squared gradients change by e: -1 / log(chi_1 / rho); negative where they explode."""
        gain = self.chi / self.keep_prob
        if abs(gain - 1) < CRITICAL:
            return math.inf
        return -1 / math.log(gain) if gain > 0 else 0.0

    # What follows from these

    def curve_metrics(self, depth: int) -> CurveMetrics:
        """Metrics of a circle's image after 0 to ``depth`` layers.

        With chi_1 = sigma_w^2 E phi'^2 and chi_2 = sigma_w^2 E phi''^2 at q*,

            g^E_l = chi_1 g^E_{l-1},   (N kappa^2)_l = 3 chi_2 / chi_1^2 + (N kappa^2)_{l-1} / chi_1

        so that in the chaotic phase the image grows and its curvature stays, and in the ordered phase it shrinks and
        bends.

        Raises:
            InputError: an activation with kinks (chi_2 is infinite), dropout, a length that is zero or infinite,
                depth < 1.

        References: Poole et al. (2016), arXiv:1606.05340, eq. 10 to 13.

        Example:
            >>> metrics = MeanField("tanh", 2.5, 0.3).curve_metrics(3)
            >>> [round(float(k), 4) for k in metrics.curvature[1:]], round(metrics.fixed_point, 4)
            ([1.5825, 2.4261, 2.9583], 3.8677)
        """
        where = "curve_metrics"
        check_depth(where, depth)
        if not self.phi.smooth:
            got = f"{self.phi.name}, whose slope jumps"
            raise input_error(where, "a smooth activation", got, "Use tanh, erf or gelu")
        self._check_no_dropout(where)
        if self.q_star == 0 or math.isinf(self.q_star):
            raise input_error(where, "a finite length above zero", f"q_star {self.q_star}", "Choose other sigmas")
        return curve_metrics(self.q_star, self.chi, self.bend_gain, depth)

    @property
    def bend_gain(self) -> float:
        """chi_2 = sigma_w^2 E phi''(sqrt(q*) z)^2; of lengths that grow without bound, at the longest."""
        q = min(self.q_star, LONGEST)
        return self.sigma_w**2 * mean(lambda u: self.phi.bend(u) ** 2, q, self.phi.kinks).value

    def jacobian_moments(self, depth: int, init: str = "gaussian") -> JacobianMoments:
        """First two moments of the squared singular values of ``depth`` layers.

            E s^2 = (sigma_w^2 mu_1)^L,   Var s^2 / (E s^2)^2 = L (mu_2 / mu_1^2 - 1 - s_1),   mu_k = E phi'^{2k}

        with s_1 = -1 for Gaussian weights and 0 for orthogonal ones, the input's length being q*.

        Args:
            depth: L.
            init: "gaussian" or "orthogonal".

        Raises:
            InputError: depth < 1; an unknown ``init``; dropout; lengths that grow without bound (but ReLU's, whose
                slopes do not depend on them).

        References: Pennington, Schoenholz and Ganguli (2018), arXiv:1802.09979.

        Example:
            >>> net = MeanField("relu", 2**0.5)
            >>> [round(net.jacobian_moments(8, init).relative_variance, 6) for init in ("gaussian", "orthogonal")]
            [16.0, 8.0]
        """
        where = "jacobian_moments"
        check_depth(where, depth)
        check_option(where, "init", init, ("gaussian", "orthogonal"))
        self._check_no_dropout(where)
        if math.isinf(self.q_star) and not self.phi.homogeneous:
            raise input_error(where, "lengths that settle", "q_star inf", "Lower sigma_w")
        q = 1.0 if math.isinf(self.q_star) else self.q_star
        mu_1 = self.phi_slope_square(q)
        if q == 0:
            fourth = mu_1**2 if self.phi.smooth else mu_1
        else:
            fourth = mean(lambda u: self.phi.slope(u) ** 4, q, self.phi.kinks).value
        return jacobian_moments(self.chi, mu_1, fourth, depth, init)

    def _check_no_dropout(self, where: str) -> None:
        if self.keep_prob < 1:
            raise input_error(where, "a network without dropout", f"keep_prob {self.keep_prob}", "Pass keep_prob=1")
