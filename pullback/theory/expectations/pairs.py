"""E phi(u) phi(v) and E phi'(u) phi'(v) for whole matrices of covariances."""

from __future__ import annotations

import numpy as np

from pullback.theory.expectations.activations import Activation, Array, Function
from pullback.theory.expectations.closed_forms import closed_form
from pullback.theory.expectations.gaussian import mean, pair_mean
from pullback.theory.expectations.hermite import coefficients

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
    c, pairs = _correlations(covariance, left, right), closed_form(phi)
    if pairs is not None:
        return pairs(left[:, None], right, c)
    return _expectation(phi, phi.value, left, right, c), _expectation(phi, phi.slope, left, right, c)


def pair_values(phi: Activation, covariance: Array, left: Array, right: Array) -> Array:
    """The first of the two alone, (N1, N2)."""
    c, pairs = _correlations(covariance, left, right), closed_form(phi)
    return _expectation(phi, phi.value, left, right, c) if pairs is None else pairs(left[:, None], right, c)[0]


def _correlations(covariance: Array, left: Array, right: Array) -> Array:
    norms = np.sqrt(np.outer(left, right))
    c = np.clip(np.divide(covariance, norms, out=np.zeros_like(norms), where=norms > 0), -1, 1)
    c[c > 1 - 32 * np.finfo(float).eps] = 1  # one input twice: an angle would show the rounding
    return c


def second_moments(phi: Activation, variances: Array) -> Array:
    """E phi(u)^2 for every variance, in an array of the same shape."""
    q, pairs = variances.ravel(), closed_form(phi)
    moments = coefficients(phi.value, q, phi.kinks, 2)[1] if pairs is None else pairs(q, q, np.ones_like(q))[0]
    return moments.reshape(variances.shape)


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
