"""Singular values of the Jacobian of many layers: moments for any activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pullback._checks import check_option, input_error
from pullback.theory.curves import check_depth
from pullback.theory.gaussian import mean

if TYPE_CHECKING:
    from pullback.theory.mean_field import MeanField


@dataclass(frozen=True)
class JacobianMoments:
    """Squared singular values s^2 of J = D_L W_L ... D_1 W_1 at infinite width.

    Attributes:
        mean: E s^2 = chi_1^L: below 1 signals vanish backwards, above they explode.
        variance: of s^2.
        relative_variance: variance / mean^2: how ill-conditioned the layers are together; 0 is dynamical isometry
            where the mean is 1.
    """

    mean: float
    variance: float
    relative_variance: float


def jacobian_moments(net: MeanField, depth: int, init: str = "gaussian") -> JacobianMoments:
    """First two moments of the squared singular values of ``depth`` layers.

        E s^2 = (sigma_w^2 mu_1)^L,   Var s^2 / (E s^2)^2 = L (mu_2 / mu_1^2 - 1 - s_1),   mu_k = E phi'^{2k}

    with s_1 = -1 for Gaussian weights and 0 for orthogonal ones, the input's length being q*.

    Args:
        net: without dropout.
        depth: L.
        init: "gaussian" or "orthogonal".

    Raises:
        InputError: depth < 1; an unknown ``init``; dropout; lengths that grow without bound (but ReLU's, whose slopes
            do not depend on them).

    References: Pennington, Schoenholz and Ganguli (2018), arXiv:1802.09979.

    Example:
        >>> from pullback.theory import MeanField
        >>> net = MeanField("relu", 2**0.5)
        >>> [round(net.jacobian_moments(8, init).relative_variance, 6) for init in ("gaussian", "orthogonal")]
        [16.0, 8.0]
    """
    where = "jacobian_moments"
    check_depth(where, depth)
    check_option(where, "init", init, ("gaussian", "orthogonal"))
    if net.keep_prob < 1:
        raise input_error(where, "a network without dropout", f"keep_prob {net.keep_prob}", "Pass keep_prob=1")
    if math.isinf(net.q_star) and not net.phi.homogeneous:
        raise input_error(where, "lengths that settle", "q_star inf", "Lower sigma_w")
    mu_1 = net.phi_slope_square(_length(net))
    mu_2 = _slope_fourth(net)
    spread = mu_2 / mu_1**2 - 1 + (1 if init == "gaussian" else 0)
    first = net.chi**depth
    return JacobianMoments(first, first**2 * depth * spread, depth * spread)


def _length(net: MeanField) -> float:
    return 1.0 if math.isinf(net.q_star) and net.phi.homogeneous else net.q_star


def _slope_fourth(net: MeanField) -> float:
    """E phi'^4."""
    q = _length(net)
    if q == 0:
        return net.phi_slope_square(0.0) ** 2 if net.phi.smooth else net.phi_slope_square(0.0)
    return mean(lambda u: net.phi.slope(u) ** 4, q, net.phi.kinks).value
