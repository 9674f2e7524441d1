"""Batch normalisation at initialisation: what every layer multiplies mean squared gradients by."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pullback._checks import input_error
from pullback.theory.expectations.activations import Activation, Array, Function, activation_of
from pullback.theory.expectations.gaussian import REACH, mean

_NODES = 20  # of a panel
_SHRINKING = tuple(0.2 * 4.0**-k for k in range(7))  # distances of panels from a root
_PANELS = 16


def batch_norm_gradient_factor(
    activation: str | Callable[..., object] | Activation, batch_size: float = math.inf
) -> float:
    """Factor of mean squared gradients per layer of a wide network with batch norm between weights and activation.

    Over a batch of B the normalised inputs of a unit are y = sqrt(B) u, with u uniform on the unit sphere of vectors
    that sum to zero. With D = diag phi'(y) and G = I - 1 1^T / B,

        factor = B / ((B - 3) (B - 1)) E tr[(G - u u^T) D G D] / (E phi(y_1)^2 - E phi(y_1) phi(y_2))

    which tends to E phi'(z)^2 / Var phi(z). It is above 1 for every activation but affine ones (Gaussian Poincare
    inequality): batch norm by itself makes gradients explode with depth, whatever the weights' variance.

    Args:
        activation: as of ``MeanField``.
        batch_size: B, at least 4; inf for the limit.

    Raises:
        InputError: ``batch_size`` below 4 or no whole number; a constant activation.

    References: Yang et al. (2019), arXiv:1902.08129; the factor at finite B is derived in docs/theory.md.

    Example:
        >>> round(batch_norm_gradient_factor("linear", 8), 6), round(batch_norm_gradient_factor("relu"), 6)
        (1.2, 1.466942)
    """
    where = "batch_norm_gradient_factor"
    phi = activation_of(activation, where)
    if math.isinf(batch_size):
        first = mean(phi.value, 1.0, phi.kinks).value
        variance = mean(lambda u: phi.value(u) ** 2, 1.0, phi.kinks).value - first**2
        _check_spread(variance, phi, where)
        return mean(lambda u: phi.slope(u) ** 2, 1.0, phi.kinks).value / variance
    if batch_size != int(batch_size) or batch_size < 4:
        raise input_error(where, "a `batch_size` of at least 4", repr(batch_size), "Pass a larger batch")
    B = int(batch_size)  # the batch's size, as in the formula
    sphere = _Sphere(B, phi.kinks)
    variance = sphere.single(lambda y: phi.value(y) ** 2) - sphere.pair(phi.value)
    _check_spread(variance, phi, where)
    own = sphere.single(lambda y: ((1 - 1 / B) - y * y / B) * phi.slope(y) ** 2)
    other = sphere.pair(phi.slope) + sphere.pair(lambda y: y * phi.slope(y))
    return float(B / ((B - 3) * (B - 1)) * ((B - 1) * own + (B - 1) / B * other) / variance)


def _check_spread(variance: float, phi: Activation, where: str) -> None:
    if variance <= 1e-14:
        raise input_error(where, "an activation that is not constant", phi.name, "Use another one")


class _Sphere:
    """Expectations over one and two entries of y = sqrt(B) u. Entries have variance 1 and correlation -1/(B - 1)."""

    def __init__(self, B: int, kinks: tuple[float, ...]) -> None:
        self.dimension = B - 1  # of the sphere's space
        self.radius = math.sqrt(B - 1)
        self.correlation = -1 / (B - 1)
        self.kinks = kinks
        inside = [k for k in {0.0, *kinks} if abs(k) < self.radius]
        cuts = [math.asin(k / self.radius) for k in inside]
        # where a kink of the second entry leaves its range the inner integral has a root, and panels shrink towards it
        rho, rest = self.correlation, math.sqrt(1 - self.correlation**2)
        for k in inside:
            away = rest * math.sqrt(self.radius**2 - k * k)
            ends = [math.asin((rho * k + side * away) / self.radius) for side in (1, -1)]
            cuts += [end + step for end in ends for step in (0.0, *_SHRINKING, *(-s for s in _SHRINKING))]
        grid = self._grid(self.dimension)
        within = [cut for cut in cuts if grid[0] < cut < grid[-1]]
        self.angles, weights = _panels(np.array(sorted({*grid, *within})))
        weights = weights * np.cos(self.angles) ** (self.dimension - 2)
        self.weights = weights / weights.sum()

    @staticmethod
    def _grid(dimension: int) -> Array:
        """Angles at which panels end: the density is narrow in many dimensions."""
        reach = min(math.pi / 2, REACH / math.sqrt(dimension))
        return np.linspace(-reach, reach, _PANELS + 1)

    def single(self, f: Function) -> float:
        """E f(y_1)."""
        return float(self.weights @ f(self.radius * np.sin(self.angles)))

    def pair(self, f: Function) -> float:
        """E f(y_1) f(y_2): y_2 given y_1 is an entry of a sphere of one dimension less."""
        rho, rest = self.correlation, math.sqrt(1 - self.correlation**2)
        first = self.radius * np.sin(self.angles)
        centre, spread = (rho * first)[:, None], (self.radius * rest * np.cos(self.angles))[:, None]
        cuts = np.arcsin(np.clip((np.array(sorted({0.0, *self.kinks})) - centre) / spread, -1, 1))
        grid = self._grid(self.dimension - 1)
        ends = np.concatenate([np.broadcast_to(grid, (len(first), len(grid))), np.clip(cuts, grid[0], grid[-1])], 1)
        angles, weights = _panels(np.sort(ends, 1))  # a cut at an end makes a panel of no width
        weights = weights * np.cos(angles) ** (self.dimension - 3)
        second = (weights * f(centre + spread * np.sin(angles))).sum(1) / weights.sum(1)
        return float(self.weights @ (f(first) * second))


def _panels(ends: Array) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights of the panels between ``ends``, along the last axis."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    half, middle = np.diff(ends)[..., None] / 2, ((ends[..., 1:] + ends[..., :-1]) / 2)[..., None]
    nodes, weights = middle + half * x, half * w
    return nodes.reshape(*ends.shape[:-1], -1), weights.reshape(*ends.shape[:-1], -1)
