"""A run's losses as the loop had them, and what one answer for all samples would reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

from pullback.advisor.course import Losses
from pullback.advisor.reading import class_counts, least_loss, number, once_a_run, records_with
from pullback.advisor.thresholds import COMPARABLE, FEW_RATIOS, LEAPS, LEAST_WITHIN
from pullback.runs import Record, Run


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
