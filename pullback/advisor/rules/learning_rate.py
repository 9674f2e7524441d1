"""A learning rate that is too low: against curvature, against the weights, and against what the loss does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pullback._text import multiple
from pullback.advisor.change import Change
from pullback.advisor.course import Losses, error_of_level, grew
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, class_counts, lasts, least_loss, not_finite, records_with
from pullback.advisor.rules.curvature import Curvature, curvatures_of
from pullback.advisor.rules.travelled import crawls, updates_of, way_of
from pullback.advisor.severity import learns
from pullback.advisor.thresholds import (
    FALLS_BY,
    FALLS_SHORT,
    HALF_TRAVELLED,
    HALF_WAY,
    HARDLY_BEGUN,
    LEARNS_CHANGES,
    LITTLE_WAY,
    MANY_LOSSES,
    MANY_SHARPNESS,
    MANY_STEPS_OF_FALL,
    RAISED,
    RAISED_FAR,
    RAISED_LEAST,
    SHARE_OF_LIMIT,
    SMALL_UPDATE,
    STABLE_SHARE,
    TRAVELLED,
    WELL_TRAVELLED,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows


@dataclass(frozen=True)
class Pace:
    """How the loss and the weights moved.

    Attributes:
        updates: records of the relative updates.
        way: of the weights in all steps together, in their own size; 0 where it is not known.
        crawls: the weights stand still by their updates.
        barely: hardly any way in a run whose updates were measured.
        falls: the loss goes on falling from near its start.
        hardly_begun: nearly all of the loss is left, and the weights went a short way.
    """

    updates: Rows
    way: float
    crawls: bool
    barely: bool
    falls: bool
    hardly_begun: bool

    @classmethod
    def of(cls, run: Run, losses: Losses) -> Pace:
        """Of a run, whose losses these are."""
        updates = updates_of(run)
        way, many = way_of(updates, run), len(updates) > MANY_SHARPNESS
        barely = many and way < LITTLE_WAY
        tokens = not class_counts(run) and _is_entropy(run)
        falls = _still_falls(losses, barely=barely, tokens=tokens)
        hardly_begun = many and way < HALF_TRAVELLED and _has_hardly_begun(losses) and not (tokens and learns(run))
        return cls(updates, way, crawls(run), barely, falls, hardly_begun)

    @cached_property
    def small(self) -> Rows:
        """Records in which half of the layers or more are hardly moved by a step."""
        return self.updates.where(self.updates.numbers("median") < SMALL_UPDATE)

    def is_short(self, curvatures: list[Curvature]) -> bool:
        """Whether steps could be many times longer, and did not lead far as they are."""
        slow = len(curvatures) >= MANY_SHARPNESS and all(c.sharpness < STABLE_SHARE * c.limit for c in curvatures)
        moves_little = self.crawls or self.hardly_begun or lasts(self.small, self.updates)
        could_be_longer = slow or moves_little or (self.falls and len(self.updates) > MANY_SHARPNESS)
        return could_be_longer and not self.way > (TRAVELLED if self.falls else HALF_TRAVELLED)

    @property
    def factor(self) -> float:
        """By which the rate is to be raised, as far as the weights' way says."""
        if self.way > 0 and (self.crawls or self.barely):
            return min(RAISED_FAR, max(RAISED, HALF_TRAVELLED / self.way))
        return RAISED if self.way == 0 else min(RAISED, WELL_TRAVELLED / self.way)


