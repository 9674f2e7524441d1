"""Losses that grew, where their smallest value or that of one answer for all is not known.

Then a first loss may be low by chance, and of unknown zero no ratio means anything. The scale is the loss's own: what
it had moved before it rose for good, and what it changes from step to step, unless steps are so long that noise is no
explanation. A loss that rises evenly is none that diverges: the weights of its parts may grow by plan.
"""

from __future__ import annotations

import numpy as np

from pullback.advisor.course import Losses, change
from pullback.advisor.reading import once_a_run, records_with
from pullback.advisor.thresholds import DIVERGING_CHANGES, EVEN_PARTS, FEW_PARTS, FEW_UPDATES, LARGE_UPDATE, STEEP
from pullback.runs import Run


def rose_at(run: Run, losses: Losses) -> int | None:
    """The step by which a loss of unknown zero stood far above its start for good; None of one that rises evenly."""
    known = np.isfinite(losses.running)
    running = losses.running[known]
    if len(running) < FEW_PARTS:
        return None
    height = _height(losses, running)
    below = np.flatnonzero(running <= losses.start)
    before = running[: below[-1] + 1] if len(below) else running[:0]
    fall = losses.start - float(before.min()) if len(before) else 0.0
    moved = max(fall, change(before)) if len(before) >= FEW_PARTS else fall
    rounding = float(np.finfo(np.float32).eps) * abs(losses.start)
    far = DIVERGING_CHANGES * max(moved, rounding)
    if height <= far or _is_even(running, losses.start, height) or not beyond_noise(run, losses):
        return None
    return losses.above_at(losses.start + far, int(np.flatnonzero(known)[len(before)]))


def beyond_noise(run: Run, losses: Losses) -> bool:
    """Whether a rise above a first loss is no low first draw.

    It is far larger than what the loss changes from step to step, or the first steps moved the weights by so much of
    their size that the loss may change as much.
    """
    running = losses.running[np.isfinite(losses.running)]
    height = _height(losses, running) if len(running) else 0.0
    return height > 0 and (height > DIVERGING_CHANGES * change(losses.finite) or _is_wild(run))


def _height(losses: Losses, running: np.ndarray) -> float:
    """Of the end above the start, by the lower of the last running median and the level of the last quarter."""
    return min(float(running[-1]), float(np.median(running[-max(1, len(running) // 4) :]))) - losses.start


def _is_even(running: np.ndarray, start: float, height: float) -> bool:
    """Whether no fifth of the course makes most of the rise."""
    parts = np.array_split(running, min(EVEN_PARTS, len(running)))
    levels = np.array([start, *(float(np.median(part)) for part in parts)])
    return float((levels[2:] - levels[:-2]).max()) < STEEP * height


@once_a_run
def _is_wild(run: Run) -> bool:
    early = records_with(run, "updates", "median")[:FEW_UPDATES]
    return bool((early.numbers("median") > LARGE_UPDATE).any())
