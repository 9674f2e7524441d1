"""The whole distribution of a Jacobian's squared singular values, for piecewise linear activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import minimize_scalar

from pullback._checks import check_option, input_error
from pullback._results import Drawn
from pullback.theory.checks import check_depth
from pullback.theory.expectations.activations import Array
from pullback.theory.expectations.gaussian import mean

if TYPE_CHECKING:
    from pullback.theory.mean_field.network import MeanField

DEEPEST = 32  # layers up to which the roots of a polynomial of that degree are found safely
_POINTS = 900
_TILTS = (
    0.05,
    0.02,
    0.008,
    0.003,
    0.001,
    1e-4,
    1e-6,
    0.0,
)  # how far above the real axis roots are followed, times lambda


@dataclass(frozen=True)
class JacobianDensity(Drawn):
    """Distribution of the squared singular values s^2 of J = D_L W_L ... D_1 W_1 at infinite width.

    Attributes:
        squares: s^2, ascending, (M,), from 1e-10 of the edge; deep Gaussian networks have mass below that.
        density: d mass / d s^2 at those, (M,).
        zero: mass at s^2 = 0: directions that some layer has cut off.
        edge: the largest s^2.
        top: mass at ``edge`` itself: directions that no orthogonal layer has cut.
    """

    squares: Array
    density: Array
    zero: float
    edge: float
    top: float = 0.0

    def moment(self, k: int) -> float:
        """E (s^2)^k, from the density by the trapezoid rule in log s^2; without the mass at zero."""
        logs = np.log(self.squares)
        return float(trapezoid(self.density * self.squares ** (k + 1), logs)) + self.top * self.edge**k

    @property
    def mass(self) -> float:
        """Of everything together: 1, but for the rule's error and what is below the least of ``squares``."""
        return self.moment(0) + self.zero


