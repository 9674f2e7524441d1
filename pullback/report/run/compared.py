"""Numbers of several runs side by side: each at the nearest measured step, beside its spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

import numpy as np

from pullback.charts.text import number, percent
from pullback.report.run.series import NamedRun, Series, read_series
from pullback.runs import Run


def _measured(probe: str, metric: str) -> Callable[[Run], Series]:
    def read(run: Run) -> Series:
        return read_series(run, probe, metric)

    return read


def _loss(run: Run) -> Series:
    steps, values = run.courses.of("loss")
    return (steps, values) if len(steps) else _measured("loss", "loss")(run)


def _held_out(name: str) -> Callable[[Run], Series]:
    def read(run: Run) -> Series:
        found = _measured("epoch", f"test_{name}")(run)
        return found if len(found[0]) else _measured("test", name)(run)

    return read


NUMBERS: tuple[tuple[str, Callable[[Run], Series], Callable[[object], str]], ...] = (
    ("Loss", _loss, number),
    ("Held-out loss", _held_out("loss"), number),
    ("Held-out accuracy", _held_out("accuracy"), percent),
    ("Mean gradient norm", _measured("gradients", "mean_gradient_norm"), number),
    ("Sharpness", _measured("sharpness", "hessian"), number),
    ("Effective rank", _measured("kernel", "effective_rank"), number),
    ("Pairs in conflict", _measured("alignment", "conflict_fraction"), percent),
)

MOST_PLACES = 6  # behind the point, of a mean and its spread
DECIDING = ("Held-out loss", "Loss")  # by which settings are told apart in a sentence, where they have it


def compared(runs: Sequence[NamedRun]) -> dict[str, Any]:
    """A row for each setting, and a column for each number that any run has.

    Of every number the runs are compared at the last step that all that have it reached; a run that was not measured
    then is taken at its nearest measured step, which is told.
    """
    tried = [(label, _at_one_step([read(named.run) for named in runs]), show) for label, read, show in NUMBERS]
    columns = [(label, *found, show) for label, found, show in tried if found is not None]
    order = sorted(range(len(runs)), key=lambda place: (_group(runs[place]), place))
    rows: list[dict[str, Any]] = []
    for group, members in groupby(order, key=lambda place: _group(runs[place])):
        places = list(members)
        look = runs[places[0]].look
        rows.append({
            "label": look.label if look else runs[places[0]].name,
            "colour": look.colour if look else "",
            "runs": [runs[place].name for place in places],
            "cells": [_cell([cells[place] for place in places], at, show) for _, at, cells, show in columns],
            "group": group,
        })  # fmt: skip
    heads = [f"{label} at step {at:,}" for label, at, _, _ in columns]
    lowest = next((place for name in DECIDING for place, column in enumerate(columns) if column[0] == name), None)
    off = any(step != at for _, at, cells, _ in columns for step, _ in filter(None, cells))
    return {
        "head": heads,
        "rows": rows,
        "nearest": off,
        "seeds": any(len(row["runs"]) > 1 for row in rows),
        "lowest": ""
        if lowest is None
        else _lowest(heads[lowest], [(row["label"], row["cells"][lowest]) for row in rows]),
    }


def _lowest(what: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Which setting has the least of a number, and the next; whether these are apart by more than the seeds spread."""
    finite = sorted(((cell["mean"], cell["deviation"], label) for label, cell in rows if math.isfinite(cell["mean"])))
    if len(finite) < 2:
        return ""
    (best, spread, label), (second, other, next_label) = finite[:2]
    told = (
        f"{label} has the least {what[0].lower()}{what[1:]}, {number(best)}; next is {next_label} with {number(second)}"
    )
    unknown = math.isnan(spread) or math.isnan(other)
    return told if unknown or second - best > math.hypot(spread, other) else f"{told}, no further than the seeds spread"


def _group(named: NamedRun) -> int:
    return named.look.group if named.look else 0


def _at_one_step(found: Sequence[Series]) -> tuple[int, list[tuple[int, float] | None]] | None:
    """The step, and of each run the nearest step measured and its value; None of what no run has."""
    last = [int(steps[-1]) for steps, _ in found if len(steps)]
    if not last:
        return None
    at = min(last)
    return at, [_nearest(steps, values, at) for steps, values in found]


def _nearest(steps: np.ndarray, values: np.ndarray, at: int) -> tuple[int, float] | None:
    if not len(steps):
        return None
    place = int(np.abs(steps - at).argmin())
    return int(steps[place]), float(values[place])


def _beside(mean: float, deviation: float, show: Callable[[object], str]) -> tuple[str, str]:
    """A mean and its spread, if there is one; both to its second digit, where that is not far behind the point."""
    if math.isnan(deviation):
        return show(mean), ""
    places = 1 - math.floor(math.log10(deviation)) if deviation > 0 else MOST_PLACES + 1
    if show is not number or places > MOST_PLACES:
        return show(mean), show(deviation)
    value, spread = (f"{each:,.{max(0, places)}f}".replace("-", "−") for each in (mean, deviation))
    return value, spread


def _cell(found: Sequence[tuple[int, float] | None], at: int, show: Callable[[object], str]) -> dict[str, Any]:
    """Mean and standard deviation over the runs of a setting, and the steps where these are not the common one."""
    known = [each for each in found if each is not None]
    if not known:
        return {"value": "–", "spread": "", "note": "not measured", "mean": math.nan, "deviation": math.nan}
    values = [value for _, value in known]
    finite = all(map(math.isfinite, values))
    mean = fmean(values) if finite else next(value for value in values if not math.isfinite(value))
    deviation = stdev(values) if len(values) > 1 and finite else math.nan
    told, spread = _beside(mean, deviation, show)
    steps = sorted({step for step, _ in known})
    ends = f"{steps[0]:,}" + (f" to {steps[-1]:,}" if len(steps) > 1 else "")
    notes = [f"{len(values)} seeds" if len(values) > 1 else "", f"measured at step {ends}" if steps != [at] else ""]
    note = "; ".join(filter(None, notes))
    return {"value": told, "spread": spread, "note": note, "mean": mean, "deviation": deviation}
