"""Whether anything is learnt at all, against what one answer for every sample reaches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.course import Losses, error_of_level
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, not_finite, records_with, rows
from pullback.advisor.severity import constant_accuracy, tells_apart
from pullback.advisor.thresholds import (
    ACCURACY_FALL,
    COMMON,
    EVEN_PARTS,
    FEW_STEPS,
    LEARNS_SHARE,
    LEARNT_NOTHING,
    LEVEL_STDERRS,
    MANY_LOOKS,
    MANY_STEPS,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run


def not_learning(run: Run) -> Iterator[Finding]:
    """A loss that stays where one answer for all samples would leave it or, where that is not known, where it began."""
    losses = training_losses(run)
    if len(losses) < MANY_STEPS or not_finite(run):
        return
    held_out = _held_out_accuracies(run)
    if _is_chance(run, held_out):
        yield _of_held_out(run, losses, held_out)
        return
    if _most_are_right(run):
        return
    late = losses.finite[-max(1, len(losses) // 4) :]
    level = float(np.median(late))
    error = error_of_level(late)
    if losses.share is not None and losses.constant is not None and losses.least is not None:
        height = losses.constant - losses.least
        share, doubt = (level - losses.least) / height, error / height
        stuck = share > LEARNT_NOTHING and share - LEVEL_STDERRS * doubt > LEARNS_SHARE and not _had_learnt(losses)
        evidence = {"loss": level, "loss of one answer for all": losses.constant}
        threshold = f"a loss above {LEARNT_NOTHING:g} of what the best answer reaches that is the same for every sample"
        words = "would leave it that gives every sample the same answer: nothing is learnt of the inputs."
        summary = f"The loss stays at {level:.3g}, where a model {words}"
    else:
        early = float(np.median(losses.finite[: max(1, len(losses) // 10)]))
        stuck = _unchanged(losses, early, level, error) and not tells_apart(run)
        evidence = {"loss": level, "loss at first": early}
        threshold = f"a level that fell by less than {1 - LEARNT_NOTHING:.0%} or two of its own errors"
        summary = f"The loss stays at {level:.3g}, where it began: nothing is learnt."
    if stuck:
        yield Finding(
            "not-learning",
            "warning",
            None,
            (int(losses.steps[0]), int(losses.steps[-1])),
            evidence,
            threshold + ", as the median of the last quarter",
            "entropy of the labels, variance of the targets; " + CONVENTION,
            "Take a few samples and train on them alone: a loop that is right learns them by heart; then compare rates "
            "a factor of three apart",
            summary=summary,
        )


def _held_out_accuracies(run: Run) -> np.ndarray:
    return records_with(run, "test", "accuracy").numbers("accuracy")


def _is_chance(run: Run, held_out: np.ndarray) -> bool:
    """Whether held-out samples, looked at often, were never right more often than one answer for all is.

    Where one class is the most of all, as many right answers say little.
    """
    constant = constant_accuracy(run, rows(run, "loss"))
    if len(held_out) < MANY_LOOKS or not constant <= COMMON:
        return False
    return bool(held_out.max() < constant + ACCURACY_FALL)


def _of_held_out(run: Run, losses: Losses, held_out: np.ndarray) -> Finding:
    return Finding(
        "not-learning",
        "warning",
        None,
        (int(losses.steps[0]), int(losses.steps[-1])),
        {
            "best held-out accuracy": float(held_out.max()),
            "accuracy of one answer for all": constant_accuracy(run, rows(run, "loss")),
            "looks": float(len(held_out)),
        },
        f"a held-out accuracy that is never above that of the most frequent class by {ACCURACY_FALL:g}, in "
        f"{MANY_LOOKS} looks or more, where that class has at most {COMMON:g} of the samples",
        "definition; " + CONVENTION,
        "Look at some training samples beside their labels: inputs and labels may have been put in another order each, "
        "or what is done to the inputs may take the labels' sense away",
        summary="Held-out samples are right no more often than by one answer for all: whatever is learnt is learnt by "
        "heart, and holds for no other sample.",
    )


def _had_learnt(losses: Losses) -> bool:
    """Whether a tenth of the run stood clearly below one answer's loss, as where an opponent then learns as well."""
    if losses.constant is None or losses.least is None or len(losses) < EVEN_PARTS * FEW_STEPS:
        return False
    parts = np.array_split(losses.finite, EVEN_PARTS)
    bound = losses.least + LEARNS_SHARE * (losses.constant - losses.least)
    levels = [(float(np.median(part)), error_of_level(part)) for part in parts]
    return any(level + LEVEL_STDERRS * error < bound for level, error in levels[:-2])


def _unchanged(losses: Losses, early: float, level: float, error: float) -> bool:
    fall = early - level
    if losses.least is not None:
        return fall < max((1 - LEARNT_NOTHING) * (early - losses.least), LEVEL_STDERRS * error)
    return fall < LEVEL_STDERRS * max(error, error_of_level(losses.finite))


def _most_are_right(run: Run) -> bool:
    """Whether the last measurement has more right answers than one answer for all by a tenth of the samples."""
    records = records_with(run, "loss", "accuracy", "constant_accuracy")
    return bool(records) and records[-1].values["accuracy"] > records[-1].values["constant_accuracy"] + 0.1
