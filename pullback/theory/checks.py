"""Checks of arguments that several predictions share."""

from __future__ import annotations

import math

from pullback._checks import check_positive, input_error


def check_depth(where: str, depth: int) -> None:
    """Refuse anything but a positive number of layers."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise input_error(where, "a `depth` of at least 1", repr(depth), "Pass the number of layers")


def check_sigmas(where: str, sigma_w: float, sigma_b: float) -> None:
    """Refuse standard deviations of weights and biases that are none."""
    check_positive(where, "sigma_w", sigma_w)
    if not (isinstance(sigma_b, int | float) and math.isfinite(sigma_b) and sigma_b >= 0):
        raise input_error(where, "`sigma_b` of at least 0", repr(sigma_b), "Pass a standard deviation")
