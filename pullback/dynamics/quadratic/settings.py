"""The methods by name, and their settings: which belong to which, what is best, what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from pullback._checks import as_number, check_option, check_rate, input_error
from pullback.dynamics.quadratic.values import check_momentum

Method = Literal[
    "gradient_descent",
    "heavy_ball",
    "nesterov",
    "newton",
    "damped_newton",
    "truncated_newton",
    "saddle_free_newton",
    "natural_gradient",
]
METHODS: tuple[str, ...] = get_args(Method)
MOMENTUM = ("heavy_ball", "nesterov")
DAMPED = ("damped_newton", "truncated_newton", "saddle_free_newton", "natural_gradient")


@dataclass(frozen=True)
class Settings:
    """Of a method: learning rate, momentum and damping, all known."""

    lr: float
    momentum: float = 0.0
    damping: float = 0.0


class Optimum(NamedTuple):
    """The settings of a method that contract the slowest direction most.

    Attributes:
        lr: learning rate.
        momentum: 0 where the method has none.
        rate: factor a step by which the distance to the minimiser shrinks in the end.
    """

    lr: float
    momentum: float
    rate: float


def fastest(method: str, least: float, most: float, where: str) -> Optimum:
    """See ``Quadratic.optimal``; ``least`` and ``most`` are the extreme curvatures."""
    check_option(where, "method", method, METHODS)
    if least <= 0:
        raise input_error(where, "positive curvature in all directions", f"{least:.3g}", "Choose `lr` by hand")
    k = most / least
    if method == "gradient_descent":
        return Optimum(2 / (most + least), 0.0, (k - 1) / (k + 1))
    if method == "heavy_ball":
        rate = (math.sqrt(k) - 1) / (math.sqrt(k) + 1)
        return Optimum(4 / (math.sqrt(most) + math.sqrt(least)) ** 2, rate**2, rate)
    if method == "nesterov":
        root = math.sqrt(3 * k + 1)
        return Optimum(4 / (3 * most + least), (root - 2) / (root + 2), 1 - 2 / root)
    return Optimum(1.0, 0.0, 0.0)


def settings_of(method: str, lr: float | None, momentum: float | None, damping: float | None, where: str) -> Settings:
    """All settings of a method, checked; those left out are 1, 0 and 0.

    Raises:
        InputError: settings a method does not have, or out of range.
    """
    check_option(where, "method", method, METHODS)
    if momentum is not None and momentum != 0 and method not in MOMENTUM:
        raise input_error(where, f'no momentum with "{method}"', repr(momentum), 'Use "heavy_ball" or "nesterov"')
    if damping is not None and method not in DAMPED:
        raise input_error(where, f'no damping with "{method}"', repr(damping), f"Use one of {', '.join(DAMPED)}")
    if method in MOMENTUM and (lr is None or momentum is None):
        remedy = "Pass both; `optimal` has the best ones"
        raise input_error(where, "`lr` and `momentum`, or neither", "only one of them", remedy)
    lr, momentum, damping = 1.0 if lr is None else lr, momentum or 0.0, damping or 0.0
    check_rate(where, "lr", lr)
    check_momentum(where, momentum)
    if not 0 <= as_number(damping) < math.inf:
        raise input_error(where, "`damping` of at least 0", repr(damping), "Pass a damping that adds curvature")
    return Settings(float(lr), float(momentum), float(damping))
