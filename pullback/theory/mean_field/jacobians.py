"""Singular values of the Jacobian of many layers: moments for any activation."""

from __future__ import annotations

from dataclasses import dataclass

from pullback._results import Shown


@dataclass(frozen=True)
class JacobianMoments(Shown):
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


def jacobian_moments(chi: float, mu_1: float, mu_2: float, depth: int, init: str) -> JacobianMoments:
    """First two moments of the squared singular values of ``depth`` layers; see ``MeanField.jacobian_moments``.

    Args:
        chi: sigma_w^2 mu_1.
        mu_1: E phi'^2.
        mu_2: E phi'^4.
        depth: L.
        init: "gaussian" or "orthogonal".
    """
    spread = mu_2 / mu_1**2 - 1 + (1 if init == "gaussian" else 0)
    first = chi**depth
    return JacobianMoments(first, first**2 * depth * spread, depth * spread)
