"""What the rules have in common: numbers out of records that may be damaged, and whether training works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from pullback.advisor.course import fell
from pullback.advisor.thresholds import LEARNS_ACCURACY, SHARE_OF_MEASUREMENTS
from pullback.runs import Record, Run

CONVENTION = "convention of this package, see pullback/advisor/thresholds.py"
LOSSES = (("loss", "loss"), ("loss", "batch_loss"), ("epoch", "train_loss"))  # where a run's training loss may stand


def number(value: Any) -> float:
    """A number as a float, anything else as nan."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def has(record: Record, *names: str) -> bool:
    """Whether the values are there and finite: a record may be damaged or altered."""
    return all(math.isfinite(number(record.values.get(name))) for name in names)


def records_with(run: Run, probe: str, *names: str) -> list[Record]:
    """Records of a probe in which all these numbers are there and finite."""
    return [record for record in run.of(probe) if has(record, *names)]


def by_layer(record: Record, metric: str) -> dict[str, float]:
    """A metric's finite numbers by layer, in the order of the record; empty where there are none."""
    values = record.values.get(metric)
    values = values if isinstance(values, dict) else {}
    return {layer: number(value) for layer, value in values.items() if math.isfinite(number(value))}


def lasts(seen: Sequence[Record], records: Sequence[Record]) -> bool:
    """Whether at least half of the measurements show a state."""
    return len(seen) > 0 and len(seen) >= SHARE_OF_MEASUREMENTS * len(records)


def span(seen: Sequence[Record]) -> tuple[int, int]:
    """First and last step."""
    return seen[0].step, seen[-1].step


def not_finite(run: Run) -> list[int]:
    """Steps at which a loss was NaN or infinite, or measurements failed because it was."""
    bad = [
        record.step
        for probe, metric in LOSSES
        for record in run.of(probe)
        if metric in record.values and not math.isfinite(number(record.values[metric]))
    ]
    return bad + [record.step for record in run.records if record.error and "a finite loss" in record.error]


def least_loss(run: Run) -> float | None:
    """The smallest value the loss can have, by the run's description; None if it says nothing, or a record is below."""
    least = number(run.meta.get("least_loss"))
    below = any(number(r.values.get(metric)) < least for probe, metric in LOSSES for r in run.of(probe))
    return None if below or not math.isfinite(least) else least


def learns(run: Run) -> bool:
    """Whether the measured loss fell, or most samples are right; False where that is not known.

    A loss also falls from that of wild first weights to that of one answer for all samples, which is not learning.
    """
    records = records_with(run, "loss", "loss")
    if not_finite(run) or not records:
        return False
    late = records[-max(1, len(records) // 4) :]
    judged = [record.values for record in late if has(record, "accuracy")]
    if judged and median(values["accuracy"] for values in judged) >= LEARNS_ACCURACY:
        return True
    ahead = [
        v["accuracy"] - v["constant_accuracy"] for v in judged if math.isfinite(number(v.get("constant_accuracy")))
    ]
    losses = [float(record.values["loss"]) for record in records]
    return fell(losses, least_loss(run)) and not (ahead and median(ahead) <= 0)


def severity(run: Run) -> str:
    """A state that may do harm is a warning where training does not work, and worth knowing where it does."""
    return "info" if learns(run) else "warning"
