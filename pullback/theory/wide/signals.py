"""Signals in infinitely wide networks: covariances of units and tangent kernels, and what each layer does to them.

Units of one layer are alike, so that all there is to know of a layer are, for pairs of inputs (and of pixels), the mean
over units of x x' (NNGP) and of the inner product of their gradients (NTK), and of single inputs the mean of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pullback.theory.expectations.activations import Array
from pullback.theory.wide.pixels import Places, filtered
from pullback.theory.wide.uniform_units import UniformUnits


class NeedsPairsError(Exception):
    """A layer mixes pixels, and covariances of equal pixels alone were followed."""


@dataclass(frozen=True)
class Side:
    """What is known of the inputs of one side by themselves.

    Attributes:
        covariance: mean over units of x(p) x(p'), (N, P, P), or of equal pixels, (N, P).
        means: of x over units, (N, P), computed when asked for: sums and norms alone do.
    """

    covariance: Array
    means: Callable[[], Array]

    @cached_property
    def mean(self) -> Array:
        """Of x over units, (N, P)."""
        return self.means()

    @property
    def variances(self) -> Array:
        """Mean squares, (N, P)."""
        whole = self.covariance
        return whole if whole.ndim == 2 else np.diagonal(whole, axis1=1, axis2=2)


@dataclass(frozen=True)
class Signal:
    """A layer's outputs for two sets of inputs.

    Attributes:
        nngp: (N1, N2, P, P), or of equal pixels (N1, N2, P).
        ntk: of one unit, likewise.
        left: of the first set.
        right: of the second.
        size: of the image, () without positions.
        channels_last: whether units are the last axis, and not the one after the samples.
        flat: whether units and pixels stand in one axis.
        gaussian: whether units are Gaussian with mean 0, as behind a layer with random weights.
        origins: layers whose weights its units have for themselves; signals that share one are not independent.
        units: of a layer whose weights are not Gaussian; they are the signal's as long as its ``nngp`` is theirs.
    """

    nngp: Array
    ntk: Array
    left: Side
    right: Side
    size: tuple[int, ...] = ()
    channels_last: bool = False
    flat: bool = False
    gaussian: bool = False
    origins: frozenset[str] = frozenset()
    units: UniformUnits | None = None

    @property
    def pairs(self) -> bool:
        """Whether pairs of different pixels are followed."""
        return self.nngp.ndim == 4

    @property
    def pixels(self) -> int:
        """Positions of an image."""
        return math.prod(self.size)


@dataclass(frozen=True)
class Weighted:
    """Numbers of a layer with random weights.

    Attributes:
        weight: variance of its weights times the number of units they sum over, pixels not counted.
        bias: variance of its biases.
        own_weight: mean square of the derivative in its weights over that of the units, 0 if they are not trained;
            (L, 1, 1, 1) for L tangent kernels, each with the part of some layers.
        own_bias: the same for its biases.
        name: of the layer.
    """

    weight: float
    bias: float
    own_weight: float | Array
    own_bias: float | Array
    name: str


def of_inputs(x1: Array, x2: Array, *, channels_last: bool, pairs: bool) -> Signal:
    """Inputs (N, D), (N, C, ...) or (N, ..., D), as they are: units are fixed numbers."""
    a, b = (np.moveaxis(x, -1, 1) if channels_last else x for x in (x1, x2))
    size = a.shape[2:]
    a, b = (x.reshape(*x.shape[:2], -1) for x in (a, b))  # (N, C, P)
    pairs = pairs and bool(size)
    form = "acp,bcq->abpq" if pairs else "acp,bcp->abp"
    cross = np.einsum(form, a, b, optimize=True) / a.shape[1]

    def side(x: Array) -> Side:
        form = "acp,acq->apq" if pairs else "acp,acp->ap"
        return Side(np.einsum(form, x, x, optimize=True) / x.shape[1], lambda: x.mean(1))

    return Signal(cross, np.zeros_like(cross), side(a), side(b), size, channels_last)


def _mapped(s: Signal, function: Callable[[Array], Array], mean: Callable[[Array], Array]) -> Signal:
    """A linear map of pixels, the same for every covariance."""

    def side(given: Side) -> Side:
        return Side(function(given.covariance), lambda: mean(given.mean))

    return replace(s, nngp=function(s.nngp), ntk=function(s.ntk), left=side(s.left), right=side(s.right))


def weighted(s: Signal, layer: Weighted, function: Callable[[Array], Array], size: tuple[int, ...]) -> Signal:
    """A layer with random weights; ``function`` sums over the pixels that one output meets."""
    moved = _mapped(s, function, lambda mean: mean)

    def own(covariance: Array) -> Array:
        return layer.weight * covariance + layer.bias

    def side(given: Side) -> Side:
        whole = own(given.covariance)
        variances = whole if whole.ndim == 2 else whole[:, 0]
        return Side(whole, lambda: np.zeros_like(variances))

    return replace(
        moved,
        nngp=own(moved.nngp),
        ntk=layer.own_weight * moved.nngp + layer.own_bias + layer.weight * moved.ntk,
        left=side(moved.left), right=side(moved.right), size=size, flat=False, gaussian=True,
        origins=frozenset({layer.name}),
    )  # fmt: skip


def dense(s: Signal, layer: Weighted) -> Signal:
    """A linear layer: of units at each position, or of units and pixels together where they were flattened."""
    if not s.flat:
        return weighted(s, layer, lambda covariance: covariance, s.size)

    equal = _equal_pixels(s) if s.pairs else s
    return weighted(equal, layer, lambda covariance: covariance.sum(-1, keepdims=True), ())


def _equal_pixels(s: Signal) -> Signal:
    """Covariances of equal pixels alone."""

    def diagonal(covariance: Array) -> Array:
        return np.diagonal(covariance, axis1=-2, axis2=-1)

    return _mapped(s, diagonal, lambda mean: mean)


def convolution(s: Signal, layer: Weighted, places: Places, size: tuple[int, ...]) -> Signal:
    """A convolution that meets these pixels."""
    return weighted(s, layer, lambda covariance: filtered(covariance, places, pairs=s.pairs), size)


def moved(s: Signal, places: Places, size: tuple[int, ...]) -> Signal:
    """Pixels put elsewhere, such as a border: ``places`` is (1, outputs)."""
    found = _mapped(
        s, lambda covariance: filtered(covariance, places, pairs=s.pairs), lambda m: filtered(m, places, pairs=False)
    )
    return replace(found, size=size)


def pooled(s: Signal, matrix: Array, size: tuple[int, ...]) -> Signal:
    """Sums of pixels by a matrix (outputs, pixels)."""
    if s.pixels == 1 and matrix.shape == (1, 1):
        return replace(scaled(s, float(matrix[0, 0])), size=size)
    if not s.pairs:
        raise NeedsPairsError
    found = _mapped(
        s,
        lambda c: np.einsum("pq,...qr,sr->...ps", matrix, c, matrix, optimize=True),
        lambda mean: mean @ matrix.T,
    )
    return replace(found, size=size)


def scaled(s: Signal, factor: float) -> Signal:
    """A signal times a number."""
    return _mapped(s, lambda covariance: factor**2 * covariance, lambda mean: factor * mean)


def summed(a: Signal, b: Signal, sign: float = 1.0) -> Signal:
    """Independent signals added; what they have in common are their means."""

    def outer(left: Array, right: Array, pairs: bool) -> Array:
        form = "ap,bq->abpq" if pairs else "ap,bp->abp"
        return np.einsum(form, left, right)

    def side(x: Side, y: Side) -> Side:
        pairs = x.covariance.ndim == 3
        form = "ap,aq->apq" if pairs else "ap,ap->ap"
        common = np.einsum(form, x.mean, y.mean) + np.einsum(form, y.mean, x.mean)
        return Side(x.covariance + y.covariance + sign * common, lambda: x.mean + sign * y.mean)

    common = outer(a.left.mean, b.right.mean, a.pairs) + outer(b.left.mean, a.right.mean, a.pairs)
    return replace(
        a, nngp=a.nngp + b.nngp + sign * common, ntk=a.ntk + b.ntk, left=side(a.left, b.left),
        right=side(a.right, b.right), gaussian=a.gaussian and b.gaussian, origins=a.origins | b.origins,
    )  # fmt: skip
