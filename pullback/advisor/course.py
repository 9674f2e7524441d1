"""The course of a loss: whether it fell, grew or stands still, whatever constant was added to it.

A loss whose smallest value is known (``least_loss`` in the run's description) is judged by its height above that, of
which it lost or gained a share. Of any other, a density or a score minus one, only differences mean something: they are
held against what the loss changes from one measurement to the next.

``Losses`` is the course that the loop handed over at every step. Its levels are medians over windows, its noise is told
by differences of neighbours, so that neither a trend nor a single leap counts as noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pullback.advisor.thresholds import (
    DIVERGING,
    DIVERGING_CHANGES,
    FEW_SETTLED,
    FIRST_STEPS,
    LEARNS_CHANGES,
    LEARNS_LOSS,
    MANY_LOSSES,
    PLATEAU,
    PLATEAU_CHANGES,
    SETTLED,
    TEST_LOSS_RISE,
    TEST_LOSS_SHARE,
)

WINDOW = 50  # steps whose median is a level


@dataclass(frozen=True)
class Losses:
    """A run's training losses, step by step.

    Attributes:
        steps: (S,), ascending.
        values: (S,), those that are not finite among them.
        least: the smallest value the loss can have, or None.
        constant: what the best answer reaches that is the same for every sample, or None.
    """

    steps: np.ndarray
    values: np.ndarray
    least: float | None = None
    constant: float | None = None

    def __len__(self) -> int:
        return len(self.finite)

    @cached_property
    def finite(self) -> np.ndarray:
        """The values that are."""
        known = np.isfinite(self.values)
        return self.values if known.all() else self.values[known]

    @cached_property
    def start(self) -> float:
        """The first loss, or that of one answer for all, whichever is higher: a first batch may be an easy one."""
        first = float(self.finite[0])
        return first if self.constant is None else max(first, self.constant)

    @cached_property
    def last(self) -> float:
        """Median of the last ``window``."""
        return float(np.median(self.finite[-self.window :]))

    @cached_property
    def window(self) -> int:
        """How many losses a level is the median of: a tenth, at most ``WINDOW`` and at least one."""
        return _window(len(self))

    @cached_property
    def running(self) -> np.ndarray:
        """(S - 2,), medians of three in a row: one batch that stands out is no change of the course."""
        a, b, c = (self.values[k : max(0, len(self.values) - 2 + k)] for k in range(3))
        return (
            np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)) if len(self.values) > 2 else self.values[:0]
        )

    @cached_property
    def peak(self) -> float:
        """The highest running median in units of the start, both above the least; 0 where that is not known."""
        running = self.running[np.isfinite(self.running)]
        if not len(running) or self.least is None or self.start <= self.least:
            return 0.0
        return (float(running.max()) - self.least) / (self.start - self.least)

    @cached_property
    def rise(self) -> float:
        """Median of the first tenth, behind the first loss, in units of the start; 0 where that is not known."""
        early = self.finite[1 : max(FIRST_STEPS, len(self.finite) // 10)]
        if self.constant is None or self.least is None or self.start <= self.least or not len(early):
            return 0.0
        return (float(np.median(early)) - self.least) / (self.start - self.least)

    @property
    def leapt_at(self) -> int | None:
        """The first step at which the loss stood above ``DIVERGING`` starts, of those where its running median does."""
        if self.peak <= DIVERGING or self.least is None:
            return None
        return self.above_at(self.least + DIVERGING * (self.start - self.least))

    def above_at(self, bound: float, begin: int = 0) -> int:
        """The step at which the loss passed a bound that its running median passes, from a place of that on."""
        place = begin + int(np.argmax(self.running[begin:] > bound))
        return int(self.steps[place + int(np.argmax(self.values[place : place + 3] > bound))])

    @property
    def grew(self) -> bool:
        """Whether it stands there at the end."""
        if self.leapt_at is None or self.least is None:
            return False
        return bool(self.running[-1] - self.least > DIVERGING * (self.start - self.least))

    @cached_property
    def share(self) -> float | None:
        """What is left of the loss of one answer for all, or None where that is not known: 1 has learnt nothing."""
        if self.constant is None or self.least is None or self.constant <= self.least or not len(self):
            return None
        return (self.last - self.least) / (self.constant - self.least)

    @cached_property
    def settled(self) -> bool:
        """Whether the last quarter's mean lies below the third's by at most ``SETTLED`` of the fall from the start."""
        if len(self) < FEW_SETTLED:
            return False
        third, last = (float(part.mean()) for part in np.array_split(self.finite, 4)[2:])
        return third - last <= SETTLED * (self.start - last)


def error_of_level(values: np.ndarray) -> float:
    """Standard error of a median, by the differences of neighbours."""
    if len(values) < 2:
        return 0.0
    noise = 1.4826 * float(np.median(np.abs(np.diff(values)))) / 2**0.5
    return 1.2533 * noise / len(values) ** 0.5


def _window(count: int) -> int:
    return max(1, min(WINDOW, count // 10))


def change(losses: np.ndarray) -> float:
    """What the loss changes from one measurement to the next: the median of |difference|, 0 of a single one."""
    return float(np.median(np.abs(np.diff(losses)))) if len(losses) > 1 else 0.0


def fell(losses: np.ndarray, least: float | None) -> bool:
    """Whether the last quarter lies below the first measurement by what counts as learning.

    Where little is known, of fewer than five measurements, whether each of three or four lies below the one before.
    """
    first, last = float(losses[0]), float(np.median(losses[-max(1, len(losses) // 4) :]))
    if least is not None:
        return last - least <= LEARNS_LOSS * (first - least)
    if len(losses) < MANY_LOSSES:
        return len(losses) > 2 and bool((np.diff(losses) < 0).all())
    return first - last > LEARNS_CHANGES * change(losses)


def grew(losses: np.ndarray, least: float | None) -> bool:
    """Whether the last ones (a tenth, as their median) lie above the first by as much."""
    first, last = float(losses[0]), float(np.median(losses[-_window(len(losses)) :]))
    if least is not None:
        return first - least < LEARNS_LOSS * (last - least)
    return last - first > LEARNS_CHANGES * change(losses)


def growth(losses: np.ndarray, least: float | None) -> float:
    """How far the loss grew, in units of what is divergence: above 1 it is."""
    if len(losses) < 2 or losses[-1] <= losses[0]:
        return 0.0
    first, last = float(losses[0]), float(losses[-1])
    if least is not None and first > least:
        return (last - least) / (first - least) / DIVERGING
    early = losses[: 2 + (len(losses) - 1) // int(DIVERGING_CHANGES)]  # so many that an even rise is none
    scale = DIVERGING_CHANGES * max(change(losses), float(early.max() - early.min()))
    return (last - first) / scale if scale > 0 else math.inf


def stands(losses: np.ndarray, least: float | None) -> bool:
    """Whether the medians of the last two quarters agree."""
    quarter = len(losses) // 4
    late = losses[-2 * quarter :]
    third, last = float(np.median(late[:quarter])), float(np.median(late[quarter:]))
    if least is not None:
        return abs(last - third) <= PLATEAU * abs(third - least)
    return abs(last - third) <= max(PLATEAU * abs(float(losses[0]) - last), PLATEAU_CHANGES * change(late))


def rose_again(test: Sequence[float], train: np.ndarray, least: float | None) -> bool:
    """Whether a held-out loss lies above its own minimum by what counts, while the training loss fell."""
    if not test or train[-1] >= train[0]:
        return False
    best = min(test)
    if least is not None and best > least:
        return test[-1] - least > TEST_LOSS_RISE * (best - least)
    return bool(test[-1] - best > TEST_LOSS_SHARE * (train[0] - train[-1]))
