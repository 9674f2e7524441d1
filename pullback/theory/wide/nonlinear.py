"""Activations and normalisations of infinitely wide layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pullback.theory.expectations.activations import Activation, Array
from pullback.theory.expectations.hermite import coefficients
from pullback.theory.expectations.pairs import pair_means, pair_values, second_moments
from pullback.theory.wide.signals import Side, Signal


def activated(s: Signal, phi: Activation) -> Signal:
    """An activation, of units that are Gaussian or, in a first layer, drawn."""
    if s.units is not None and s.units.of is s.nngp:
        nngp, slopes, *rest = s.units.activated(phi)
        squares, means = rest[:2], rest[2:]
        left, right = (Side(square, lambda mean=mean: mean) for square, mean in zip(squares, means, strict=True))  # type: ignore[misc]
        return replace(s, nngp=nngp, ntk=slopes * s.ntk, left=left, right=right, gaussian=False, units=None)
    nngp, slopes = _pairs(phi, s.nngp, s.left.variances, s.right.variances)
    left, right = (_activated_side(phi, each) for each in (s.left, s.right))
    return replace(s, nngp=nngp, ntk=slopes * s.ntk, left=left, right=right, gaussian=False)


def _pairs(phi: Activation, kernel: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """E phi phi and E phi' phi' of pairs of inputs and pixels with variances ``left`` (N1, P) and ``right`` (N2, P)."""
    if kernel.ndim == 3:
        each = [pair_means(phi, kernel[..., p], left[:, p], right[:, p]) for p in range(left.shape[1])]
        return np.stack([value for value, _ in each], -1), np.stack([slope for _, slope in each], -1)
    n1, n2, pixels, _ = kernel.shape
    matrix = kernel.transpose(0, 2, 1, 3).reshape(n1 * pixels, n2 * pixels)
    moments = pair_means(phi, matrix, left.ravel(), right.ravel())
    values, slopes = (each.reshape(n1, pixels, n2, pixels).transpose(0, 2, 1, 3) for each in moments)
    return values, slopes


def _activated_side(phi: Activation, side: Side) -> Side:
    def mean() -> Array:
        variances = side.variances
        return coefficients(phi.value, variances.ravel(), phi.kinks, 2)[0][:, 0].reshape(variances.shape)

    if side.covariance.ndim == 3:
        each = [pair_values(phi, c, np.diagonal(c), np.diagonal(c)) for c in side.covariance]
        return Side(np.stack(each), mean)
    return Side(second_moments(phi, side.covariance), mean)


@dataclass(frozen=True)
class Normalised:
    """Numbers of a normalisation over units.

    Attributes:
        whole: whether over all positions together, and not at each.
        centred: whether means are taken off (not so in RMS norm).
        eps: added to the variance.
        gain: mean square of its gains.
        bias: variance of its shifts.
        own_gain: 1 if the gains are trained.
        own_bias: 1 if the shifts are.
    """

    whole: bool
    centred: bool
    eps: float
    gain: float
    bias: float
    own_gain: float
    own_bias: float


def normalised(s: Signal, layer: Normalised) -> Signal:
    """Layer norm, RMS norm, group norm: units less their mean, over their root mean square."""

    def prepared(side: Side) -> tuple[Array, Array]:
        """Means taken off and the root that is divided by, (N, P) each."""
        mean = side.mean.mean(1, keepdims=True) if layer.whole else side.mean
        mean = np.broadcast_to(mean, side.mean.shape) * layer.centred
        squares = side.variances - 2 * mean * side.mean + mean**2
        squares = np.broadcast_to(squares.mean(1, keepdims=True), squares.shape) if layer.whole else squares
        return mean, np.sqrt(squares + layer.eps)

    def joined(covariance: Array, form: str, x: Side, y: Side, *, tangent: bool = False) -> Array:
        (mean, root), (mean2, root2) = prepared(x), prepared(y)
        off = np.einsum(form, x.mean, mean2) + np.einsum(form, mean, y.mean) - np.einsum(form, mean, mean2)
        return (covariance - (0 if tangent else off)) / np.einsum(form, root, root2)

    def side(given: Side) -> Side:
        form = "ap,aq->apq" if given.covariance.ndim == 3 else "ap,ap->ap"
        mean, root = prepared(given)
        whole = layer.gain * joined(given.covariance, form, given, given) + layer.bias
        return Side(whole, lambda: math.sqrt(layer.gain) * (given.mean - mean) / root)

    form = "ap,bq->abpq" if s.pairs else "ap,bp->abp"
    plain = joined(s.nngp, form, s.left, s.right)
    tangent = layer.gain * joined(s.ntk, form, s.left, s.right, tangent=True) + layer.own_gain * plain + layer.own_bias
    return replace(s, nngp=layer.gain * plain + layer.bias, ntk=tangent, left=side(s.left), right=side(s.right))
