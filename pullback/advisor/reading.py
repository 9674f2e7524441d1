"""What the rules have in common: numbers out of records that may be damaged, and whether training works."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from statistics import median
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from pullback.advisor.course import Losses, fell
from pullback.advisor.thresholds import (
    COMPARABLE,
    ENOUGH_ANSWERS,
    FALLS_SHORT,
    FEW_RATIOS,
    FEW_STEPS,
    LEAPS,
    LEARNS_ACCURACY,
    LEARNS_SHARE,
    LEAST_WITHIN,
    MANY_STEPS,
    MISTAKE_LEFT,
    SHARE_OF_MEASUREMENTS,
)
from pullback.runs import Record, Run

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


@once_a_run
def records_with(run: Run, probe: str, *names: str) -> list[Record]:
    """Records of a probe in which all these numbers are there and finite."""
    return [record for record in run.of(probe) if has(record, *names)]


def by_layer(record: Record, metric: str) -> dict[str, float]:
    """A metric's finite numbers by layer, in the order of the record; empty where there are none."""
    values = record.values.get(metric)
    values = values if isinstance(values, dict) else {}
    found = {layer: value if type(value) is float else number(value) for layer, value in values.items()}
    if all(map(math.isfinite, found.values())):
        return found
    return {layer: value for layer, value in found.items() if math.isfinite(value)}


def lasts(seen: Sequence[Record], records: Sequence[Record]) -> bool:
    """Whether at least half of the measurements show a state."""
    return len(seen) > 0 and len(seen) >= SHARE_OF_MEASUREMENTS * len(records)


def span(seen: Sequence[Record]) -> tuple[int, int]:
    """First and last step."""
    return seen[0].step, seen[-1].step


@once_a_run
def not_finite(run: Run) -> list[int]:
    """Steps at which a loss was NaN or infinite, or measurements failed because it was."""
    bad = [
        step
        for probe, metric in LOSSES
        for step, value in zip(*run.series(probe, metric), strict=True)
        if not math.isfinite(number(value))
    ]
    steps, values = run.course("loss")
    bad += steps[~np.isfinite(values)].tolist()
    bad += [r.step for r in run.of("not_finite") if "loss" in r.values and not math.isfinite(number(r.values["loss"]))]
    return bad + [record.step for record in run.failed if "a finite loss" in str(record.error)]


@once_a_run
def least_loss(run: Run) -> float | None:
    """The smallest value the loss can have, by the run's description; None if it says nothing, or a record is below."""
    least = number(run.meta.get("least_loss"))
    if not math.isfinite(least):
        return None
    below = any(number(value) < least for probe, metric in LOSSES for value in run.series(probe, metric)[1])
    return None if below else least


@once_a_run
def class_counts(run: Run) -> dict[str, float]:
    """Class -> how often it was among the targets of all batches, of older records of those that were measured.

    Empty where there are no classes.
    """
    for probe in ("all_targets", "targets"):
        counts: Counter[str] = Counter()
        for record in run.of(probe):
            counts.update(by_layer(record, "counts"))
        if counts:
            return dict(counts)
    return {}


@once_a_run
def constant_loss(run: Run) -> float | None:
    """What the best answer reaches that is the same for every sample, over the data of all measurements.

    Of classes it is the entropy of their frequencies: within a batch of few samples, or of one class, that is too low.
    """
    records = [
        r for r in records_with(run, "loss", "constant_loss") if math.isfinite(number(r.values["constant_loss"]))
    ]
    if not records:
        return None
    counts = [count for count in class_counts(run).values() if count > 0]
    if counts and records[-1].values.get("form") in ("cross-entropy", "nll", "binary", "binary-nll"):
        every = sum(counts)
        return -sum(count / every * math.log(count / every) for count in counts)
    if records[-1].values.get("form") != "squared":
        return median(float(r.values["constant_loss"]) for r in records)
    whole = _variance(run)
    scales = [float(r.values["constant_scale"]) for r in records_with(run, "loss", "constant_scale")]
    if whole is not None and scales:
        return median(scales) * whole
    return _of_few(run, records)


def _variance(run: Run) -> float | None:
    """Of the targets of all batches, the mean over outputs; None where the record has no sums of theirs."""
    records = records_with(run, "all_targets", "num_samples")
    rows = [[r.values.get("sums"), r.values.get("square_sums")] for r in records]
    if not rows or len({len(part) if isinstance(part, list) else 0 for row in rows for part in row}) != 1:
        return None
    samples = sum(float(r.values["num_samples"]) for r in records)
    sums, squares = np.array(rows, dtype=float).sum(0) / samples
    found = float((squares - sums**2).mean()) if np.ndim(sums) == 1 and len(sums) else math.nan
    return found if math.isfinite(found) and found > LEAST_WITHIN * float(squares.mean()) else None


def _of_few(run: Run, records: Sequence[Record]) -> float:
    """The same by the samples of the measurements, each about its own mean, less one for that: a median lies lower."""
    counted = {
        r.step: float(r.values["num_samples"])
        for probe in ("targets", "kernel")
        for r in records_with(run, probe, "num_samples")
    }
    counts = [counted.get(r.step, 1.0) for r in records]
    free = sum(count - 1 for count in counts)
    summed = sum(count * float(r.values["constant_loss"]) for count, r in zip(counts, records, strict=True))
    within = summed / (free if free > 0 else len(counts))
    means = [number(r.values["mean"]) for r in records_with(run, "targets", "mean")]
    return max(within, float(np.var(means))) if len(means) > 2 else within  # batches that differ more than samples do


