"""E phi(u) phi(v) and E phi'(u) phi'(v) of pairs of Gaussians, where they have closed forms, for whole arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from pullback.theory.expectations.activations import BUILT_IN, Activation, Array
from pullback.theory.expectations.piecewise import pair_moments, pieces_of

Pairs = Callable[[Array, Array, Array], tuple[Array, Array]]  # variances q, q' and correlation c to both expectations


def closed_form(phi: Activation) -> Pairs | None:
    """The closed form of an activation's pair expectations, or None if none is known.

    References: Williams (1997) for erf; Cho and Saul (2009) for ReLU; Tsuchida et al. (2021), arXiv:2002.08517, for
    GELU, here by Stein's identity: E[u v Phi(u) Phi(v)] in E Phi Phi and the density at 0 of two normals added to u, v.
    """
    if phi.homogeneous and phi.kinks:
        return partial(_arc_cosine, phi)
    for known, pairs in _KNOWN:
        if phi is known:
            return pairs
    pieces = pieces_of(phi)
    return None if pieces is None else partial(pair_moments, pieces)


def _arc_cosine(phi: Activation, left: Array, right: Array, c: Array) -> tuple[Array, Array]:
    """phi(u) = a u + b |u| (ReLU: a = b = 1/2)."""
    positive, negative = (float(phi.value(np.array([u]))[0]) for u in (1.0, -1.0))
    a, b = (positive - negative) / 2, (positive + negative) / 2
    angle = np.arccos(c)
    folded = 2 / math.pi * (np.sqrt(1 - c * c) + c * (math.pi / 2 - angle))  # E |u| |v| of unit variances
    signs = 1 - 2 * angle / math.pi  # E sign(u) sign(v)
    return np.sqrt(left * right) * (a * a * c + b * b * folded), a * a + b * b * signs


def _linear(left: Array, right: Array, c: Array) -> tuple[Array, Array]:
    return c * np.sqrt(left * right), np.ones_like(c * left * right)


def _erf(left: Array, right: Array, c: Array) -> tuple[Array, Array]:
    k = c * np.sqrt(left * right)
    root = np.sqrt(1 + 2 * left + 2 * right + 4 * left * right * (1 - c) * (1 + c))
    return 2 / math.pi * np.arctan2(2 * k, root), 4 / (math.pi * root)


def _gelu(left: Array, right: Array, c: Array) -> tuple[Array, Array]:
    k, apart = c * np.sqrt(left * right), left * right * (1 - c) * (1 + c)  # covariance; determinant
    determinant = 1 + left + right + apart  # of the covariance with 1 added to both variances
    density = 1 / (2 * math.pi * np.sqrt(determinant))
    both = 0.25 + np.arctan2(k, np.sqrt(determinant)) / (2 * math.pi)  # E Phi(u) Phi(v)
    shrunk = 1 / (1 + left) + 1 / (1 + right)
    return k * both + density * (apart + k * k * shrunk), both + density * k * (shrunk + 1 / determinant)


def _sin(left: Array, right: Array, c: Array) -> tuple[Array, Array]:
    k, mean = c * np.sqrt(left * right), (left + right) / 2
    near, far = np.exp(k - mean) / 2, np.exp(-k - mean) / 2
    return near - far, near + far


_KNOWN = tuple(
    (BUILT_IN[name], pairs) for name, pairs in (("linear", _linear), ("erf", _erf), ("gelu", _gelu), ("sin", _sin))
)
