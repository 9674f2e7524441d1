"""Gradients on their way back through a wide random network whose layers differ in width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pullback._checks import input_error
from pullback.theory.expectations.activations import Array

if TYPE_CHECKING:
    from pullback.theory.mean_field.network import MeanField


def backward_profile(net: MeanField, widths: Sequence[int], lengths: Sequence[float] | None = None) -> Array:
    """Mean square of dE/dh^l for l = 1 .. L, relative to that of dE/dh^L, (L,).

    With N_l units in layer l, q_l the length of h^l and rho the probability that dropout keeps a unit,

        g_l = g_{l+1} (N_{l+1} / N_l) (sigma_w^2 / rho) E phi'(sqrt(q_l) z)^2

    since a unit feeds N_{l+1} others by weights of variance sigma_w^2 / N_l. It holds for weights that are independent
    of what comes back, as random ones are to leading order in the widths. The mean square of dE/dW^{l+1} is then
    g_{l+1} E phi(sqrt(q_l) z)^2.

    Args:
        net: the infinitely wide network.
        widths: N_1 to N_L.
        lengths: q_1 to q_L; None for q* in every layer.

    Raises:
        InputError: no widths, or one below 1; lengths of another number, negative or not finite.

    References: Schoenholz et al. (2017), arXiv:1611.01232, eq. 15.

    Example:
        >>> from pullback.theory import MeanField
        >>> profile = backward_profile(MeanField("tanh", 1.3, 0.3), [1000, 400, 1200, 600])
        >>> bool(np.allclose(profile, [0.49804, 1.32486, 0.46990, 1.0], atol=1e-5))
        True
    """
    where = "backward_profile"
    N = np.asarray(widths, dtype=np.float64)  # as in the formula
    if N.ndim != 1 or not N.size or not (N >= 1).all():
        raise input_error(where, "`widths` of at least 1", repr(widths), "Pass the number of units of every layer")
    q = np.full(len(N), net.q_star) if lengths is None else np.asarray(lengths, dtype=np.float64)
    if q.shape != N.shape or (lengths is not None and not (np.isfinite(q) & (q >= 0)).all()):
        got = f"shape {q.shape}" if q.shape != N.shape else repr(lengths)
        raise input_error(where, f"{len(N)} finite `lengths`", got, "Pass one for every layer")
    profile = np.ones(len(N))
    for k in range(len(N) - 2, -1, -1):
        slope = net.chi / net.sigma_w**2 if lengths is None else net.phi_slope_square(float(q[k]))
        profile[k] = profile[k + 1] * N[k + 1] / N[k] * net.sigma_w**2 / net.keep_prob * slope
    return profile
