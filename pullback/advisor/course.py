"""The course of a loss: whether it fell, grew or stands still, whatever constant was added to it.

A loss whose smallest value is known (``least_loss`` in the run's description) is judged by its height above that, of
which it lost or gained a share. Of any other, a density or a score minus one, only differences mean something: they are
held against what the loss changes from one measurement to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from pullback.advisor.thresholds import (
    DIVERGING,
    DIVERGING_CHANGES,
    LEARNS_CHANGES,
    LEARNS_LOSS,
    MANY_LOSSES,
    PLATEAU,
    PLATEAU_CHANGES,
    TEST_LOSS_RISE,
    TEST_LOSS_SHARE,
)


def change(losses: Sequence[float]) -> float:
    """What the loss changes from one measurement to the next: the median of |difference|, 0 of a single one."""
    return median(abs(b - a) for a, b in pairwise(losses)) if len(losses) > 1 else 0.0


def fell(losses: Sequence[float], least: float | None) -> bool:
    """Whether the last quarter lies below the first measurement by what counts as learning.

    Where little is known, of fewer than five measurements, whether each of three or four lies below the one before.
    """
    first, last = losses[0], median(losses[-max(1, len(losses) // 4) :])
    if least is not None:
        return last - least <= LEARNS_LOSS * (first - least)
    if len(losses) < MANY_LOSSES:
        return len(losses) > 2 and all(b < a for a, b in pairwise(losses))
    return first - last > LEARNS_CHANGES * change(losses)


def grew(losses: Sequence[float], least: float | None) -> bool:
    """Whether the last one lies above the first by as much."""
    first, last = losses[0], losses[-1]
    if least is not None:
        return first - least < LEARNS_LOSS * (last - least)
    return last - first > LEARNS_CHANGES * change(losses)


def growth(losses: Sequence[float], least: float | None) -> float:
    """How far the loss grew, in units of what is divergence: above 1 it is."""
    if len(losses) < 2 or losses[-1] <= losses[0]:
        return 0.0
    first, last = losses[0], losses[-1]
    if least is not None and first > least:
        return (last - least) / (first - least) / DIVERGING
    early = losses[: 2 + (len(losses) - 1) // int(DIVERGING_CHANGES)]  # so many that an even rise is none
    scale = DIVERGING_CHANGES * max(change(losses), max(early) - min(early))
    return (last - first) / scale if scale > 0 else math.inf


def stands(losses: Sequence[float], least: float | None) -> bool:
    """Whether the medians of the last two quarters agree."""
    quarter = len(losses) // 4
    late = losses[-2 * quarter :]
    third, last = median(late[:quarter]), median(late[quarter:])
    if least is not None:
        return abs(last - third) <= PLATEAU * abs(third - least)
    return abs(last - third) <= max(PLATEAU * abs(losses[0] - last), PLATEAU_CHANGES * change(late))


def rose_again(test: Sequence[float], train: Sequence[float], least: float | None) -> bool:
    """Whether a held-out loss lies above its own minimum by what counts, while the training loss fell."""
    if not test or train[-1] >= train[0]:
        return False
    best = min(test)
    if least is not None and best > least:
        return test[-1] - least > TEST_LOSS_RISE * (best - least)
    return test[-1] - best > TEST_LOSS_SHARE * (train[0] - train[-1])
