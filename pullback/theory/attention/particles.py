"""Tokens as particles on the sphere that attract each other (Geshkovski, Letrouit, Polyanskiy, Rigollet 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import linprog

from pullback._checks import input_error
from pullback._results import Shown
from pullback.theory.expectations.activations import Array

TOLERANCE = 1e-9  # of the integration, relative and absolute
REPEATED = 100  # times the tolerance of the second integration, whose difference is the error


@dataclass(frozen=True)
class Clustering(Shown):
    """Tokens on the sphere at times t.

    Attributes:
        times: (T,).
        tokens: unit vectors, (T, n, d).
        cosines: least cosine of two tokens at each time, (T,); 1 when all are one.
        error: largest difference of a coordinate to an integration at a hundred times the tolerance.
    """

    times: Array
    tokens: Array
    cosines: Array
    error: float

    def time_to(self, cosine: float) -> float:
        """First time among ``times`` from which on all cosines are above a number; inf if none.

        Raises:
            InputError: a number that is no cosine.
        """
        if not -1 <= cosine <= 1:
            raise input_error("time_to", "a cosine", repr(cosine), "Pass a number from -1 to 1")
        below = np.flatnonzero(self.cosines < cosine)
        first = below[-1] + 1 if len(below) else 0
        return float(self.times[first]) if first < len(self.times) else math.inf


def cluster_tokens(tokens: object, times: object, *, beta: float = 1.0) -> Clustering:
    """Self-attention with Q = K = V = I and layer norm, in the limit of many thin layers with skips.

        dx_i/dt = P_i sum_j softmax_j(beta <x_i, x_j>) x_j,    P_i = 1 - x_i x_i^T.

    Tokens in an open hemisphere become one, exponentially fast (theorem of the paper); in high dimension random ones
    are in one.

    Args:
        tokens: at time 0, (n, d), d >= 2; scaled to length 1.
        times: ascending, (T,), from 0 on.
        beta: inverse temperature; 1 / sqrt(d_k) times the size of queries and keys.

    Returns:
        Clustering.

    Raises:
        InputError: fewer than two tokens, a token of length 0, times that do not ascend or are negative.

    Cost: n^2 d a step of SciPy's DOP853, twice.

    Example:
        >>> found = cluster_tokens([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], [0.0, 2.0, 30.0])
        >>> [f"{c:.3f}" for c in found.cosines]
        ['0.000', '0.951', '1.000']
    """
    where = "cluster_tokens"
    x0, t = np.asarray(tokens, dtype=float), np.asarray(times, dtype=float)
    if x0.ndim != 2 or len(x0) < 2 or x0.shape[1] < 2 or not np.isfinite(x0).all():
        raise input_error(
            where, "finite tokens (n, d), two or more, d at least 2", f"shape {x0.shape}", "Pass a row a token"
        )
    lengths = np.linalg.norm(x0, axis=1, keepdims=True)
    if not lengths.min() > 0:
        raise input_error(where, "tokens with a direction", "one of length 0", "Leave it out")
    if t.ndim != 1 or not len(t) or t[0] < 0 or (np.diff(t) <= 0).any():
        raise input_error(where, "`times` that ascend, from 0 on", f"{t}", "Sort them")
    if not (beta >= 0 and math.isfinite(beta)):
        raise input_error(where, "`beta` of at least 0", repr(beta), "Pass an inverse temperature")
    first, second = (_integrated(x0 / lengths, t, beta, TOLERANCE * factor) for factor in (1, REPEATED))
    products = first @ first.transpose(0, 2, 1)
    return Clustering(t, first, products.min((1, 2)), float(np.abs(first - second).max()))


def _integrated(x0: Array, t: Array, beta: float, tolerance: float) -> Array:
    """At times t, (T, n, d), on the sphere."""

    def velocity(_: float, flat: Array) -> Array:
        x = flat.reshape(x0.shape)
        scores = beta * (x @ x.T)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        pull = (weights / weights.sum(1, keepdims=True)) @ x
        return np.asarray(pull - (pull * x).sum(1, keepdims=True) * x).ravel()

    end = max(float(t[-1]), np.finfo(float).tiny)
    solution = solve_ivp(velocity, (0.0, end), x0.ravel(), "DOP853", t_eval=t, rtol=tolerance, atol=tolerance)
    states = solution.y.T.reshape(len(t), *x0.shape)
    return np.asarray(states / np.linalg.norm(states, axis=2, keepdims=True))


def simplex_cosine(tokens: int, times: object, *, beta: float = 1.0, cosine: float = 0.0) -> Array:
    """Cosine of tokens that all have the same one with each other, by its own equation: one number, not n vectors.

        dg/dt = 2 e^(beta g) (1 - g) ((n - 1) g + 1) / (e^beta + (n - 1) e^(beta g)).

    In high dimension random tokens start there, at g = 0.

    Args:
        tokens: n, at least 2.
        times: ascending, (T,), from 0 on.
        beta: as of ``cluster_tokens``.
        cosine: at time 0, from -1 / (n - 1) to 1.

    Returns:
        (T,).

    Raises:
        InputError: fewer than two tokens, a cosine that n tokens cannot all have.

    References: Geshkovski et al. (2023), arXiv:2312.10794, section on high dimension.

    Example:
        >>> [f"{g:.4f}" for g in simplex_cosine(8, [0.0, 1.0, 10.0])]
        ['0.0000', '0.3626', '1.0000']
    """
    where = "simplex_cosine"
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 2:
        raise input_error(where, "`tokens` of at least 2", repr(tokens), "Pass a whole number")
    if not -1 / (tokens - 1) <= cosine <= 1:
        expected = f"a cosine from {-1 / (tokens - 1):.4g} to 1 for {tokens} tokens"
        raise input_error(where, expected, repr(cosine), "Pass one they can have")
    t = np.asarray(times, dtype=float)

    def slope(_: float, g: Array) -> Array:
        pull = np.exp(beta * (g - 1))  # over e^beta
        return np.asarray(2 * pull * (1 - g) * ((tokens - 1) * g + 1) / (1 + (tokens - 1) * pull))

    end = max(float(t[-1]), np.finfo(float).tiny)
    solution = solve_ivp(slope, (0.0, end), [cosine], "DOP853", t_eval=t, rtol=TOLERANCE, atol=TOLERANCE)
    return np.asarray(solution.y[0])


def in_hemisphere(tokens: object) -> bool:
    """Whether some direction has a positive inner product with every token, (n, d), decided by a linear program.

    Raises:
        InputError: a token of length 0.

    Example:
        >>> in_hemisphere([[1.0, 0.0], [0.0, 1.0]]), in_hemisphere([[1.0, 0.0], [-1.0, 0.0]])
        (True, False)
    """
    x = np.asarray(tokens, dtype=float)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not lengths.min() > 0:
        raise input_error("in_hemisphere", "tokens with a direction", "one of length 0", "Leave it out")
    n, d = x.shape
    # the largest margin m with <w, x_i> >= m, |w|_inf <= 1
    goal = np.append(np.zeros(d), -1.0)
    solution = linprog(
        goal, np.hstack([-x / lengths, np.ones((n, 1))]), np.zeros(n), bounds=[(-1, 1)] * d + [(None, 1)]
    )
    return bool(-solution.fun > n * d * np.finfo(float).eps * 1e3)
