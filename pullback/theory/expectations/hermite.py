"""Hermite coefficients of an activation at many variances at once: series for pairs of Gaussians, in whole arrays."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from pullback.theory.expectations.activations import Array, Function
from pullback.theory.expectations.gaussian import REACH, Nodes, gauss_panels

_SHRINKINGS = 24  # halvings of the panels next to the origin, where activations of long inputs are steep


def coefficients(f: Function, variances: Array, kinks: tuple[float, ...], terms: int) -> tuple[Array, Array]:
    """a_k(q) with f(sqrt(q) z) = sum_k a_k h_k(z), h_k the normalised Hermite polynomials of a standard normal z.

    Then E f(u) f(v) = sum_k a_k(q) a_k(q') c^k for variances q, q' and correlation c.

    Args:
        f: elementwise.
        variances: q, (M,).
        kinks: where f or its slope jumps; () lets all variances share one rule.
        terms: K.

    Returns:
        The coefficients, (M, K), and E f^2, (M,): its excess over the sum of squares is what the series leaves out.
    """
    distinct, place = np.unique(variances, return_inverse=True)
    if kinks:
        each = [_at_one(f, float(q), kinks, terms) for q in distinct]
        found, whole = np.array([a for a, _ in each]), np.array([w for _, w in each])
    else:
        z, weights, polynomials = _shared_rule(terms)
        values = f(np.sqrt(distinct)[:, None] * z)
        found, whole = (values * weights) @ polynomials.T, values**2 @ weights
    return found[place], whole[place]


def _at_one(f: Function, q: float, kinks: tuple[float, ...], terms: int) -> tuple[Array, float]:
    nodes = Nodes.of(q, kinks)
    values = f(nodes.u)
    return _polynomials(nodes.z, terms) @ (nodes.weights * values), float(nodes.weights @ values**2)


@lru_cache(maxsize=4)
def _shared_rule(terms: int) -> tuple[Array, Array, Array]:
    """Nodes z, weights and polynomials (terms, nodes); panels are narrow enough for the last polynomial."""
    even = np.linspace(0, REACH, 21)
    ends = np.unique(np.concatenate([even, even[1] * 0.5 ** np.arange(_SHRINKINGS), -even]))
    ends = np.unique(np.concatenate([ends, -ends]))
    z, weights = gauss_panels(ends)
    return z, weights, _polynomials(z, terms)


def _polynomials(z: Array, terms: int) -> Array:
    """Normalised Hermite polynomials, (terms, nodes)."""
    polynomials = np.empty((terms, len(z)))
    polynomials[0] = 1
    polynomials[1] = z
    for k in range(1, terms - 1):
        polynomials[k + 1] = (z * polynomials[k] - math.sqrt(k) * polynomials[k - 1]) / math.sqrt(k + 1)
    return polynomials
