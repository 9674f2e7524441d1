"""What the two public functions accept: a run, the path of one, or several of either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pullback._checks import input_error
from pullback.report.run.groups import grouped
from pullback.report.run.series import NamedRun
from pullback.runs import Run, load_run


def read_runs(where: str, given: Run | str | Path | Sequence[Run | str | Path]) -> list[NamedRun]:
    """Read runs that are given by path, and name all of them by their folders."""
    several: list[object] = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise input_error(where, "at least one run", "an empty list", "Pass a run or the path of one")
    runs = []
    for each in several:
        if not isinstance(each, Run | str | Path):
            remedy = "Pass what `load_run` returns, the folder of a run, or a list of these"
            raise input_error(where, "a run or the path of one", type(each).__name__, remedy)
        runs.append(each if isinstance(each, Run) else load_run(each))
    return grouped(runs)
