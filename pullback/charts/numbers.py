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


def extremes(values: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` places of (S,) values, ascending, that show what all would: none is beyond those drawn.

    Of each of equally long stretches the least and the greatest value, the first that is not finite, and both ends.
    """
    count = len(values)
    if count <= limit:
        return np.arange(count)
    edges = np.linspace(0, count, (limit - 2) // 3 + 1).astype(int)
    kept = {0, count - 1}
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = values[first:end]
        known = np.isfinite(part)
        if not known.all():
            kept.add(first + int(np.argmin(known)))
        if known.any():
            kept |= {first + int(np.nanargmin(np.where(known, part, np.nan)))}
            kept |= {first + int(np.nanargmax(np.where(known, part, np.nan)))}
    return np.array(sorted(kept))


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def drawable(values: Sequence[float], log: bool = False) -> list[float | None]:
    """Values as JSON can hold them and an axis can show them; None leaves a gap."""
    return [value if math.isfinite(value) and (value > 0 or not log) else None for value in values]
