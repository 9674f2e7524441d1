"""Durations, counts and numbers in words people read."""

from __future__ import annotations

import math
from collections.abc import Sequence

PREFIXES = ("", *"kMGTPEZYR")  # of thousands
DAY = 86400  # seconds
LEAST_PERCENT = 0.01  # from 0 and from 100, that is told as such
_UNITS = (  # up to which time in seconds, the unit, its decimals and its name
    (120, 1, 1, "s"),
    (7200, 60, 1, "min"),
    (3 * DAY, 3600, 1, "h"),
    (1000 * DAY, DAY, 0, "days"),
)


def duration(seconds: float) -> str:
    """A time in the unit that suits it, from milliseconds to years; "NaN" and "∞" for what is none."""
    if not math.isfinite(seconds):
        return "NaN" if math.isnan(seconds) else "∞"
    if seconds <= 0:
        return "0 s"
    if seconds < 1:
        places = max(0, 1 - math.floor(math.log10(1000 * seconds)))  # two significant digits
        text = f"{1000 * seconds:.{places}f}"
        return (text.rstrip("0").rstrip(".") if places else text) + " ms"
    for below, unit, digits, name in _UNITS:
        if seconds < below:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / DAY / 365:.3g} years"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def count(number: float, unit: str) -> str:
    """A count with a prefix: ``count(2.5e12, "B")`` is "2.5 TB"."""
    power = min(len(PREFIXES) - 1, math.floor(math.log10(number) / 3)) if number >= 1 else 0
    return f"{number / 1000**power:.3g} {PREFIXES[power]}{unit}"


def multiple(ratio: float) -> str:
    """How many times, to two significant digits, as a sentence has it: "3.4", "5,400", "more than a million"."""
    if not ratio < 1e6:
        return "more than a million"
    return f"{ratio:.2g}" if ratio < 99.5 else f"{float(f'{ratio:.2g}'):,.0f}"


def percent(fraction: float) -> str:
    """A fraction as a percentage, with a decimal where it has one: "10%", "93.9%", "0.14%", "99.97%", "under 0.01%".

    Near 0 and 1 it has two digits of the distance: neither 0% nor 100% is said of what is not that.
    """
    if not math.isfinite(fraction):
        return "NaN" if math.isnan(fraction) else "∞" if fraction > 0 else "−∞"
    near = 100 * min(abs(fraction), 1 - fraction) if fraction < 1 else 0.0
    if 0 < near < LEAST_PERCENT:
        return f"under {LEAST_PERCENT}%" if fraction < 0.5 else f"over {100 - LEAST_PERCENT}%"
    places = 1 - math.floor(math.log10(near)) if 0 < near < 1 else 1
    return f"{100 * fraction:.{places}f}".rstrip("0").rstrip(".").replace("-", "−") + "%"


def share_of(ratio: float, digits: int = 3) -> str:
    """A ratio before the noun it is of: "93.9% of", and "5.93 times" from twice as much on."""
    if ratio < 2 or not math.isfinite(ratio):
        return f"{percent(ratio)} of"
    return f"{ratio:.{digits}g} times" if ratio < 1000 else f"{multiple(ratio)} times"


def first_listed(words: Sequence[str], most: int) -> str:
    """The first words of a list, and how many more there are: "a, b and 3 more"; a single one more is named, too."""
    return listed(words if len(words) <= most + 1 else [*words[:most], f"{len(words) - most} more"])


def digits(value: float) -> str:
    """A number as a paper would print it: up to twelve significant digits."""
    return f"{value:.12g}"
