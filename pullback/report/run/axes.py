"""What else may stand on the horizontal axis: epochs and wall time, as far as the record has them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pullback.charts.numbers import evenly
from pullback.charts.text import as_float
from pullback.report.run.series import NamedRun
from pullback.runs import Run

MOST_PLACES = 200  # between which the page interpolates


def axes_of(runs: Sequence[NamedRun]) -> dict[str, Any]:
    """Names of the axes that all runs have, beside that of steps, and for each run the steps and what they were."""
    tables = [{"epoch": _epochs(named.run), "time": _seconds(named.run)} for named in runs]
    names = [name for name in ("epoch", "time") if all(len(table[name]) > 1 for table in tables)]
    kept = [{name: _columns(table[name]) for name in names} for table in tables]
    return {"names": names, "runs": json.dumps(kept, separators=(",", ":"))}


def _seconds(run: Run) -> dict[int, float]:
    """Since the start, when a step's measurement was written; of runs without costs, anything."""
    known = run.measured
    probes = ("cost", "end") if "cost" in known else tuple(known)
    times = {record.step: record.time for probe in probes for record in run.of(probe)}
    return _ascending({step: time for step, time in times.items() if math.isfinite(time)})


def _epochs(run: Run) -> dict[int, float]:
    """Epochs made by a step, where any record says it under that name."""
    known: dict[int, float] = {}
    for probe, metric in run.metrics:
        if metric == "epoch":
            known |= {step: as_float(value) for step, value in zip(*run.series(probe, metric), strict=True)}
    known = {step: epoch for step, epoch in known.items() if math.isfinite(epoch)}
    return _ascending({0: 0.0} | known) if known else {}


def _ascending(values: dict[int, float]) -> dict[int, float]:
    """In the order of the steps, without those that go back: clocks and counters of a resumed run may."""
    kept: dict[int, float] = {}
    highest = -math.inf
    for step in sorted(values):
        if values[step] >= highest:
            highest = kept[step] = values[step]
    return kept


def _columns(values: dict[int, float]) -> list[list[float]]:
    pairs = list(values.items())
    kept = [pairs[place] for place in evenly(len(pairs), MOST_PLACES)]
    return [[step for step, _ in kept], [float(f"{value:.7g}") for _, value in kept]]
