"""The parity problem: gradients that hardly depend on which parity is to be learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, input_error
from pullback.dynamics.quadratic.values import check_number_of, values

MOST_BITS = 20


@dataclass(frozen=True)
class ParityVariance:
    """Over all 2^d parities of d bits as targets.

    Attributes:
        variance: mean squared distance of the gradient from its mean over targets.
        bound: E|g|^2 / 2^d, which it is below.
        mean: squared length of the mean gradient.
    """

    variance: float
    bound: float
    mean: float


def parity_variance(model: Callable[[Tensor, Tensor], Tensor], w: Any, bits: int) -> ParityVariance:
    """How much the gradient tells about which parity is the target, exactly.

    With targets (-1)^(v x) of bits x, the part of the gradient that knows the target is E_x (-1)^(v x) g(x),
    g the gradient of the model's output (squared or linear loss). These are Fourier coefficients of g, so that, by
    Parseval, their squared lengths add up to E|g|^2: over all 2^d targets v the variance is E|g|^2 / 2^d less
    |g(0)|^2 / 4^d. No method that goes by such gradients can do in few steps what takes 2^d digits to see.

    Args:
        model: parameters (P,) and bits (d,), 0 or 1, -> output, a number.
        w: parameters, (P,).
        bits: d, at most 20.

    Returns:
        ParityVariance.

    Raises:
        InputError: a number of bits out of range; parameters that are not finite, or not (P,).

    Cost: 2^d gradients.

    References: Shalev-Shwartz, Shamir & Shammah (2017), arXiv:1703.07950, theorem 1.

    Example:
        >>> w = torch.linspace(-1, 1, 8, dtype=torch.float64)
        >>> found = parity_variance(lambda w, x: torch.tanh(w @ (2 * x - 1)), w, 8)
        >>> round(found.variance, 8), round(found.bound, 8)
        (0.00813556, 0.00825763)
    """
    where = "parity_variance"
    bits = check_count(where, "bits", bits, 1, MOST_BITS)
    at = values(w, "w", where)
    if at.dim() != 1:
        raise input_error(where, "`w` (P,)", f"shape {tuple(at.shape)}", "Pass one vector of parameters")
    places = torch.arange(2**bits)[:, None] >> torch.arange(bits)
    x = (places & 1).to(at.dtype)
    check_number_of(where, "model", model, at, x[0])
    g = torch.func.vmap(torch.func.grad(model), (None, 0))(at, x)
    bound = float(g.square().sum(1).mean()) / 2**bits
    mean = float(g[0].square().sum()) / 4**bits
    return ParityVariance(bound - mean, bound, mean)