def jacobian_density(net: MeanField, depth: int, init: str = "gaussian") -> JacobianDensity:
    """Density of the squared singular values of ``depth`` layers whose slopes are 0 or one number.

    A layer's D is then a projection on a share p of the units, and free probability gives the moment generating
    function psi of J J^T by z = psi(1 / lambda):

        Gaussian:    lambda z = g^L (1 + z) (z + p)^L
        orthogonal:  lambda z (1 + z)^{L-1} = g^L (z + p)^L,   g = sigma_w^2 times the squared slope

    with the density -Im z / (pi lambda), of the root that is below the real axis.

    Args:
        net: with a linear, ReLU or hard tanh activation, without dropout.
        depth: L, at most 32.
        init: "gaussian" or "orthogonal".

    Raises:
        InputError: an activation with other slopes; depth < 1 or above 32; an unknown ``init``; dropout.

    References: Pennington, Schoenholz and Ganguli (2017), arXiv:1711.04735, and (2018), arXiv:1802.09979.

    Example:
        >>> from pullback.theory import MeanField
        >>> density = jacobian_density(MeanField("relu", 2**0.5), 4)
        >>> round(density.moment(1), 3), round(density.moment(2), 2), density.zero > 0.49
        (1.0, 9.0, True)
    """
    where = "jacobian_density"
    check_depth(where, depth)
    check_option(where, "init", init, ("gaussian", "orthogonal"))
    if depth > DEEPEST:
        raise input_error(where, f"a `depth` of at most {DEEPEST}", repr(depth), "Use jacobian_moments")
    share, gain = _two_slopes(net, where)
    scale = gain**depth
    zero = 1 - share  # the rank of a product of projections in general position is the smallest of theirs
    top = max(0.0, 1 - depth * (1 - share)) if init == "orthogonal" else 0.0
    edge = scale * _edge(share, depth, init)
    if init == "orthogonal" and (depth == 1 or share == 1):  # one projection, or none: nothing in between
        return JacobianDensity(np.empty(0), np.empty(0), zero, edge, top)
    inner = np.geomspace(edge * 10.0 ** -min(10, 2 + 2 * depth), edge * 0.9, _POINTS)
    squares = np.unique(
        np.concatenate([inner, edge * (1 - np.geomspace(1e-10, 0.1, _POINTS // 3))])
    )  # fine at the edge
    density = _densities(squares / scale, share, depth, init) / scale
    return JacobianDensity(squares, density, zero, edge, top)


def _two_slopes(net: MeanField, where: str) -> tuple[float, float]:
    """Share p of units with a slope, and sigma_w^2 times its square."""
    if net.keep_prob < 1:
        raise input_error(where, "a network without dropout", f"keep_prob {net.keep_prob}", "Pass keep_prob=1")
    slopes = np.unique(net.phi.slope(np.linspace(-5, 5, 1001)))
    other = slopes[slopes != 0]
    if len(other) != 1:
        raise input_error(
            where,
            "an activation whose slope is 0 or one number (linear, relu, hard_tanh)",
            net.phi.name,
            "Use jacobian_moments",
        )
    slope = float(other[0])
    q = 1.0 if net.phi.homogeneous else net.q_star
    share = 1.0 if q == 0 else mean(lambda u: (net.phi.slope(u) != 0).astype(np.float64), q, net.phi.kinks).value
    return share, net.sigma_w**2 * slope**2


def _edge(p: float, L: int, init: str) -> float:
    """Largest lambda for gain 1: the least of lambda(z) over z > 0, where the root that leads to infinity turns."""

    def log_lambda(log_z: float) -> float:
        z = math.exp(log_z)
        if init == "gaussian":
            return math.log1p(z) + L * math.log(z + p) - log_z
        return L * math.log(z + p) - log_z - (L - 1) * math.log1p(z)

    if init == "orthogonal" and L * (1 - p) <= 1:  # some directions are never cut: lambda = 1, reached at z = inf
        return 1.0
    return math.exp(minimize_scalar(log_lambda, bounds=(-20, 20), method="bounded", options={"xatol": 1e-10}).fun)


def _densities(x: Array, p: float, L: int, init: str) -> Array:
    """Density at every lambda = x (ascending) for gain 1: the root that is z = p^L / lambda far out, followed inwards.

    It is followed above the real axis, where roots do not meet, and then down to the axis.
    """
    outside = np.geomspace(x[-1] * 1e4, x[-1], 400)[:-1]
    path = np.concatenate([outside, x[::-1]])
    following = _roots((path * (1 + 1j * _TILTS[0])).astype(np.complex128), p, L, init)
    current = p + p**L / path[0] + 0j
    chosen = np.empty(len(path), dtype=complex)
    for k, candidates in enumerate(following):
        chosen[k] = current = _nearest(candidates[None], np.array([current]))[0]
    roots = chosen[len(outside) :]
    for tilt in _TILTS[1:]:
        roots = _nearest(_roots((x[::-1] * (1 + 1j * tilt)).astype(np.complex128), p, L, init), roots)
    return np.maximum(0.0, -roots.imag / (math.pi * x[::-1]))[::-1]


def _nearest(candidates: NDArray[np.complex128], to: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """For every row the candidate nearest on the Riemann sphere: the root may pass through infinity."""
    apart = np.abs(candidates - to[:, None]) / np.sqrt((1 + np.abs(candidates) ** 2) * (1 + np.abs(to[:, None]) ** 2))
    return np.take_along_axis(candidates, apart.argmin(1)[:, None], 1)[:, 0]


def _roots(x: NDArray[np.complex128], p: float, L: int, init: str) -> NDArray[np.complex128]:
    """All roots z + p at every x, (M, degree): in that variable those that meet for small x are well separated."""
    power, one_plus_z, z = np.poly1d([1.0, 0.0]) ** L, np.poly1d([1.0, 1 - p]), np.poly1d([1.0, -p])
    fixed, moving = one_plus_z * power, z
    if init == "orthogonal":
        fixed, moving = power, z * one_plus_z ** (L - 1)
    degree = fixed.order
    padded = np.concatenate([np.zeros(degree - moving.order), moving.coeffs])
    coefficients = fixed.coeffs - x[:, None] * padded  # (M, degree + 1), highest first
    companion = np.zeros((len(x), degree, degree), dtype=complex)
    companion[:, 0] = -coefficients[:, 1:] / coefficients[:, :1]
    companion[:, np.arange(1, degree), np.arange(degree - 1)] = 1
    return np.linalg.eigvals(companion).astype(np.complex128)
