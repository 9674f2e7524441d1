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
    width = -(-count // ((limit - 2) // 3))
    part = np.full((-(-count // width), width), np.nan)
    part.flat[:count] = values
    known = np.isfinite(part)
    gap = ~known
    gap.flat[count:] = False  # what only fills the last stretch
    starts = width * np.arange(len(part))
    lowest, highest = np.where(known, part, np.inf).argmin(1), np.where(known, part, -np.inf).argmax(1)
    found = [(starts + lowest)[known.any(1)], (starts + highest)[known.any(1)], (starts + gap.argmax(1))[gap.any(1)]]
    places = np.sort(np.concatenate([[0, count - 1], *found]))
    return places[np.append(True, places[1:] != places[:-1])]  # as np.unique, which makes a hash table of each line


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values that are numbers."""
    array = np.asarray(values, float)
    return array[np.isfinite(array)]


def drawable(values: Sequence[float], log: bool = False) -> list[float | None]:
    """Values as JSON can hold them and an axis can show them; None leaves a gap."""
    return [value if math.isfinite(value) and (value > 0 or not log) else None for value in values]
