"""A run's losses as the loop had them, and what one answer for all samples would reach."""

from __future__ import annotations

import math

import numpy as np

from pullback.advisor.course import Losses
from pullback.advisor.reading import class_counts, least_loss, number, once_a_run, records_with
from pullback.advisor.thresholds import COMPARABLE, FEW_RATIOS, LEAPS, LEAST_WITHIN, LEVEL_STDERRS
from pullback.runs import Run
from pullback.runs.rows import Rows


@once_a_run
def constant_loss(run: Run) -> float | None:
    """What the best answer reaches that is the same for every sample, over the data of all measurements.

    Of classes it is the entropy of their frequencies: within a batch of few samples, or of one class, that is too low.
    """
    records = records_with(run, "loss", "constant_loss")
    if not records:
        return None
    form, counts = records[-1].values.get("form"), [*class_counts(run).values()]
    if any(counts) and form in ("cross-entropy", "nll", "binary", "binary-nll"):
        return _entropy(counts)
    if form in ("absolute", "huber"):
        return _of_few(run, records, squared=False)
    if form != "squared":
        return _of_tokens(run, float(np.median(records.numbers("constant_loss"))))
    whole = _variance(run)
    scales = records_with(run, "loss", "constant_scale").numbers("constant_scale")
    if whole is not None and len(scales):
        return float(np.median(scales)) * whole
    return _of_few(run, records)


def entropy_of_labels(run: Run) -> float | None:
    """Of the classes or tokens of all batches, whatever the loss is; None of targets that are none, or all the same."""
    known = records_with(run, "all_targets", "token_entropy").numbers("token_entropy")
    whole = float(known[-1]) if len(known) else _entropy([*class_counts(run).values()])
    return whole if whole > 0 else None


def _of_tokens(run: Run, measured: float) -> float:
    """The entropy of the tokens of all batches, where losses are means over them; else what few samples show.

    Of few tokens, neighbours in a text above all, the entropy is too low. Sums over tokens are many times as large.
    """
    known = records_with(run, "all_targets", "token_entropy").numbers("token_entropy")
    return max(float(known[-1]), measured) if len(known) and measured < COMPARABLE * known[-1] else measured


def _entropy(counts: list[float]) -> float:
    """Of classes that are so frequent, in nats."""
    every = sum(counts)
    return -sum(count / every * math.log(count / every) for count in counts if count > 0)


def _variance(run: Run) -> float | None:
    """Of the targets of all batches, the mean over outputs; None where the record has no sums of theirs."""
    records = records_with(run, "all_targets", "num_samples")
    parts = [records.cells(name) for name in ("sums", "square_sums")]
    if not records or len({len(each) if isinstance(each, list) else 0 for part in parts for each in part}) != 1:
        return None
    sums, squares = np.array(parts, dtype=float).sum(1) / float(records.numbers("num_samples").sum())
    variance = float((squares - sums**2).mean()) if np.ndim(sums) == 1 and len(sums) else math.nan
    return variance if math.isfinite(variance) and variance > LEAST_WITHIN * float(squares.mean()) else None


def _of_few(run: Run, records: Rows, *, squared: bool = True) -> float | None:
    """The same by the samples of the measurements, each about its own mean, less one for that: a median lies lower.

    Of distances from a median that takes off no less than there is to take: by 0.11 of normal targets too much for four
    samples, by 0.03 for seven. None of single samples, but where there are enough of them: they lie on their own mean.
    """
    counted: dict[int, float] = {}
    for probe in ("targets", "kernel"):
        known = records_with(run, probe, "num_samples")
        counted |= zip(known.steps.tolist(), known.numbers("num_samples").tolist(), strict=True)
    counts = np.array([counted.get(step, 1.0) for step in records.steps.tolist()])
    free = float((counts - 1).sum())
    means = records_with(run, "targets", "mean").numbers("mean")
    if counted and free <= 0 and (len(means) < 3 or not squared):
        return None
    within = float((counts * records.numbers("constant_loss")).sum()) / (free if free > 0 else len(counts))
    return (
        max(within, float(np.var(means))) if squared and len(means) > 2 else within
    )  # batches that differ more than samples do


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
    steps, values = run.courses.of("loss")
    least, constant = least_loss(run), constant_loss(run)
    if len(steps):
        batch = summed_over(run)
        if least is not None and bool((values < least).any()):
            least = None
        return Losses(
            steps, values if batch == 1 else values / batch, least, constant if _comparable(run, batch) else None
        )
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
    steps, values = run.courses.of("loss")
    records = records_with(run, "loss", "loss", "batch_loss")
    shown, measured = records.numbers("batch_loss"), records.numbers("loss")
    kept = (measured != 0) & ~_leaps(steps, values, records.steps, shown)
    shown, measured = shown[kept] / batch, measured[kept]
    if len(shown) < FEW_RATIOS:
        return True
    late = slice(len(shown) // 2, None)
    sums = float(shown[late].sum()), float(measured[late].sum())
    each = shown / measured
    ratios = [float(np.median(each)), sums[0] / sums[1] if sums[1] else math.nan]
    return any(1 / COMPARABLE < ratio < COMPARABLE for ratio in ratios) or _may_be_chance(each[late])


def _may_be_chance(ratios: np.ndarray) -> bool:
    """Whether these, of few samples each, are as near to 1 as that in one of twenty such choices of samples.

    Of long steps the loss of before is larger than that of after, by more or less as the samples have it.
    """
    if len(ratios) < FEW_RATIOS or not (ratios > 0).all():
        return False
    logs = np.log(ratios)
    error = float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    return abs(float(logs.mean())) - LEVEL_STDERRS * error < math.log(COMPARABLE)


def _leaps(steps: np.ndarray, values: np.ndarray, at: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Of each loss at these steps whether its step made it several times larger, or none; not where that is unknown."""
    places = np.searchsorted(steps, at)
    known = np.flatnonzero(places + 1 < len(steps))
    known = known[steps[places[known]] == at[known]]
    leaps = np.zeros(len(at), bool)
    leaps[known] = ~(np.abs(values[places[known] + 1]) <= LEAPS * np.abs(losses[known]))
    return leaps
