"""What the rules read alike: numbers out of records that may be damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from pullback.advisor.thresholds import SHARE_OF_MEASUREMENTS
from pullback.runs import Record, Run
from pullback.runs.column import Layers
from pullback.runs.records import records_of
from pullback.runs.rows import Rows

CONVENTION = "convention of this package, see pullback/advisor/thresholds.py"
LOSSES = (("loss", "loss"), ("loss", "batch_loss"), ("epoch", "train_loss"))  # where a run's training loss may stand

Asked = ParamSpec("Asked")
Found = TypeVar("Found")


def once_a_run(read: Callable[Concatenate[Run, Asked], Found]) -> Callable[Concatenate[Run, Asked], Found]:
    """What is read of a run, kept as long as the run is: many rules ask, and it does not change."""
    known: WeakKeyDictionary[Run, dict[Any, Found]] = WeakKeyDictionary()

    @wraps(read)
    def kept(run: Run, /, *args: Asked.args, **options: Asked.kwargs) -> Found:
        found = known.setdefault(run, {})
        if args not in found:
            found[args] = read(run, *args, **options)
        return found[args]

    return kept


def number(value: Any) -> float:
    """A number as a float, anything else as nan."""
    if type(value) is float:
        return value
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def has(record: Record, *names: str) -> bool:
    """Whether the values are there and finite: a record may be damaged or altered."""
    return all(map(math.isfinite, map(number, map(record.values.get, names))))


def rows(run: Run, probe: str) -> Rows:
    """Records of a probe that succeeded, by step; what rules ask of all of them is asked as an array."""
    return records_of(run.records).of(probe)


@once_a_run
def records_with(run: Run, probe: str, *names: str) -> Rows:
    """Records of a probe in which all these numbers are there and finite."""
    records = rows(run, probe)
    return records.where(np.all(np.isfinite([records.numbers(name) for name in names]), 0))


def by_layer(record: Record, metric: str) -> dict[str, float]:
    """A metric's finite numbers by layer, in the order of the record; empty where there are none."""
    values = record.values.get(metric)
    values = values if isinstance(values, dict) else {}
    found = {layer: value if type(value) is float else number(value) for layer, value in values.items()}
    if all(map(math.isfinite, found.values())):
        return found
    return {layer: value for layer, value in found.items() if math.isfinite(value)}


def layers(records: Rows, metric: str) -> Layers:
    """Names (K,) of a metric's layers as they first appear, and numbers (R, K), NaN where one is not finite."""
    names, table = records.layers(metric)
    return names, np.where(np.isfinite(table), table, np.nan)


def with_layers(run: Run, probe: str, metric: str) -> Rows:
    """Records of a probe in which a metric has a finite number of any layer."""
    records = rows(run, probe)
    return records.where(np.any(np.isfinite(records.layers(metric)[1]), 1))


def largest(table: np.ndarray) -> np.ndarray:
    """(R,), the largest number of each row (R, K), minus infinity where there is none."""
    return np.where(np.isnan(table), -np.inf, table).max(1, initial=-np.inf)


def lasts(seen: Sized, records: Sized) -> bool:
    """Whether at least half of the measurements show a state."""
    return len(seen) > 0 and len(seen) >= SHARE_OF_MEASUREMENTS * len(records)


def span(seen: Sequence[Record]) -> tuple[int, int]:
    """First and last step."""
    return seen[0].step, seen[-1].step


@once_a_run
def not_finite(run: Run) -> list[int]:
    """Steps at which a loss was NaN or infinite, or measurements failed because it was."""
    bad: list[int] = []
    for probe, metric in LOSSES:
        records = rows(run, probe)
        unknown = records.where(~np.isfinite(records.numbers(metric)))
        bad += [record.step for record in unknown if metric in record.values]
    steps, values = run.courses.of("loss")
    bad += steps[~np.isfinite(values)].tolist()
    bad += [r.step for r in run.of("not_finite") if "loss" in r.values and not math.isfinite(number(r.values["loss"]))]
    return bad + [record.step for record in run.failed if "a finite loss" in str(record.error)]


@once_a_run
def least_loss(run: Run) -> float | None:
    """The smallest value the loss can have, by the run's description, or by what its values show; None if unknown.

    A function of one's own whose losses are, in all measurements, those of a known form (a cross-entropy, an error) is
    never below 0. None as well if a record is below.
    """
    least = number(run.meta.get("least_loss"))
    if not math.isfinite(least):
        least = 0.0 if _is_of_known_form(run) else math.nan
    if not math.isfinite(least):
        return None
    below = any((rows(run, probe).numbers(metric) < least).any() for probe, metric in LOSSES)
    return None if below else least


def _is_of_known_form(run: Run) -> bool:
    """Whether the form of the loss was told at each measurement that has a finite one."""
    records = records_with(run, "loss", "loss")
    return bool(records) and bool((records.mapped("form", is_text) > 0).all())


def is_text(cell: object) -> bool:
    """For ``Rows.mapped``: whether a cell is one."""
    return isinstance(cell, str)


@once_a_run
def class_counts(run: Run) -> dict[str, float]:
    """Class -> how often it was among the targets of all batches, of older records of those that were measured.

    Empty where there are no classes.
    """
    for probe in ("all_targets", "targets"):
        if counts := summed(rows(run, probe), "counts"):
            return counts
    return {}


def summed(records: Rows, metric: str) -> dict[str, float]:
    """A metric's finite numbers by layer, summed over the records."""
    names, table = layers(records, metric)
    known = np.any(np.isfinite(table), 0).tolist()
    sums = zip(names, np.nansum(table, 0).tolist(), known, strict=True)
    return {name: value for name, value, is_known in sums if is_known}
