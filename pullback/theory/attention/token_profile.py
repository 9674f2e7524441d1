"""Length and cosine of tokens against depth at initialisation, with scaled skips (Noci et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pullback._checks import input_error
from pullback._results import Shown
from pullback.theory.expectations.activations import Array


@dataclass(frozen=True)
class TokenProfile(Shown):
    """Expected inner products of n tokens after 0, ..., L layers, (L + 1,) each.

    Attributes:
        total: C, sum of <x_i, x_j> over all pairs, i = j included: n^2 times the squared length of the mean token; inf
            beyond what a number can hold.
        norms: S, sum of |x_i|^2.
        cosine: (C - S) / ((n - 1) S), mean cosine of two different tokens of equal expected length.
        residual: (S - C / n) / S, the share of the tokens' squared length that is not common to all; queries and keys
            get gradients from it alone, and lose them with it.
        limits: (C, S, cosine) at infinite depth with the strengths as they are: of skips scaled by 1 / sqrt(L); else
            (inf, inf, 1).
    """

    total: Array
    norms: Array
    cosine: Array
    residual: Array
    limits: tuple[float, float, float]


def token_profile(
    tokens: int,
    layers: int,
    *,
    attention: float = 1.0,
    mlp: float = 1.0,
    scaled: bool = False,
    cosine: float = 0.0,
    norm: float = 1.0,
) -> TokenProfile:
    """Expected inner products of tokens through layers x <- x + a1 attention(x), x <- x + a2 MLP(x), in expectation.

    For uniform attention with values W_V ~ N(0, 1 / d), and a linear MLP of the same kind, exactly (E1.35):

        C <- (1 + a1^2) (1 + a2^2) C,    S <- (1 + a2^2) (S + a1^2 C / n).

    Attention adds to what tokens have in common, so that unscaled skips collapse too (cosine to 1), by a fixed factor a
    layer; a = strength / sqrt(L) stops it at a cosine below 1. Attention that is not uniform, and a ReLU in the MLP,
    change the numbers; measure those.

    Args:
        tokens: n, at least 2.
        layers: L.
        attention: strength a1 of the attention branch; divided by sqrt(L) with ``scaled``.
        mlp: strength a2 of the MLP branch; likewise.
        scaled: whether strengths are over the square root of the depth.
        cosine: between any two tokens at the start.
        norm: squared length of a token at the start.

    Returns:
        TokenProfile, (L + 1,).

    Raises:
        InputError: fewer than two tokens or one layer, negative strengths, a cosine that n tokens cannot have.

    References: Noci et al. (2022), arXiv:2206.03126.

    Example:
        >>> for scaled in (False, True):
        ...     print(f"{token_profile(8, 16, scaled=scaled).cosine[-1]:.6f}")
        0.999878
        0.169946
        >>> print(f"{token_profile(8, 16, scaled=True).limits[2]:.6f}")
        0.176809
    """
    where = "token_profile"
    for name, count, least in (("tokens", tokens, 2), ("layers", layers, 1)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise input_error(where, f"`{name}` of at least {least}", repr(count), "Pass a whole number")
    for name, strength in (("attention", attention), ("mlp", mlp)):
        if not (strength >= 0 and math.isfinite(strength)):
            raise input_error(where, f"`{name}` of at least 0", repr(strength), "Pass a strength of the branch")
    if not -1 / (tokens - 1) <= cosine <= 1 or not norm > 0:
        expected = f"a cosine from {-1 / (tokens - 1):.4g} to 1 and a positive norm for {tokens} tokens"
        raise input_error(where, expected, f"{cosine!r} and {norm!r}", "Pass those of tokens that exist")
    depth = layers if scaled else 1
    a1, a2, n = attention**2 / depth, mlp**2 / depth, tokens
    apart = np.empty(layers + 1)  # the residual, S - C / n over S, by its own recursion: no difference of large numbers
    apart[0] = (1 - 1 / n) * (1 - cosine)
    for layer in range(layers):
        apart[layer + 1] = apart[layer] / (1 + a1 * (1 - apart[layer]))
    C0 = n * norm * (1 + (n - 1) * cosine)
    with np.errstate(over="ignore"):
        S = n * norm * (1 + a2) ** np.arange(layers + 1.0) * np.cumprod([1.0, *(1 + a1 * (1 - apart[:-1]))])
        C = C0 * ((1 + a1) * (1 + a2)) ** np.arange(layers + 1.0)
    limits = _limits(attention, mlp, n, C0, n * norm) if scaled else (math.inf, math.inf, 1.0)
    return TokenProfile(C, S, 1 - apart * (n / (n - 1)), apart, limits)


def _limits(attention: float, mlp: float, n: int, C: float, S: float) -> tuple[float, float, float]:
    """At infinite depth, strengths over its square root."""
    total = math.exp(attention**2 + mlp**2) * C
    norms = math.exp(mlp**2) * (S + C / n * math.expm1(attention**2))
    return total, norms, (total - norms) / ((n - 1) * norms)
