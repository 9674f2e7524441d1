"""Riemannian geometry of a curve on its way through a wide random network: metrics and curvature by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pullback._results import Shown
from pullback.theory.expectations.activations import Array


@dataclass(frozen=True)
class CurveMetrics(Shown):
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


def curve_metrics(q: float, chi_1: float, chi_2: float, depth: int) -> CurveMetrics:
    """Metrics of a circle's image after 0 to ``depth`` layers; see ``MeanField.curve_metrics``.

    Args:
        q: length that layers settle at.
        chi_1: sigma_w^2 E phi'^2.
        chi_2: sigma_w^2 E phi''^2.
        depth: number of layers.
    """
    euclidean = q * chi_1 ** np.arange(depth + 1.0)
    curvature = np.empty(depth + 1)
    curvature[0] = 1 / q
    for layer in range(1, depth + 1):
        curvature[layer] = 3 * chi_2 / chi_1**2 + curvature[layer - 1] / chi_1
    fixed = 3 * chi_2 / (chi_1 * (chi_1 - 1)) if chi_1 > 1 else math.inf
    return CurveMetrics(euclidean, curvature, curvature * euclidean, fixed)
