"""Durations and counts in words people read."""

from __future__ import annotations

import math

PREFIXES = ("", *"kMGTPEZYR")  # of thousands
DAY = 86400  # seconds


def duration(seconds: float) -> str:
    """A time span in words short enough for a progress line."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: float, unit: str) -> str:
    """A count with a prefix: ``count(2.5e12, "B")`` is "2.5 TB"."""
    power = min(len(PREFIXES) - 1, math.floor(math.log10(number) / 3)) if number >= 1 else 0
    return f"{number / 1000**power:.3g} {PREFIXES[power]}{unit}"


def span(seconds: float) -> str:
    """A time that may be long: ``duration``, then days and years."""
    if seconds < 3 * DAY:
        return duration(seconds)
    return f"{seconds / DAY:.0f} days" if seconds < 1000 * DAY else f"{seconds / DAY / 365:.3g} years"
