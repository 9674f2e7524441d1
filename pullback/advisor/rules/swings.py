"""A loss that leaps and comes back, again and again, or that goes up and down from step to step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, not_finite
from pullback.advisor.severity import severity
from pullback.advisor.thresholds import MANY_SPIKES, MANY_SWINGS, SPIKE_NOISE, SPIKE_SHARE, SWINGS
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run

AROUND = 25  # steps on both sides whose median is the level at a step
SMOOTH = 1.4826  # of the median absolute deviation of normal noise, its standard deviation


def loss_spikes(run: Run) -> Iterator[Finding]:
    """Leaps of which each loses a good part of what was learnt: of the model, since three steps in a row show them."""
    losses = training_losses(run)
    if not_finite(run) or len(losses) < 2 * AROUND or losses.least is None or losses.start <= losses.least:
        return
    running = losses.running[np.isfinite(losses.running)]
    levels = _levels(running)
    above = running - levels
    learnt = losses.start - levels
    high = (above > SPIKE_SHARE * np.maximum(learnt, 0)) & (learnt > 0)
    high &= above > SPIKE_SHARE * (levels - losses.least)
    if not high.any():  # as of nearly all runs: what follows takes as long as all before it
        return
    high &= above > SPIKE_NOISE * SMOOTH * _levels(np.abs(above))
    high &= np.maximum.accumulate(above <= 0)  # once the first fall has reached its level
    starts = np.flatnonzero(high & ~np.concatenate([[False], high[:-1]]))
    starts = starts[np.concatenate([[True], np.diff(starts) > 3])] if len(starts) else starts
    if len(starts) < MANY_SPIKES:
        return
    norms = run.courses.of("gradient_norm")[1]
    norms = norms[np.isfinite(norms)]
    clip = float(np.median(norms)) if len(norms) else 0.0
    yield Finding(
        "loss-spikes",
        severity(run),
        None,
        (int(losses.steps[2 + starts[0]]), int(losses.steps[2 + starts[-1]])),
        {"spikes": float(len(starts)), "highest, above its level": float(above[high].max())},
        f"{MANY_SPIKES} leaps or more of the loss, as the median of three steps, above the level around it by "
        f"{SPIKE_SHARE:g} of what had been learnt and by {SPIKE_NOISE:g} times its noise",
        CONVENTION,
        "Clip gradients by norm" + (f" ({clip:.2g}, their median)" if clip else "") + ", or lower the learning rate",
        summary=f"The loss leaps {len(starts)} times and has to be won back: single steps are far too long.",
        change=Change("clip_norm", clip) if clip else Change("learning_rate", 0.3),
    )


def loss_oscillates(run: Run) -> Iterator[Finding]:
    """A loss that is high and low in turn: steps overshoot along one direction, and come back."""
    losses = training_losses(run)
    late = losses.finite[len(losses) // 2 :]
    if not_finite(run) or len(late) < MANY_SWINGS:
        return
    share, size = _alternation(late)
    if not share < SWINGS:
        return
    yield Finding(
        "loss-oscillates",
        severity(run),
        None,
        (int(losses.steps[len(losses.steps) // 2]), int(losses.steps[-1])),
        {"correlation from step to step": share, "size": size, "loss": losses.last},
        f"a correlation of the loss with that of the step before, about its level, below {SWINGS:g} in the second half",
        "period two at the limit of stability, Cohen et al. (2021), arXiv:2103.00065; " + CONVENTION,
        "Lower the learning rate threefold; where an epoch has two batches in a fixed order, shuffle",
        summary="The loss goes up and down from step to step: steps overshoot and come back.",
        change=Change("learning_rate", 0.3),
    )


def _levels(values: np.ndarray) -> np.ndarray:
    """Medians of the steps around each, fewer at both ends.

    Args:
        values: (S,), finite.

    Cost: about half a microsecond a step.
    """
    from scipy.ndimage import median_filter  # heavy for what a short run asks of it

    levels = median_filter(values, 2 * AROUND + 1)
    for place in range(min(AROUND, len(values))):
        levels[place] = np.median(values[: place + AROUND + 1])
        levels[-place - 1] = np.median(values[-place - AROUND - 1 :])
    return levels


def _alternation(values: np.ndarray) -> tuple[float, float]:
    """Correlation of neighbours about a level that moves slowly, and the standard deviation about it.

    The level of a step is the mean of its two neighbours and, twice, itself: a course of period two has no part in it.
    """
    level = (values[:-2] + 2 * values[1:-1] + values[2:]) / 4
    slow = np.convolve(level, np.full(8, 1 / 8), mode="valid")
    rest = values[4 : 4 + len(slow)] - slow
    rest = rest - rest.mean()
    square = float((rest**2).sum())
    return (float((rest[1:] * rest[:-1]).sum()) / square if square > 0 else 0.0), float(rest.std())