def too_low(run: Run) -> Iterator[Finding]:
    """The loss hardly moves, or still falls evenly from near its start, and steps could be many times longer."""
    losses, least = training_losses(run), least_loss(run)
    finite = losses.finite
    if len(finite) < MANY_LOSSES or not_finite(run) or grew(finite, least) or losses.leapt_at is not None:
        return
    pace, curvatures = Pace.of(run, losses), [each for each in curvatures_of(run) if each.sharpness > 0]
    if (learns(run) and not pace.falls and not pace.hardly_begun) or not pace.is_short(curvatures):
        return
    evidence = {"first loss": float(finite[0]), "last loss": float(finite[-1])}
    factor = pace.factor
    action = f"Raise the learning rate {'tenfold' if factor == RAISED else f'{multiple(factor)} times'}"
    if bent := [c for c in curvatures if not c.at_start]:
        sharpest = max(bent, key=lambda c: c.sharpness / c.limit)
        evidence |= {"sharpness": sharpest.sharpness, "limit": sharpest.limit}
        goal = 2 * SHARE_OF_LIMIT * sharpest.stable_rate
        action = f"Raise the {sharpest.which.rstrip(',')}, step by step, towards {goal:.3g}"
        factor = min(factor, SHARE_OF_LIMIT * sharpest.limit / sharpest.sharpness)
    if factor < RAISED_LEAST:
        return
    if pace.small:
        evidence["median |dw| / |w|"] = pace.small[-1].values["median"]
    if pace.updates:
        evidence["|dw| / |w|, all steps together"] = pace.way
    yield Finding(
        "learning-rate-too-low",
        "warning",
        None,
        (int(losses.steps[0]), int(losses.steps[-1])),
        evidence,
        _threshold(least),
        CONVENTION,
        action,
        summary="The steps are so short that the loss hardly moves: the same training could be many times faster.",
        change=Change("learning_rate", factor),
    )


def _threshold(least: float | None) -> str:
    changes = f"{LEARNS_CHANGES:g} of its changes between measurements" if least is None else "a fifth"
    return (
        f"curvature below {STABLE_SHARE:g} of the limit in all measurements, or relative updates below "
        f"{SMALL_UPDATE:g} in half of them, or below {LITTLE_WAY:g} in all steps together, weights that "
        f"went less than {TRAVELLED:g} of their size, while the loss changes by less than {changes}, falls as evenly "
        f"at the end as at the start with much of one answer's loss left, or has {HARDLY_BEGUN:g} of it left after "
        f"weights went less than {HALF_TRAVELLED:g} of their size"
    )


def _has_hardly_begun(losses: Losses) -> bool:
    """Whether nearly all of one answer's loss is still there, and the loss fell by more than chance."""
    if losses.share is None or losses.share < HARDLY_BEGUN or len(losses) < MANY_STEPS_OF_FALL:
        return False
    quarter = len(losses) // 4
    first, last = losses.finite[:quarter], losses.finite[-quarter:]
    return float(np.median(first) - np.median(last)) > FALLS_BY * error_of_level(last)


def _is_entropy(run: Run) -> bool:
    return bool({"cross-entropy", "nll"} & {*records_with(run, "loss", "loss").cells("form")})


def _still_falls(losses: Losses, *, barely: bool, tokens: bool) -> bool:
    """Whether most of one answer's loss is still there, and the second half fell by at least half of the first.

    Of a loss below that of one answer, the fall down to it is none: any rate makes it, and it hides what comes after.
    Of weights that barely moved, whether a good part of it is there, and a quarter of the whole fall. By more than
    chance: of a loss that stands, quarters differ by its noise. Of tokens most of one answer's loss is left by the best
    of models, and falls for long.
    """
    left, part = (FALLS_SHORT, 0.25) if barely else (HARDLY_BEGUN if tokens else HALF_WAY, 0.5)
    if losses.share is None or losses.constant is None or losses.share < left or len(losses) < MANY_STEPS_OF_FALL:
        return False
    quarter = len(losses) // 4
    parts = [losses.finite[k * quarter : (k + 1) * quarter] for k in range(4)]
    levels = [float(np.median(part)) for part in parts]
    most = losses.constant if levels[3] < losses.constant and not barely else max(levels)
    first, second, third, last = (min(level, most) for level in levels)
    enough = max(part * (first - third), FALLS_BY * error_of_level(parts[3]))
    return second - last > enough and levels[0] > levels[2]
