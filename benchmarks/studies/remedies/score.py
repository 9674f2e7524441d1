"""The numbers the benchmark is held to, each as so many of how many with an interval, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.studies.remedies.setups import ALL_DATA, DATA

Row = dict[str, Any]

SOON = 10  # steps: a loss that has doubled by then had a rate out of reach at the start
LATE = 3  # steps after the loss had doubled
BROKEN = ("rate too high", "rate too low", "fault")
CALIBRATION_DATA = ("digits", "wine", "teacher classes", "teacher values", "code")
CALIBRATION_KINDS = ("MLP", "residual conv net", "pre-norm transformer", "RNN", "regression MLP")


def in_calibration(row: Row) -> bool:
    """Thresholds may be set on what is found here; nowhere else."""
    return row["setup"]["data"] in CALIBRATION_DATA and row["setup"]["kind"] in CALIBRATION_KINDS


def broken(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] in BROKEN]


def healthy(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] == "healthy"]


def harmless(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] == "harmless"]


def cause_first(row: Row) -> bool:
    """The first finding above "info" names the cause, and its change helps."""
    return bool(row.get("cause_first")) and row.get("did") == "better"


def made_better(row: Row) -> bool:
    return row.get("did") == "better"


def made_worse(row: Row) -> bool:
    return row.get("did") == "worse"


def is_alarm(row: Row) -> bool:
    return row.get("first") is not None


def many_lines(row: Row) -> bool:
    return sum(each["severity"] == "info" for each in row["findings"]) > 1


def diverging(rows: Iterable[Row], *, soon: bool) -> list[Row]:
    """Broken by a rate (or what acts as one), with a loss that doubled; within the first steps, or later."""
    found = [row for row in broken(rows) if row.get("divergence") and by_rate(row)]
    return [row for row in found if (row["divergence"]["doubled"] <= SOON) == soon]


def by_rate(row: Row) -> bool:
    return row["verdict"] == "rate too high" or row["planted"] in ("losses summed", "no warm-up")


def named_before(row: Row) -> bool:
    return row["divergence"]["named"] is not None and row["divergence"]["named"] < row["divergence"]["doubled"]


def named_soon(row: Row) -> bool:
    return row["divergence"]["named"] is not None


def silent(row: Row) -> bool:
    """A broken run of which nothing above "info" is said."""
    return row.get("first") is None


QUESTIONS: tuple[tuple[str, Callable[[list[Row]], list[Row]], Callable[[Row], bool], str], ...] = (
    ("cause first, with a change that helps", broken, cause_first, "at least 90 %"),
    ("broken runs made better by the first change", broken, made_better, "at least 85 %"),
    ("broken runs made worse by it", broken, made_worse, "at most 3 %"),
    ("broken runs without a word", broken, silent, "none"),
    ("healthy runs with anything above info", healthy, is_alarm, "at most 3 %"),
    ("healthy runs with more than one info line", healthy, many_lines, "at most 15 %"),
    ("faults that cost nothing, with anything above info", harmless, is_alarm, "no limit"),
    ("doubled within 10 steps: named before", lambda rows: diverging(rows, soon=True), named_before, "at least 80 %"),
    ("doubled later: named within 3 steps of it", lambda rows: diverging(rows, soon=False), named_soon, "all"),
)


def interval(some: int, of: int) -> tuple[float, float]:
    """Wilson's interval of a binomial share, 95 percent."""
    if of == 0:
        return 0.0, 1.0
    z, share = 1.96, some / of
    centre, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (centre - spread) / (1 + z * z / of)), min(1.0, (centre + spread) / (1 + z * z / of))


def count(rows: list[Row], chosen: Callable[[list[Row]], list[Row]], good: Callable[[Row], bool]) -> tuple[int, int]:
    among = chosen(rows)
    return sum(map(good, among)), len(among)


def share(some: int, of: int) -> str:
    if of == 0:
        return "0 of 0"
    low, high = interval(some, of)
    return f"{some} of {of}: {some / of:.0%} ({low:.0%} to {high:.0%})"


def summary(rows: list[Row]) -> str:
    """Every question, over those thresholds may be set on, those they may not, and all."""
    parts = [[row for row in rows if not in_calibration(row)], [row for row in rows if in_calibration(row)], rows]
    lines = ["| | left out of the calibration | thresholds may be set on | all | to reach |", "|---|---|---|---|---|"]
    for title, chosen, good, limit in QUESTIONS:
        cells = [share(*count(part, chosen, good)) for part in parts]
        lines.append(f"| {title} | {' | '.join(cells)} | {limit} |")
    return "\n".join(lines)


def left_out(rows: list[Row]) -> str:
    """The same for each data set and each kind of network, against all others: left out in turn."""
    lines = ["| left out | cause first and helped | the others | made better | made worse | healthy, above info |"]
    lines.append("|---|---|---|---|---|---|")
    for field, names, may in (("data", ALL_DATA, CALIBRATION_DATA), ("kind", tuple(DATA), CALIBRATION_KINDS)):
        for name in names:
            part = [row for row in rows if row["setup"][field] == name]
            rest = [row for row in rows if row["setup"][field] != name]
            cells = [count(part, broken, cause_first), count(rest, broken, cause_first)]
            cells += [count(part, broken, made_better), count(part, broken, made_worse)]
            cells.append(count(part, healthy, is_alarm))
            shown = " | ".join(f"{some} of {of}" for some, of in cells)
            lines.append(f"| {name}{' (calibration)' if name in may else ''} | {shown} |")
    return "\n".join(lines)


def by_fault(rows: list[Row]) -> str:
    """What was planted, and what became of it."""
    causes = sorted({cause(row) for row in broken(rows)})
    lines = ["| broken by | cause first and helped | first findings, and what their change did |", "|---|---|---|"]
    for name in causes:
        part = [row for row in broken(rows) if cause(row) == name]
        said: dict[str, int] = {}
        for row in part:
            first = row.get("first")
            text = "nothing" if first is None else f"{first['name']}: {row['did']}"
            said[text] = said.get(text, 0) + 1
        told = ", ".join(f"{text} ({times})" for text, times in sorted(said.items(), key=lambda each: -each[1]))
        lines.append(f"| {name} | {sum(map(cause_first, part))} of {len(part)} | {told} |")
    return "\n".join(lines)


def cause(row: Row) -> str:
    return row["verdict"] if row["planted"] in ("rate", "healthy") else row["planted"]
