"""E phi(u) phi(v) and E phi'(u) phi'(v) for whole matrices of covariances."""

from __future__ import annotations

import math

import numpy as np

from pullback.theory.activations import Activation, Array, Function
from pullback.theory.gaussian import mean, pair_mean
from pullback.theory.hermite import coefficients
from pullback.theory.piecewise import pair_moments, pieces_of

_TERMS = 160
_SERIES_ERROR = 1e-11  # of E phi^2; entries whose series is less exact are integrated one by one


def pair_means(phi: Activation, covariance: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """Expectations over pairs of Gaussians, (N1, N2) each.

    Args:
        phi: the activation.
        covariance: of the pairs, (N1, N2).
        left: variances of the rows, (N1,).
        right: variances of the columns, (N2,).
    """
    norms = np.sqrt(np.outer(left, right))
    correlation = np.clip(np.divide(covariance, norms, out=np.zeros_like(norms), where=norms > 0), -1, 1)
    correlation[correlation > 1 - 32 * np.finfo(float).eps] = 1  # one input twice: an angle would show the rounding
    if phi.homogeneous and phi.kinks:
        return _arc_cosine(phi, norms, correlation)
    pieces = pieces_of(phi)
    if pieces is not None:
        return pair_moments(pieces, left[:, None], right, correlation)
    return _expectation(phi, phi.value, left, right, correlation), _expectation(
        phi, phi.slope, left, right, correlation
    )


def second_moments(phi: Activation, variances: Array) -> Array:
    """E phi(u)^2 for every variance, in an array of the same shape."""
    q = variances.ravel()
    pieces = pieces_of(phi)
    if phi.homogeneous:
        found = q * mean(lambda u: phi.value(u) ** 2, 1.0, phi.kinks).value
    elif pieces is not None:
        found = pair_moments(pieces, q, q, np.ones_like(q))[0]
    else:
        found = coefficients(phi.value, q, phi.kinks, 2)[1]
    return found.reshape(variances.shape)


def _arc_cosine(phi: Activation, norms: Array, c: Array) -> tuple[Array, Array]:
    """phi(u) = a u + b |u| (ReLU: a = b = 1/2): closed forms (Cho and Saul 2009)."""
    positive, negative = (float(phi.value(np.array([u]))[0]) for u in (1.0, -1.0))
    a, b = (positive - negative) / 2, (positive + negative) / 2
    angle = np.arccos(c)
    folded = 2 / math.pi * (np.sqrt(1 - c * c) + c * (math.pi / 2 - angle))  # E |u| |v| of unit variances
    signs = 1 - 2 * angle / math.pi  # E sign(u) sign(v)
    return norms * (a * a * c + b * b * folded), a * a + b * b * signs


def _expectation(phi: Activation, f: Function, left: Array, right: Array, c: Array) -> Array:
    rows, row_whole = coefficients(f, left, phi.kinks, _TERMS)
    columns, column_whole = coefficients(f, right, phi.kinks, _TERMS)
    result, power = np.empty_like(c), np.empty_like(c)
    for i, row in enumerate(rows):  # a row at a time: its powers are (N2, terms)
        powers = np.ones((c.shape[1], _TERMS + 1))
        powers[:, 1:] = c[i][:, None]
        np.cumprod(powers, axis=1, out=powers)
        result[i], power[i] = np.einsum("jk,jk->j", columns * row, powers[:, :-1]), powers[:, -1]
    tails = [np.maximum(0, w - (a * a).sum(1)) for a, w in ((rows, row_whole), (columns, column_whole))]
    loose = np.abs(power) * np.sqrt(np.outer(*tails)) > _SERIES_ERROR * np.maximum(np.abs(result), 1e-30)
    for i, j in zip(*np.nonzero(loose), strict=True):
        result[i, j] = _one(phi, f, float(left[i]), float(right[j]), float(c[i, j]))
    return result


def _one(phi: Activation, f: Function, q1: float, q2: float, c: float) -> float:
    if q1 == q2 and c == 1:
        return mean(lambda u: f(u) ** 2, q1, phi.kinks).value
    return pair_mean(f, q1, q2, c, phi.kinks).value
