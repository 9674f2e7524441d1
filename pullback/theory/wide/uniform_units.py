"""Units of a first layer whose weights are uniform: over few inputs their sums are not Gaussian, and units are drawn.

Later layers sum over the units of a wide one, so that what they are drawn from shows in its variance alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pullback.theory.expectations.activations import Activation, Array

MOST_INPUTS = 32  # of a unit: Gaussian sums over more are nearer than drawn ones
UNITS = 2**16  # drawn, each with its mirror image
_AT_ONCE = 2**22  # numbers of units that are worked on together


@dataclass(frozen=True)
class UniformUnits:
    """Units u = W x + b of a layer, W and b uniform around 0, for two sets of inputs.

    Attributes:
        of: the covariances between the sets, as the signal has them: behind another layer these are other numbers.
        left: what a unit sums over at each position, (N1, P, K).
        right: likewise, (N2, P, K).
        weight: largest weight.
        bias: largest bias.
    """

    of: Array
    left: Array
    right: Array
    weight: float
    bias: float

    def activated(self, phi: Activation) -> tuple[Array, ...]:
        """Means over units: of phi(u) phi(u') and of slopes, at equal positions, (N1, N2, P); of both sets' phi^2, phi.

        The last four are (N1, P), (N2, P) twice.
        """
        sums: list[Array] = []
        for units in self._drawn():
            values, slopes = ([function(u) for u in units] for function in (phi.value, phi.slope))
            squares, means = [(v * v).sum(0) for v in values], [v.sum(0) for v in values]
            parts = [_products(*values), _products(*slopes), *squares, *means]
            sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
        return tuple(total / (2 * UNITS) for total in sums)

    def _drawn(self) -> Iterator[tuple[Array, Array]]:
        """Units of both sets, (M, N, P) each, some at a time."""
        inputs, sides = self.left.shape[2], (self.left, self.right)
        points = _points(inputs + 1)
        at_once = max(1, _AT_ONCE // sum(side[..., 0].size for side in sides))
        for start in range(0, UNITS, at_once):
            some = points[start : start + at_once]
            weights, biases = self.weight * some[:, :inputs], self.bias * some[:, inputs, None, None]
            a, b = (np.einsum("npk,mk->mnp", x, weights, optimize=True) + biases for x in sides)
            yield a, b
            yield -a, -b


def _products(a: Array, b: Array) -> Array:
    """Sums over units of products of equal positions, (M, N1, P) and (M, N2, P) to (N1, N2, P)."""
    return np.einsum("map,mbp->abp", a, b, optimize=True)


@lru_cache(maxsize=2)
def _points(axes: int) -> Array:
    """Points spread evenly over the cube from -1 to 1, (UNITS, axes), scrambled by a seed of their own."""
    from scipy.stats import qmc  # loads half of SciPy with it

    return 2 * qmc.Sobol(axes, seed=np.random.default_rng(0)).random_base2(round(math.log2(UNITS))) - 1


def units_of(of: Array, left: Array, right: Array, weight: float, bias: float) -> UniformUnits | None:
    """Units whose weights and biases have these variances.

    None over more than ``MOST_INPUTS``, and where pairs of positions are followed: those are taken for Gaussian.
    """
    if left.shape[2] > MOST_INPUTS or of.ndim > 3:
        return None
    return UniformUnits(of, left, right, math.sqrt(3 * weight), math.sqrt(3 * bias))
