"""Which numbers a chart can show, and how many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def evenly(count: int, limit: int) -> list[int]:
    """At most ``limit`` places out of ``count``, evenly spread, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, limit)})


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def drawable(values: Sequence[float], log: bool = False) -> list[float | None]:
    """Values as JSON can hold them and an axis can show them; None leaves a gap."""
    return [value if math.isfinite(value) and (value > 0 or not log) else None for value in values]
