"""What a case is to reach and what it did: each function compares rows of one and the same run.

A row is the summary of a method: ``median_seconds``, ``min_seconds`` and, where it applies, ``peak_bytes``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

Rows = dict[str, dict[str, Any]]  # family of methods -> the row of its fastest variant; skipped ones are absent
Verdict = dict[str, Any]  # text, reached, met


def verdict(text: str, reached: str, met: bool | None) -> Verdict:
    """``met`` is None where nothing could be measured."""
    return {"text": text, "reached": reached, "met": met}


def lowest(rows: Rows, names: Iterable[str], field: str) -> tuple[str, float] | None:
    """The method with the least of a quantity, and its value; None if none was measured."""
    values = [(rows[name][field], name) for name in names if name in rows]
    return min(values)[::-1] if values else None


def ratio(rows: Rows, field: str, above: str, below: str) -> float | None:
    """A quantity of one row over that of another; None if one of them was not measured."""
    return rows[above][field] / rows[below][field] if above in rows and below in rows else None


def judged(text: str, value: float | None, shown: str, holds: Callable[[float], bool]) -> Verdict:
    """Whether a number holds, in the format ``shown``."""
    return verdict(text, "not measured", None) if value is None else verdict(text, shown.format(value), holds(value))


def faster(rows: Rows, ours: str, peers: Iterable[str], factor: float) -> Verdict:
    """At least ``factor`` times faster than the fastest peer."""
    text = f"at least {factor:g}x faster than the fastest peer" if factor > 1 else "as fast as the fastest peer"
    best = lowest(rows, peers, "median_seconds")
    times = None if best is None else ratio(rows, "median_seconds", best[0], ours)
    return judged(text, times, f"{{:.3g}}x ({best and best[0]})", lambda r: r >= factor)


def speed(rows: Rows, ours: str, other: str, factor: float) -> Verdict:
    """At least ``factor`` times the speed of one other row."""
    times = ratio(rows, "median_seconds", other, ours)
    return judged(f"at least {factor:g}x the speed of {other}", times, "{:.3g}x", lambda r: r >= factor)


def cheaper(rows: Rows, ours: str, other: str, factor: float) -> Verdict:
    """At most the processor time of one other row over ``factor``: for machines that have other work."""
    text = f"`{ours}` takes at most {'' if factor == 1 else f'1/{factor:g} of '}the processor time of `{other}`"
    field = "median_processor_seconds"
    known = all(field in rows.get(name, {}) for name in (ours, other))
    return judged(text, ratio(rows, field, other, ours) if known else None, "1/{:.3g}", lambda r: r >= factor)


def leaner(rows: Rows, ours: str, peers: Iterable[str], factor: float) -> Verdict:
    """At most 1/``factor`` of the peak memory of the leanest peer."""
    share = f"1/{factor:g} of" if factor > 1 else ""
    text = f"at most {share} the peak memory of the leanest peer".replace("  ", " ")
    best = lowest(rows, peers, "peak_bytes")
    times = None if best is None else ratio(rows, "peak_bytes", best[0], ours)
    return judged(text, times, f"1/{{:.3g}} ({best and best[0]})", lambda r: r >= factor)


def within(rows: Rows, ours: str, floor: str, factor: float) -> Verdict:
    """At most ``factor`` times the time of another row."""
    times = ratio(rows, "median_seconds", ours, floor)
    return judged(f"within {factor:g}x of the time of `{floor}`", times, "{:.3g}x", lambda r: r <= factor)


def within_sum(rows: Rows, ours: str, floors: dict[str, float]) -> Verdict:
    """At most the time of several other rows, each times its factor, together."""
    text = "within the time of " + " and ".join(f"{factor:g} of `{name}`" for name, factor in floors.items())
    if any(name not in rows for name in (ours, *floors)):
        return verdict(text, "not measured", None)
    allowed = sum(factor * rows[name]["median_seconds"] for name, factor in floors.items())
    seconds = rows[ours]["median_seconds"]
    return verdict(text, f"{seconds:.3g} s of {allowed:.3g} s", seconds <= allowed)


def accurate(rows: Rows, name: str, limit: float) -> Verdict:
    """The largest residual of a row is at most ``limit``."""
    residual = rows[name]["residual"] if name in rows else None
    return judged(f"residual of `{name}` at most {limit:g}", residual, "{:.1e}", lambda r: r <= limit)


def adds(rows: Rows, longer: str, shorter: str, seconds: float) -> Verdict:
    """One row takes at most ``seconds`` more than another."""
    text = f"`{longer}` takes at most {seconds:g} s more than `{shorter}`"
    if longer not in rows or shorter not in rows:
        return verdict(text, "not measured", None)
    added = rows[longer]["median_seconds"] - rows[shorter]["median_seconds"]
    return verdict(text, f"{added:+.3f} s", added <= seconds)


def share(rows: Rows, longer: str, shorter: str, limit: float) -> Verdict:
    """One row takes at most a share ``limit`` more than another."""
    times = ratio(rows, "median_seconds", longer, shorter)
    text = f"`{longer}` takes at most {limit:.0%} more than `{shorter}`"
    return judged(text, None if times is None else times - 1, "{:+.1%}", lambda added: added <= limit)


def heavier(rows: Rows, larger: str, smaller: str, factor: float) -> Verdict:
    """The process of one row has at most ``factor`` times the peak memory of another's."""
    times = ratio(rows, "process_peak_bytes", larger, smaller)
    text = f"`{larger}` has at most {factor:g}x the peak memory of `{smaller}`"
    return judged(text, times, "{:.3g}x", lambda r: r <= factor)


def at_most(rows: Rows, name: str, seconds: float) -> Verdict:
    """A row takes at most ``seconds``."""
    taken = rows[name]["median_seconds"] if name in rows else None
    return judged(f"`{name}` takes at most {seconds:g} s", taken, "{:.3f} s", lambda t: t <= seconds)


def below(rows: Rows, name: str, limit: float) -> Verdict:
    """A row's peak memory is below ``limit`` bytes."""
    peak = rows[name]["peak_bytes"] / 1e9 if name in rows else None
    return judged(f"`{name}` stays below {limit / 1e9:g} GB", peak, "{:.2f} GB", lambda p: p < limit / 1e9)


def exponent(rows: Rows, sizes: dict[str, int], limit: float) -> Verdict:
    """Time grows at most as the ``limit``-th power of the size: the least-squares slope of the logarithms."""
    text = f"time grows at most as N^{limit:g}"
    points = [(math.log(n), math.log(rows[name]["median_seconds"])) for name, n in sizes.items() if name in rows]
    if len(points) < 2:
        return verdict(text, "not measured", None)
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    return verdict(text, f"N^{slope:.2f}", slope <= limit)


def flat(rows: Rows, names: Iterable[str], factor: float) -> Verdict:
    """The largest peak memory of several rows is at most ``factor`` times the least."""
    text = f"peak memory: the largest at most {factor:g}x the least"
    peaks = [rows[name]["peak_bytes"] for name in names if name in rows]
    if len(peaks) < 2:
        return verdict(text, "not measured", None)
    ratio = max(peaks) / min(peaks)
    return verdict(text, f"{ratio:.3g}x", ratio <= factor)
