"""Riemannian geometry of a curve on its way through a wide random network: metrics and curvature by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pullback._checks import input_error
from pullback.theory.activations import Array
from pullback.theory.gaussian import mean

if TYPE_CHECKING:
    from pullback.theory.mean_field import MeanField


@dataclass(frozen=True)
class CurveMetrics:
    """Geometry of the image of a circle of squared radius N q*, h(theta) = sqrt(N q*) (cos theta, sin theta), by layer.

    Attributes:
        euclidean: g^E / N, squared speed |dh/dtheta|^2 per unit, (depth + 1,); entry 0 is the circle itself.
        curvature: N kappa^2, with kappa the extrinsic curvature, (depth + 1,).
        gauss: g^G = kappa^2 g^E, squared speed of the unit tangent, (depth + 1,).
        fixed_point: of ``curvature``; inf where it grows without bound.
    """

    euclidean: Array
    curvature: Array
    gauss: Array
    fixed_point: float

    @property
    def euclidean_length(self) -> Array:
        """Length of the image per sqrt(N), (depth + 1,): 2 pi sqrt(g^E / N), the speed being constant."""
        return 2 * math.pi * np.sqrt(self.euclidean)

    @property
    def gauss_length(self) -> Array:
        """Length of the unit tangent's path, (depth + 1,)."""
        return 2 * math.pi * np.sqrt(self.gauss)


def curve_metrics(net: MeanField, depth: int) -> CurveMetrics:
    """Metrics of a circle's image after 0 to ``depth`` layers.

    With chi_1 = sigma_w^2 E phi'^2 and chi_2 = sigma_w^2 E phi''^2 at q*,

        g^E_l = chi_1 g^E_{l-1},   (N kappa^2)_l = 3 chi_2 / chi_1^2 + (N kappa^2)_{l-1} / chi_1

    so that in the chaotic phase the image grows and its curvature stays, and in the ordered phase it shrinks and bends.

    Args:
        net: without dropout.
        depth: number of layers.

    Raises:
        InputError: an activation with kinks (chi_2 is infinite), dropout, a length that is zero or infinite, depth < 1.

    References: Poole et al. (2016), arXiv:1606.05340, eq. 10 to 13.

    Example:
        >>> from pullback.theory import MeanField
        >>> metrics = MeanField("tanh", 2.5, 0.3).curve_metrics(3)
        >>> [round(float(k), 4) for k in metrics.curvature[1:]], round(metrics.fixed_point, 4)
        ([1.5825, 2.4261, 2.9583], 3.8677)
    """
    where = "curve_metrics"
    check_depth(where, depth)
    if not net.phi.smooth:
        raise input_error(where, "a smooth activation", f"{net.phi.name}, whose slope jumps", "Use tanh, erf or gelu")
    if net.keep_prob < 1:
        raise input_error(where, "a network without dropout", f"keep_prob {net.keep_prob}", "Pass keep_prob=1")
    if net.q_star == 0 or math.isinf(net.q_star):
        raise input_error(where, "a finite length above zero", f"q_star {net.q_star}", "Choose other sigmas")
    chi_1, chi_2 = net.chi, bend_gain(net)
    euclidean = net.q_star * chi_1 ** np.arange(depth + 1.0)
    curvature = np.empty(depth + 1)
    curvature[0] = 1 / net.q_star
    for layer in range(1, depth + 1):
        curvature[layer] = 3 * chi_2 / chi_1**2 + curvature[layer - 1] / chi_1
    fixed = 3 * chi_2 / (chi_1 * (chi_1 - 1)) if chi_1 > 1 else math.inf
    return CurveMetrics(euclidean, curvature, curvature * euclidean, fixed)


def bend_gain(net: MeanField) -> float:
    """chi_2 = sigma_w^2 E phi''(sqrt(q*) z)^2."""
    return net.sigma_w**2 * mean(lambda u: net.phi.bend(u) ** 2, net.q_star, net.phi.kinks).value


def check_depth(where: str, depth: int) -> None:
    """Refuse anything but a positive number of layers."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise input_error(where, "a `depth` of at least 1", repr(depth), "Pass the number of layers")
