"""Residual networks in mean field: lengths, correlations and gradients against depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.theory.checks import check_depth
from pullback.theory.expectations.activations import Activation, Array
from pullback.theory.expectations.pairs import pair_means
from pullback.theory.mean_field.network import MeanField

LONGEST = 1e100  # lengths beyond which a network is of no use


@dataclass(frozen=True)
class ResidualProfile(Shown):
    """A residual network's signals after 0 to ``depth`` blocks, (depth + 1,) each.

    Attributes:
        length: q, mean square of a unit.
        correlation: c of two inputs.
        gradient: mean square of the loss's gradient in a block's inputs, relative to that in the last outputs;
            entry 0 is what arrives at the input.
    """

    length: Array
    correlation: Array
    gradient: Array


def residual_profile(
    activation: str | Callable[..., object] | Activation,
    sigma_w: float,
    sigma_b: float,
    depth: int,
    *,
    scale: float = 1.0,
    length: float = 1.0,
    correlation: float = 0.5,
) -> ResidualProfile:
    """Signals through blocks x <- x + scale (W phi(x) + b), with W ~ N(0, sigma_w^2 / fan_in), b ~ N(0, sigma_b^2).

        q_l = q_{l-1} + scale^2 (sigma_w^2 E phi(sqrt(q_{l-1}) z)^2 + sigma_b^2),   E x x' in the same way,
        g_{l-1} = g_l (1 + scale^2 sigma_w^2 E phi'(sqrt(q_{l-1}) z)^2)

    A bounded activation makes lengths grow linearly and gradients slower than exponentially, and correlations approach
    their limit as a power of depth; ReLU makes both exponential, and a scale of 1 / sqrt(depth) keeps them bounded.

    Args:
        activation: as of ``MeanField``.
        sigma_w: of the weights.
        sigma_b: of the biases.
        depth: number of blocks.
        scale: of the branch.
        length: q of the first block's inputs.
        correlation: c of two inputs, from -1 to 1.

    Raises:
        InputError: depth < 1, a length that is not positive, a correlation outside [-1, 1]; see ``MeanField``.

    References: Yang and Schoenholz (2017), arXiv:1712.08969.

    Example:
        >>> profile = residual_profile("relu", 1.0, 0.0, 10)
        >>> [round(float(x), 4) for x in (profile.length[-1], profile.gradient[0], 1.5**10)]
        [57.665, 57.665, 57.665]
    """
    where = "residual_profile"
    check_depth(where, depth)
    check_positive(where, "scale", scale)
    check_positive(where, "length", length)
    if not -1 <= correlation <= 1:
        raise input_error(where, "a `correlation` from -1 to 1", repr(correlation), "Pass a correlation")
    net = MeanField(activation, sigma_w, sigma_b)
    phi, weight, bias = net.phi, (scale * sigma_w) ** 2, (scale * sigma_b) ** 2
    q, products = np.empty(depth + 1), np.empty(depth + 1)
    growth = np.empty(depth)
    q[0], products[0] = length, correlation * length
    for k in range(depth):
        both, _ = pair_means(phi, products[k : k + 1, None], q[k : k + 1], q[k : k + 1])
        q[k + 1] = q[k] + weight * net.second_moment(float(q[k])).value + bias
        products[k + 1] = products[k] + weight * both[0, 0] + bias
        growth[k] = 1 + weight * net.phi_slope_square(float(q[k]))
        if q[k + 1] > LONGEST:
            got = f"more than {LONGEST:g} after {k + 1} blocks"
            raise input_error(where, "lengths that stay finite", got, "Lower `scale` or `sigma_w`")
    gradient = np.append(np.cumprod(growth[::-1])[::-1], 1.0)
    return ResidualProfile(q, products / q, gradient)
