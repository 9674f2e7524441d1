"""Lengths, correlations and gradients layer by layer, from inputs of any length: what ``measure`` finds in networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.theory.checks import check_depth
from pullback.theory.expectations.activations import Array
from pullback.theory.expectations.pairs import pair_values
from pullback.theory.mean_field.backward_profile import backward_profile
from pullback.theory.mean_field.residual import LONGEST

if TYPE_CHECKING:
    from pullback.theory.mean_field.network import MeanField


@dataclass(frozen=True)
class SignalProfile(Shown):
    """Signals in layers 1 to L of a wide random network.

    Attributes:
        q: mean square of the pre-activations, (L,).
        c: correlation of two inputs' pre-activations, (L,).
        gradients: mean square of dE/dh^l relative to dE/dh^L, (L,), for layers of one width.
    """

    q: Array
    c: Array
    gradients: Array


def signal_profile(net: MeanField, depth: int, *, q0: float = 1.0, c0: float = 0.5) -> SignalProfile:
    """Signals of two inputs of mean square ``q0`` and correlation ``c0``, which need not be at the fixed point.

        q_1 = sigma_w^2 q0 / rho + sigma_b^2,   q_l = (sigma_w^2 / rho) E phi(sqrt(q_{l-1}) z)^2 + sigma_b^2,
        q_l c_l = sigma_w^2 E phi(u) phi(u') + sigma_b^2,   u, u' of length q_{l-1} and correlation c_{l-1}

    and gradients by ``backward_profile``. rho is the probability that dropout keeps a unit; its masks are independent
    for the two inputs, or one with ``net.shared_mask`` (then sigma_w^2 / rho stands there too).

    Args:
        net: the infinitely wide network.
        depth: L, the number of weight matrices.
        q0: mean square of the inputs.
        c0: their correlation.

    Raises:
        InputError: depth < 1; q0 that is not positive; c0 outside [-1, 1]; lengths beyond 1e100.

    Cost: a few milliseconds a layer.

    References: Poole et al. (2016), arXiv:1606.05340, eq. 3 and 5; Schoenholz et al. (2017), arXiv:1611.01232.

    Example:
        >>> from pullback.theory import MeanField
        >>> profile = signal_profile(MeanField("relu", 2**0.5), 3, q0=2.0)
        >>> bool(np.allclose(profile.q, 4.0) and np.allclose(profile.gradients, 1.0))
        True
    """
    where = "signal_profile"
    check_depth(where, depth)
    check_positive(where, "q0", q0)
    if not -1 <= c0 <= 1:
        raise input_error(where, "a correlation `c0` from -1 to 1", repr(c0), "Pass a correlation")
    weight, bias = net.sigma_w**2, net.sigma_b**2
    q, covariance = np.empty(depth), np.empty(depth)
    q[0], covariance[0] = weight / net.keep_prob * q0 + bias, net.pair_gain * c0 * q0 + bias
    for k in range(1, depth):
        q[k] = net.q_map(float(q[k - 1]))
        both = pair_values(net.phi, covariance[k - 1 : k, None], q[k - 1 : k], q[k - 1 : k])
        covariance[k] = net.pair_gain * both[0, 0] + bias
        if not q[k] <= LONGEST:
            got = f"more than {LONGEST:g} after {k + 1} layers"
            raise input_error(where, "lengths that stay finite", got, "Lower `sigma_w` or `depth`")
    return SignalProfile(q, covariance / q, backward_profile(net, [1] * depth, list(q)))
