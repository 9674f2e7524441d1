"""Hessians drawn at random, as those of high-dimensional random functions are: index against energy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback._checks import as_number, check_count, check_positive, input_error
from pullback._rng import make_generator
from pullback.dynamics.quadratic.values import values


def random_hessians(size: int, count: int = 1, *, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Matrices of the Gaussian orthogonal ensemble, whose eigenvalues fill [-2, 2] + shift, (count, size, size).

    Entries above the diagonal have variance 1 / size, those on it twice that.

    Args:
        size: N.
        count: how many.
        shift: added to every eigenvalue: what the energy of a critical point does.
        seed: of the draws.

    Raises:
        InputError: a size or a count below 1.

    Example:
        >>> values = torch.linalg.eigvalsh(random_hessians(300)[0])
        >>> bool(values[0] < -1.8) and bool(values[-1] > 1.8)
        True
    """
    size, count = (check_count("random_hessians", *pair, 1) for pair in (("size", size), ("count", count)))
    G = torch.randn(count, size, size, generator=make_generator(seed), dtype=torch.float64, device="cpu")
    return (G + G.mT) / math.sqrt(2 * size) + shift * torch.eye(size, dtype=torch.float64)


def semicircle(x: Any, shift: float = 0.0, radius: float = 2.0) -> Tensor:
    """Wigner's density of eigenvalues, 2 sqrt(radius^2 - (x - shift)^2) / (pi radius^2), of the shape of ``x``.

    Raises:
        InputError: a radius that is not positive.

    Example:
        >>> float(semicircle(0.0)) * math.pi
        1.0
    """
    check_positive("semicircle", "radius", radius)
    away = values(x, "x", "semicircle").double() - shift
    return 2 * (radius**2 - away.square()).clamp(min=0).sqrt() / (math.pi * radius**2)


def negative_share(shift: Any, radius: float = 2.0) -> Tensor:
    """Share of eigenvalues below zero of a semicircle around ``shift``, of the shape of ``shift``.

    1/2 - (s sqrt(1 - s^2) + arcsin s) / pi with s = shift / radius; 0 and 1 beyond it.

    Raises:
        InputError: a radius that is not positive.

    Example:
        >>> negative_share([-2.0, 0.0, 2.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    check_positive("negative_share", "radius", radius)
    s = (values(shift, "shift", "negative_share").double() / radius).clamp(-1, 1)
    return 0.5 - (s * (1 - s.square()).sqrt() + s.arcsin()) / math.pi


def all_positive_probability(size: int) -> float:
    """Chance that a random Hessian around zero has no negative eigenvalue: 1/2, (2 - sqrt 2) / 4, ...

    Beyond three dimensions its leading order, exp(-(ln 3 / 4) size^2) (Dean & Majumdar 2006), which is to be read on a
    logarithmic scale: corrections of the order of ln(size) are left out in the exponent.

    Raises:
        InputError: a size below 1.

    Example:
        >>> [round(all_positive_probability(size), 5) for size in (1, 2, 3)]
        [0.5, 0.14645, 0.02492]
    """
    size = check_count("all_positive_probability", "size", size, 1)
    known = (0.5, (2 - math.sqrt(2)) / 4, (math.pi - 2 * math.sqrt(2)) / (4 * math.pi))
    return known[size - 1] if size <= len(known) else math.exp(-math.log(3) / 4 * size**2)


def spin_glass_spectrum(energy: float, order: int = 3) -> tuple[float, float]:
    """Centre and radius of the Hessian's semicircle at a critical point of a spherical spin glass, in many dimensions.

    Of H(x) = N^(-(p - 1) / 2) sum J_(i..k) x_i .. x_k on the sphere of radius sqrt(N), J normal, p = ``order``, at a
    critical point of energy E N: centre -p E, radius 2 sqrt(p (p - 1)). So the index grows with the energy, and below
    -2 sqrt((p - 1) / p) there are minima only.

    Args:
        energy: E, a number a dimension.
        order: p, at least 3.

    Raises:
        InputError: an order below 3; an energy that is not finite.

    References: Bray & Dean (2007), cond-mat/0611023; Auffinger, Ben Arous & Cerny (2013), arXiv:1003.1129.

    Example:
        >>> centre, radius = spin_glass_spectrum(-1.0)
        >>> round(float(negative_share(centre, radius)), 4)
        0.1361
    """
    order = check_count("spin_glass_spectrum", "order", order, 3)
    if not math.isfinite(as_number(energy)):
        raise input_error("spin_glass_spectrum", "a finite `energy`", repr(energy), "Pass a number")
    return -order * energy, 2 * math.sqrt(order * (order - 1))
