"""Whether training works, and so how much what a rule found matters."""

from __future__ import annotations

import math

import numpy as np

from pullback.advisor.course import fell, grew
from pullback.advisor.reading import class_counts, not_finite, once_a_run, records_with, rows
from pullback.advisor.thresholds import (
    ENOUGH_ANSWERS,
    FALLS_SHORT,
    FEW_RATIOS,
    FEW_STEPS,
    LEARNS_ACCURACY,
    LEARNS_SHARE,
    LEARNT_NOTHING,
    LEVEL_STDERRS,
    MANY_STEPS,
    MISTAKE_LEFT,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows


@once_a_run
def learns(run: Run) -> bool:
    """Whether training works: the loss is well below that of one answer for all samples, or most samples are right.

    Where the loss of one answer is not known, whether samples' own outputs suit them better than those of others or,
    where that is not known either, whether the loss fell. A loss also falls from that of wild first weights to that of
    one answer, which is not learning. False where nothing is known.
    """
    losses = training_losses(run)
    if not_finite(run) or not len(losses):
        return False
    records = rows(run, "loss")
    late = records[-max(1, len(records) // 4) :]
    late = late.where(np.isfinite(late.numbers("accuracy")))
    accuracy = float(np.median(late.numbers("accuracy"))) if late else math.nan
    constant = constant_accuracy(run, late)
    known = len(losses) >= FEW_STEPS and losses.share is not None
    if (
        accuracy >= LEARNS_ACCURACY
        and not accuracy <= constant
        and not (known and _samples_of(run, late) < ENOUGH_ANSWERS)
    ):
        return True
    if losses.share is not None and len(losses) >= FEW_STEPS:
        return losses.share <= LEARNS_SHARE
    chance = _by_chance(constant, _samples_of(run, late)) if losses.share is None else constant
    apart = tells_apart(run)
    works = fell(losses.finite, losses.least) if apart is None else apart and not grew(losses.finite, losses.least)
    return works and not accuracy <= chance


@once_a_run
def tells_apart(run: Run) -> bool | None:
    """Whether samples do better with their own outputs than with those of others; None where that is not known.

    A loss may fall to that of one answer for all in a single step, or to all that can be learnt. What tells these apart
    whatever the loss is: of one answer for all it does not matter whose it is. Not known is it, too, of gains that are
    large and scatter as widely, as those of a network do that begins to learn late.
    """
    own, swapped = _own_and_swapped(run)
    if len(own) < FEW_RATIOS:
        return None
    gain = swapped - own
    error = float(np.std(gain, ddof=1)) / len(gain) ** 0.5
    fall = abs(float(training_losses(run).finite[:1].sum()) - float(own.mean()))
    if gain.mean() <= (1 - LEARNT_NOTHING) * fall:
        return False
    return True if gain.mean() > LEVEL_STDERRS * error else None


def _own_and_swapped(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Of the second half of the measurements the losses with samples' own outputs, and with those of others."""
    records = records_with(run, "loss", "loss")
    late = records[len(records) // 2 :]
    late = late.where(np.isfinite(late.numbers("swapped_loss")))
    return late.numbers("loss"), late.numbers("swapped_loss")


def _by_chance(constant: float, samples: float) -> float:
    """Share of right answers that few samples show of a model that has learnt nothing; at most half of the way to 1."""
    error = math.sqrt(constant * (1 - constant) / samples) if samples > 0 else 0.0
    return constant + min(LEVEL_STDERRS * error, (1 - constant) / 2)


def _samples_of(run: Run, records: Rows) -> float:
    """Samples that were measured at these steps; infinite where that is not known."""
    kernels = rows(run, "kernel")
    counts = kernels.numbers("num_samples")[np.isin(kernels.steps, records.steps)]
    return float(counts.sum()) if len(counts) and np.isfinite(counts).all() else math.inf


def constant_accuracy(run: Run, late: Rows) -> float:
    """Share of right answers of the most frequent class; nan where it is not known."""
    counts = class_counts(run).values()
    if counts:
        return max(counts) / sum(counts)
    known = late.numbers("constant_accuracy")
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else math.nan


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
    return 0 < len(run.courses.of("loss")[1]) < MANY_STEPS


def severity(run: Run) -> str:
    """A state that may do harm is a warning where training does not work, and worth knowing where it does."""
    return "info" if learns(run) else "warning"