def summed_over(run: Run) -> float:
    """Samples whose losses are added up in the loop's loss; 1 of a mean."""
    for record in run.of("loss_form"):
        batch = number(record.values.get("batch_size"))
        if record.values.get("reduction") == "sum" and batch > 0:
            return batch
    return 1.0


@once_a_run
def training_losses(run: Run) -> Losses:
    """The losses of the loop at every step, of a sum over the batch as its mean; of older records what was measured.

    One answer's loss is of what was measured: where the loop's numbers are of another kind (scaled, with a penalty),
    they are not compared with it.
    """
    steps, values = run.course("loss")
    least, constant = least_loss(run), constant_loss(run)
    if len(steps):
        batch = summed_over(run)
        if least is not None and bool((values < least).any()):
            least = None
        return Losses(steps, values / batch, least, constant if _comparable(run, batch) else None)
    for probe, metric in (("loss", "loss"), ("epoch", "train_loss")):
        found = [(r.step, number(r.values[metric])) for r in run.of(probe) if metric in r.values]
        if found:
            steps, values = np.array([s for s, _ in found], np.int64), np.array([v for _, v in found])
            return Losses(steps, values, least, constant if probe == "loss" else None)
    return Losses(np.empty(0, np.int64), np.empty(0), least, constant)


def _comparable(run: Run, batch: float) -> bool:
    """Whether the loop's losses are, on the whole, those that are measured.

    One by one, or those of the second half together: at first batch norm, measured in eval mode, has statistics of few
    batches, and few samples say little alone. A factor or a penalty is there in both. The loop's loss is of before
    the step and the measured one of after it: steps that leap say nothing.
    """
    steps, values = run.course("loss")
    records = records_with(run, "loss", "loss", "batch_loss")
    places = np.searchsorted(steps, [r.step for r in records]).tolist()
    pairs = [
        (r.values["batch_loss"] / batch, r.values["loss"])
        for r, place in zip(records, places, strict=True)
        if r.values["loss"] != 0 and not _leaps(r.values["batch_loss"], _following(steps, values, r.step, place))
    ]
    if len(pairs) < FEW_RATIOS:
        return True
    shown, measured = (sum(each) for each in zip(*pairs[len(pairs) // 2 :], strict=True))
    ratios = [median(a / b for a, b in pairs), shown / measured if measured else math.nan]
    return any(1 / COMPARABLE < ratio < COMPARABLE for ratio in ratios)


def _following(steps: np.ndarray, values: np.ndarray, step: int, place: int) -> float | None:
    """The loss after that of a step, which stands at this place if it is there."""
    return float(values[place + 1]) if place + 1 < len(steps) and steps[place] == step else None


def _leaps(loss: float, following: float | None) -> bool:
    """Whether a step made the loss several times larger, or none."""
    return following is not None and not abs(following) <= LEAPS * abs(loss)


@once_a_run
def learns(run: Run) -> bool:
    """Whether training works: the loss is well below that of one answer for all samples, or most samples are right.

    Where the loss of one answer is not known, whether the loss fell. A loss also falls from that of wild first weights
    to that of one answer, which is not learning. False where nothing is known.
    """
    losses = training_losses(run)
    if not_finite(run) or not len(losses):
        return False
    records = list(run.of("loss"))
    late = [r for r in records[-max(1, len(records) // 4) :] if has(r, "accuracy")]
    accuracy = median(r.values["accuracy"] for r in late) if late else math.nan
    constant = constant_accuracy(run, [r.values for r in late])
    known = len(losses) >= FEW_STEPS and losses.share is not None
    if (
        accuracy >= LEARNS_ACCURACY
        and not accuracy <= constant
        and not (known and _samples_of(run, late) < ENOUGH_ANSWERS)
    ):
        return True
    if losses.share is not None and len(losses) >= FEW_STEPS:
        return losses.share <= LEARNS_SHARE
    return fell(list(map(float, losses.finite)), losses.least) and not accuracy <= constant


def _samples_of(run: Run, records: Sequence[Record]) -> float:
    """Samples that were measured at these steps; infinite where that is not known."""
    steps = {r.step for r in records}
    counts = [number(r.values.get("num_samples")) for r in run.of("kernel") if r.step in steps]
    return sum(counts) if counts and all(map(math.isfinite, counts)) else math.inf


def constant_accuracy(run: Run, late: Sequence[Mapping[str, Any]]) -> float:
    """Share of right answers of the most frequent class; nan where it is not known."""
    counts = class_counts(run).values()
    if counts:
        return max(counts) / sum(counts)
    known = [c for values in late if math.isfinite(c := number(values.get("constant_accuracy")))]
    return median(known) if known else math.nan


def falls_short(run: Run) -> bool:
    """Whether much is left to learn: training does not work, or a good part of one answer's loss is still there."""
    return _has_left(run, FALLS_SHORT)


def _has_left(run: Run, most: float) -> bool:
    """Whether training does not work, or more than this share of one answer's loss is still there."""
    losses = training_losses(run)
    left = losses.share if len(losses) >= FEW_STEPS else None
    return not learns(run) or (left is not None and left > most)


def severity_of_mistake(run: Run) -> str:
    """What is no state but a mistake, and is there from the start, is a warning until hardly any loss is left."""
    return "warning" if _has_left(run, MISTAKE_LEFT) else "info"


def severity_of_symptom(run: Run) -> str:
    """What shows in any training at first is a warning where training does not work, and has had the steps to."""
    return "info" if is_early(run) else severity(run)


def is_early(run: Run) -> bool:
    """Whether the loop showed so few steps that nothing is known yet of what is learnt."""
    return 0 < len(run.course("loss")[1]) < MANY_STEPS


def severity(run: Run) -> str:
    """A state that may do harm is a warning where training does not work, and worth knowing where it does."""
    return "info" if learns(run) else "warning"
