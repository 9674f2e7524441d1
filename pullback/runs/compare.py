"""Runs side by side: what was set differently, and what was measured at a step they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from pullback._checks import check_names
from pullback._results import Shown
from pullback.runs.column import without_collecting
from pullback.runs.reader import Run
from pullback.runs.table import Table


@dataclass(frozen=True)
class Row(Shown):
    """One quantity of several runs.

    Attributes:
        name: ``probe.metric``, or ``probe.metric.layer``.
        values: one a run; None where it was never measured.
        steps: at which they were measured; the same for all if there is such a step.
    """

    name: str
    values: tuple[Any, ...]
    steps: tuple[int | None, ...]


RATES = ("lr", "rate")  # what callers call it


def compare_runs(runs: Sequence[Run], names: Sequence[str] | None = None, step: int | None = None) -> list[Row]:
    """Quantities of several runs at the last step at which all of them measured it.

    Where no step is common to all, each run's own last value is taken; the row says at which step.

    Args:
        runs: as ``load_run`` returns them.
        names: columns of ``Run.table``; None takes all that any of the runs has.
        step: take nothing measured after this step.

    Raises:
        InputError: none of the runs has a column of that name.

    Example:
        >>> from pathlib import Path
        >>> from pullback.runs import Record
        >>> a, b = (Run(Path(n), {}, tuple(Record(s, 0.0, "loss", {"loss": s * k}) for s in (1, 2, k)))
        ...         for n, k in (("a", 3), ("b", 4)))
        >>> compare_runs([a, b])
        [Row(name='loss.loss', values=(6, 8), steps=(2, 2))]
    """
    tables = [Table((run if step is None else run.until(step)).records) for run in runs]
    known = list(dict.fromkeys(name for table in tables for name in table if name != "step"))
    if names is not None:
        check_names("compare_runs", "columns", names, known)
    with without_collecting():
        return [_row(name, tables) for name in (known if names is None else names)]


def _row(name: str, tables: Sequence[Table]) -> Row:
    measured = [table.cells(name) for table in tables]
    common = reduce(partial(np.intersect1d, assume_unique=True), [steps for steps, _ in measured])
    last = [(common if len(common) else steps)[-1:].tolist() for steps, _ in measured]
    values = [
        cells[int(np.searchsorted(steps, at[0]))] if at else None
        for (steps, cells), at in zip(measured, last, strict=True)
    ]
    return Row(name, tuple(values), tuple(at[0] if at else None for at in last))


def differing_settings(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    """What the runs' descriptions say differently: dotted key -> one value a run, None where it has none.

    Left out are the time of the start, and what the caller told in the words of the monitor's own reading.

    Args:
        runs: as ``load_run`` returns them.

    Example:
        >>> from pathlib import Path
        >>> a, b = (Run(Path(n), {"seed": s, "data": {"name": "digits"}}, ()) for n, s in (("a", 0), ("b", 1)))
        >>> differing_settings([a, b])
        {'seed': (0, 1)}
    """
    described = [dict(_flat(run.meta)) for run in runs]
    keys = dict.fromkeys(key for each in described for key in each if key != "created")
    rows = {key: tuple(each.get(key) for each in described) for key in keys}
    differing = {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
    return {key: values for key, values in differing.items() if not _said_before(key, values, differing)}


def _said_before(key: str, values: tuple[Any, ...], rows: dict[str, tuple[Any, ...]]) -> bool:
    """Whether the caller tells what the monitor read, by the same last word or another name: "lr" of a rate."""
    if "." in key or None in values:
        return False
    word = "learning_rate" if key in RATES else key
    return any(other.endswith(f".{word}") and rows[other] == values for other in rows)


def _flat(described: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in described.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
