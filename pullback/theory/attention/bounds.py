"""Paths through heads and skips, and how fast attention can draw tokens together (Dong, Cordonnier, Loukas 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.theory.expectations.activations import Array


def attention_paths(layers: int, heads: int, skip: bool = True) -> tuple[int, ...]:
    """How many paths a token's value can take through the heads, by the number of heads on the path.

    A layer of H heads is a sum of H linear maps of the tokens, given its attention matrices, and of the identity with a
    skip. So L layers are a sum over paths: binomial(L, l) H^l of length l, (1 + H)^L in all; without skips H^L, all of
    length L.

    Args:
        layers: L.
        heads: H, of each layer.
        skip: whether each layer has a skip connection.

    Returns:
        Counts by length 0, ..., L.

    Raises:
        InputError: counts below 1.

    Example:
        >>> attention_paths(6, 4), attention_paths(2, 3, skip=False)
        ((1, 24, 240, 1280, 3840, 6144, 4096), (0, 0, 9))
    """
    _check_counts("attention_paths", layers=layers, heads=heads)
    if not skip:
        return (*[0] * layers, heads**layers)
    return tuple(math.comb(layers, length) * heads**length for length in range(layers + 1))


@dataclass(frozen=True)
class CollapseBound(Shown):
    """Bounds from above on the residual after 0, ..., L layers.

    Attributes:
        residual: |X - 1 x^T| in the composite norm sqrt(|.|_1 |.|_inf), (L + 1,); 0 and inf beyond what a number can
            hold.
        log_residual: its natural logarithm, which does not end there.
        exponents: of the contraction's constant, (3^l - 1) / 2 for l = 0, ..., L, without skips.
        informative: whether the residual falls: the constant times the square of the residual at the start is below 1,
            and there are no skips.
    """

    residual: Array
    log_residual: Array
    exponents: tuple[int, ...]
    informative: bool


def rank_collapse_bound(
    residual: float,
    layers: int,
    *,
    heads: int = 1,
    head_dim: int = 1,
    weight_norm: float = 1.0,
    gamma: float = 1.0,
    lipschitz: float = 1.0,
    skip: bool = False,
) -> CollapseBound:
    """How large the residual of tokens can still be after each layer of attention.

    Softmax does not see what all tokens have in common, so an attention layer's residual is of third order in that of
    its input: at most c r^3 with c = 4 gamma beta H lambda / sqrt(d_k). After l layers

        r_l <= c^((3^l - 1) / 2) r_0^(3^l),

    doubly exponential where c r_0^2 < 1, and no bound worth having otherwise. With a skip the residual of the input
    stays in the sum, r <- lambda r + c r^3, which never falls: nothing is promised.

    Args:
        residual: r_0, in the composite norm.
        layers: L.
        heads: H.
        head_dim: d_k.
        weight_norm: beta, at least |W_QK|_1 |W_V|_{1, inf} of every head and layer.
        gamma: of the attention's entries, see the paper; it enters linearly.
        lipschitz: lambda of an MLP after each layer; 1 without.
        skip: whether there is a skip around the attention.

    Returns:
        CollapseBound, (L + 1,).

    Raises:
        InputError: counts below 1, numbers that are not positive.

    Cost: none.

    References: Dong, Cordonnier, Loukas (2021), arXiv:2103.03404, theorem 2.2 and its corollaries.

    Example:
        >>> found = rank_collapse_bound(0.5, 3)
        >>> found.exponents, found.informative, [f"{r:.3g}" for r in found.residual]
        ((0, 1, 4, 13), False, ['0.5', '0.5', '0.5', '0.5'])
        >>> rank_collapse_bound(0.4, 3).informative
        True
    """
    where = "rank_collapse_bound"
    _check_counts(where, layers=layers, heads=heads, head_dim=head_dim)
    for name, value in (
        ("residual", residual),
        ("weight_norm", weight_norm),
        ("gamma", gamma),
        ("lipschitz", lipschitz),
    ):
        check_positive(where, name, value)
    c = 4 * gamma * weight_norm * heads * lipschitz / math.sqrt(head_dim)
    logs = [math.log(residual)]
    for _ in range(layers):
        cubed = math.log(c) + 3 * logs[-1]
        logs.append(float(np.logaddexp(math.log(lipschitz) + logs[-1], cubed)) if skip else cubed)
    found = np.array(logs)
    with np.errstate(over="ignore", under="ignore"):
        sizes = np.exp(found)
    exponents = tuple((3**layer - 1) // 2 for layer in range(layers + 1))
    return CollapseBound(sizes, found, exponents, not skip and c * residual**2 < 1)


def _check_counts(where: str, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise input_error(where, f"`{name}` of at least 1", repr(count), "Pass a whole number")
