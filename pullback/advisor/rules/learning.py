"""Whether anything is learnt at all, against what one answer for every sample reaches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.course import Losses, error_of_level
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, not_finite, records_with
from pullback.advisor.thresholds import EVEN_PARTS, FEW_STEPS, LEARNS_SHARE, LEARNT_NOTHING, LEVEL_STDERRS, MANY_STEPS
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run


def not_learning(run: Run) -> Iterator[Finding]:
    """A loss that stays where one answer for all samples would leave it or, where that is not known, where it began."""
    losses = training_losses(run)
    if len(losses) < MANY_STEPS or not_finite(run) or _most_are_right(run):
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
        stuck = _unchanged(losses, early, level, error)
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
