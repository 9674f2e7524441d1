"""Where lengths and correlations settle, and over how many layers they come near."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq

LONGEST, SHORTEST = 1e12, 1e-12  # lengths beyond which a fixed point is infinite or zero


CRITICAL = 1e-8  # |chi - 1| below which a network counts as critical: what the fixed point is known to


_NEAREST = 30  # -log(1 - c) beyond which c* cannot be told from 1


def depth_scale(rate: float) -> float:
    """-1 / log(rate) of a rate of approach; inf at 1, where the approach is algebraic."""
    if rate <= 0:
        return 0.0
    return math.inf if rate >= 1 - CRITICAL else -1 / math.log(rate)


def settled_length(q_map: Callable[[float], float], sigma_b: float) -> float:
    """Fixed point of V next to 1, in the direction V moves it; V does not decrease."""

    def growth(log_q: float) -> float:
        q = math.exp(log_q)
        return q_map(q) / q - 1

    start = growth(0.0)
    if start == 0:
        return 1.0
    step = math.copysign(1.0, start)
    low = high = 0.0
    while growth(high) * start > 0:
        low, high = high, high + step
        if high > math.log(LONGEST):
            return math.inf
        if high < math.log(SHORTEST):
            return 0.0 if sigma_b == 0 else sigma_b**2
    return math.exp(brentq(growth, min(low, high), max(low, high), xtol=1e-15, rtol=1e-15))


def settled_correlation(c_map: Callable[[float], float]) -> float:
    """Fixed point of C below 1, of a network in which 1 is none that pairs settle at; 1 where they cannot be told."""

    def fall(y: float) -> float:  # (C(c) - c) / (1 - c), which falls with c as C is convex, at y = -log(1 - c)
        return (c_map(-math.expm1(-y)) + math.expm1(-y)) * math.exp(y)

    low, high = 0.0, 1.0
    while fall(high) > 0:  # next to the critical line c* comes close to 1
        low, high = high, high + 1
        if high > _NEAREST:
            return 1.0
    return -math.expm1(-brentq(fall, low, high, xtol=1e-13, rtol=1e-13))
