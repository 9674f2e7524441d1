"""What else may stand on the horizontal axis: epochs and wall time, as far as the record has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pullback.advisor.reading import rows
from pullback.charts.numbers import evenly
from pullback.report.run.series import NamedRun, Series, read_series
from pullback.runs import Run

MOST_PLACES = 200  # between which the page interpolates


def axes_of(runs: Sequence[NamedRun]) -> dict[str, Any]:
    """Names of the axes that all runs have, beside that of steps, and for each run the steps and what they were."""
    tables = [{"epoch": _epochs(named.run), "time": _seconds(named.run)} for named in runs]
    names = [name for name in ("epoch", "time") if all(len(table[name][0]) > 1 for table in tables)]
    kept = [{name: _columns(table[name]) for name in names} for table in tables]
    return {"names": names, "runs": json.dumps(kept, separators=(",", ":"))}


def _seconds(run: Run) -> Series:
    """Since the start, when a step's measurement was written; of runs without costs, anything."""
    known = run.measured
    probes = ("cost", "end") if "cost" in known else tuple(known)
    found = [rows(run, probe) for probe in probes]
    return _ascending([(records.steps, records.times) for records in found])


def _epochs(run: Run) -> Series:
    """Epochs made by a step, where any record says it under that name."""
    known = [read_series(run, probe, metric) for probe, metric in run.metrics if metric == "epoch"]
    if not any(np.isfinite(epochs).any() for _, epochs in known):
        return np.empty(0, np.int64), np.empty(0)
    return _ascending([(np.zeros(1, np.int64), np.zeros(1)), *known])


def _ascending(found: Sequence[Series]) -> Series:
    """All in the order of the steps, of several at a step the last, without those that go back.

    Clocks and counters of a resumed run may.
    """
    steps = np.concatenate([np.empty(0, np.int64), *(steps for steps, _ in found)])
    values = np.concatenate([np.empty(0), *(values for _, values in found)])
    steps, first = np.unique(steps[::-1], return_index=True)
    values = values[::-1][first]
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    kept = values >= np.maximum.accumulate(values)
    return steps[kept], values[kept]


def _columns(series: Series) -> list[list[float]]:
    steps, values = (each[evenly(len(each), MOST_PLACES)] for each in series)
    return [steps.tolist(), [float(f"{value:.7g}") for value in values.tolist()]]
