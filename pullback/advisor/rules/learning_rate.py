"""Learning rate against curvature, and a loss that grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.course import Losses, error_of_level, grew, growth
from pullback.advisor.findings import Finding
from pullback.advisor.model import kinds
from pullback.advisor.reading import (
    CONVENTION,
    LOSSES,
    by_layer,
    has,
    lasts,
    learns,
    least_loss,
    not_finite,
    number,
    records_with,
    severity,
    summed_over,
    training_losses,
)
from pullback.advisor.thresholds import (
    DIVERGING,
    DIVERGING_CHANGES,
    GOOD_UPDATE,
    LARGE_UPDATE,
    LEARNS_CHANGES,
    LITTLE_WAY,
    MANY_LOSSES,
    MANY_SHARPNESS,
    SMALL_UPDATE,
    STABLE_SHARE,
    TRAVELLED,
)
from pullback.runs import Record, Run

STABILITY = (
    "stability of gradient descent on a quadratic: 2 / lr, with momentum (2 + 2 m) / lr; Cohen et al. (2021), "
    "arXiv:2103.00065; Adam: Cohen et al. (2022), arXiv:2207.14484"
)
FIRST_STEPS = 10  # a tenth of the memory that Adam's second moments have at 0.99, and all that batch norm has
SHARE_OF_LIMIT = 0.25  # a rate at the limit itself trains badly, and few samples see less than all of the curvature
LOWEST_FACTOR = 1e-3  # of one change: a step that was far too long leaves curvature behind that is not the start's
RAISED, RAISED_FAR = 10.0, 100.0  # at most, by one change; of weights that barely moved


@dataclass(frozen=True)
class _Curvature:
    """Largest curvature at a step, as the optimiser sees it, and the largest it can bear at its learning rate."""

    record: Record
    sharpness: float
    limit: float
    at_start: bool  # of Adam's first steps, whose second moments are those of a batch or two

    @property
    def stable_rate(self) -> float:
        """The learning rate whose limit is this sharpness: both limits are a constant over the rate."""
        rate = number(self.record.values.get("learning_rate"))
        return (rate * self.limit if math.isfinite(rate) else 2.0) / self.sharpness

    @property
    def which(self) -> str:
        """The rate to change; of several groups the one whose steps are longest for what it bears."""
        rates = self.record.values.get("learning_rates")
        several = isinstance(rates, list) and len(rates) > 1
        rate = number(self.record.values.get("learning_rate"))
        return f"learning rate of {rate:.3g}, and the others with it," if several else "learning rate"


def divergence(run: Run) -> Iterator[Finding]:
    """The loss left the finite numbers, or is on its way: the trained weights do worse than the first ones."""
    losses, bad = training_losses(run), not_finite(run)
    found = None
    if bad:
        steps, threshold = (min(bad), max(bad)), "the loss is NaN or infinite"
        evidence = {"measurements": float(len(set(bad)))}
        words = f"The loss left the finite numbers at step {min(bad)}"
    elif losses.grew and losses.leapt_at is not None:
        steps, threshold = (losses.leapt_at, int(losses.steps[-1])), _grown(losses.least) + ", as the median of three"
        evidence = {"first loss": losses.start, "lowest loss": float(losses.finite.min()), "last loss": losses.last}
        words = f"The loss grew to {float(losses.running[-1]):.3g}, from {losses.start:.3g} at the start"
    elif found := _grown_records(run, losses):
        lowest = min(found, key=lambda pair: pair[1])
        steps, threshold = (lowest[0], found[-1][0]), _grown(least_loss(run))
        evidence = {"first loss": found[0][1], "lowest loss": lowest[1], "last loss": found[-1][1]}
        words = f"The loss grew to {found[-1][1]:.3g}, from {found[0][1]:.3g} at the start"
    else:
        return
    action = "Lower the learning rate, or clip gradients by norm"
    change = Change("learning_rate", 0.1)
    sharp = [each for each in _curvatures(run)[-1:] if each.sharpness > each.limit]
    if sharp:
        evidence |= {"sharpness": sharp[0].sharpness, "limit": sharp[0].limit}
        threshold += ", along the sharpest direction, in which the learning rate is above the limit of stability"
        action = f"Lower the {sharp[0].which} to below {sharp[0].stable_rate:.3g}"
        change = lower(sharp[0].limit / sharp[0].sharpness)
    source = "definition; " + STABILITY
    summary = f"{words}: the model is worse than before training."
    layer = _fastest_layer(run)
    yield Finding(
        "divergence", "critical", layer, steps, evidence, threshold, source, action, summary=summary, change=change
    )


def too_high(run: Run) -> Iterator[Finding]:
    """Steps that are too long: for the curvature, for the weights, or by what the loss did at once.

    Training may hover at the limit of stability and still learn. Where it does not, the first measurement is enough:
    units that the first steps killed have no curvature, and a loss that leapt comes back to that of one answer for all.
    """
    curvatures, works = _curvatures(run), learns(run)
    above = [each for each in curvatures if each.sharpness > each.limit]
    at_first = above[:1] == curvatures[:1] and not works and not _crawls(run)
    lasting = lasts([each.record for each in above], [each.record for each in curvatures])
    updates = [] if works else _large_updates(run)
    factors: list[float] = []
    evidence: dict[str, float] = {}
    reasons: list[str] = []
    steps: list[int] = []
    if above and (at_first or (lasting and not _crawls(run) and (len(above) >= MANY_SHARPNESS or not works))):
        worst = max(above, key=lambda each: each.sharpness / each.limit)
        evidence |= {"sharpness": worst.sharpness, "limit": worst.limit}
        steps += [above[0].record.step, above[-1].record.step]
        if not (updates and has(above[0].record, "preconditioned")):  # in Adam's first steps that is far above its own
            factors.append(SHARE_OF_LIMIT * above[0].limit / above[0].sharpness)
        reasons.append("longer than the curvature of the loss can bear")
    if updates:
        evidence["|dw| / |w|"] = updates[0].values["median"]
        steps += [min(1, updates[0].step), updates[-1].step]
        factors.append(GOOD_UPDATE / updates[0].values["median"])
        reasons.append(f"{updates[0].values['median']:.2g} times as long as the weights themselves")
    losses = training_losses(run)
    if not works and losses.leapt_at is not None and not losses.grew and not not_finite(run):
        evidence["highest loss, in first ones"] = losses.peak
        steps += [max(0, losses.leapt_at - 3), losses.leapt_at]
        factors.append(0.1)
        reasons.append(f"so long that the loss leapt to {losses.peak:.2g} times its start")
    if not reasons:
        return
    which, target = "learning rate", ""
    if above and "sharpness" in evidence:
        worst = max(above, key=lambda each: each.sharpness / each.limit)
        which, target = worst.which, f" to below {worst.stable_rate:.3g}"
    summed = summed_over(run)
    factor = max(LOWEST_FACTOR, min([*factors, 1 / summed]))
    summed_words = (
        f" The loss is summed over {summed:.0f} samples, which makes them as many times longer." if summed > 1 else ""
    )
    yield Finding(
        "learning-rate-too-high",
        severity(run),
        None,
        (min(steps), max(steps)),
        evidence,
        "largest curvature above the optimiser's limit of stability in half of the measurements, or in the first of a "
        f"run that does not learn; of such a run also relative updates above {LARGE_UPDATE:g}, or a loss that leapt to "
        f"{DIVERGING:g} times its start",
        STABILITY + "; " + CONVENTION,
        f"Lower the {which}{target}"
        + (f", best to {factor:.2g} of what it is" if target else f" to {factor:.2g} of what it is"),
        summary=f"Steps are {' and '.join(reasons)}, so that they overshoot.{summed_words}",
        change=Change("learning_rate", factor),
    )


def _large_updates(run: Run) -> list[Record]:
    """Measurements of steps that move the weights by a tenth of their size, if the first shows it or half of them."""
    records = records_with(run, "updates", "median")
    large = [r for r in records if r.values["median"] > LARGE_UPDATE]
    return large if large and (large[0] is records[0] or lasts(large, records)) else []


def too_low(run: Run) -> Iterator[Finding]:
    """The loss hardly moves, or still falls evenly from near its start, and steps could be many times longer."""
    losses, least = training_losses(run), least_loss(run)
    finite = list(map(float, losses.finite))
    if len(finite) < MANY_LOSSES or not_finite(run) or grew(finite, least) or losses.leapt_at is not None:
        return
    if learns(run) and not _still_falls(losses):
        return
    curvatures = [each for each in _curvatures(run) if each.sharpness > 0]
    slow = len(curvatures) >= MANY_SHARPNESS and all(c.sharpness < STABLE_SHARE * c.limit for c in curvatures)
    updates = records_with(run, "updates", "median")
    small = [r for r in updates if r.values["median"] < SMALL_UPDATE]
    way, crawls = _way(updates, run), _crawls(run)
    little = slow or crawls or lasts(small, updates) or (len(updates) > MANY_SHARPNESS and _still_falls(losses))
    if not little or way > TRAVELLED:
        return
    evidence = {"first loss": finite[0], "last loss": finite[-1]}
    factor = min(RAISED_FAR, TRAVELLED / way) if crawls and way > 0 else RAISED
    action = f"Raise the learning rate {'tenfold' if factor == RAISED else f'{factor:.2g} times'}"
    bent = [c for c in curvatures if not (c.at_start and crawls)]
    if bent:
        sharpest = max(bent, key=lambda c: c.sharpness / c.limit)
        evidence |= {"sharpness": sharpest.sharpness, "limit": sharpest.limit}
        goal = 2 * SHARE_OF_LIMIT * sharpest.stable_rate
        action = f"Raise the {sharpest.which.rstrip(',')}, step by step, towards {goal:.3g}"
        factor = min(factor, max(1.0, SHARE_OF_LIMIT * sharpest.limit / sharpest.sharpness))
    if small:
        evidence["median |dw| / |w|"] = small[-1].values["median"]
    if updates:
        evidence["|dw| / |w|, all steps together"] = way
    yield Finding(
        "learning-rate-too-low",
        "warning",
        None,
        (int(losses.steps[0]), int(losses.steps[-1])),
        evidence,
        f"curvature below {STABLE_SHARE:g} of the limit in all measurements, or relative updates below "
        f"{SMALL_UPDATE:g} in half of them, or below {LITTLE_WAY:g} in all steps together, weights that "
        f"went less than {TRAVELLED:g} of their size, while the loss "
        "changes by less than "
        + (f"{LEARNS_CHANGES:g} of its changes between measurements" if least is None else "a fifth")
        + ", or falls as evenly at the end as at the start",
        CONVENTION,
        action,
        summary="The steps are so short that the loss hardly moves: the same training could be many times faster.",
        change=Change("learning_rate", factor),
    )


def _way(updates: list[Record], run: Run) -> float:
    """How far the weights went at most, in units of their size: a step's share times the steps."""
    return median(r.values["median"] for r in updates) * max(run.steps, default=0) if updates else 0.0


def _crawls(run: Run) -> bool:
    """Whether nothing is learnt, the loss never leapt, and all steps together are a small share of the weights.

    Of Adam's first steps the preconditioned curvature says nothing then: its second moments are those of one batch.
    Layers behind units that a rate far too high has killed stand still as well, but not all: outputs go on.
    """
    updates, losses = records_with(run, "updates", "median"), training_losses(run)
    if len(updates) <= MANY_SHARPNESS or len(losses) < MANY_LOSSES or not_finite(run) or losses.leapt_at is not None:
        return False
    return _way(updates, run) < LITTLE_WAY and _furthest(updates, run) < TRAVELLED and not learns(run)


def _furthest(updates: list[Record], run: Run) -> float:
    """How far the weights of a layer went at most, as ``_way`` does of all."""
    ratios = [by_layer(r, "ratio") for r in updates]
    ways = [median(each.get(layer, 0.0) for each in ratios) for layer in {name for each in ratios for name in each}]
    return max(ways, default=0.0) * max(run.steps, default=0)


def _still_falls(losses: Losses) -> bool:
    """Whether most of one answer's loss is still there, and the second half fell by at least half of the first.

    By more than chance: of a loss that stands, quarters differ by its noise.
    """
    if losses.share is None or losses.share < HALF_WAY or len(losses) < MANY_STEPS_OF_FALL:
        return False
    quarter = len(losses) // 4
    parts = [losses.finite[k * quarter : (k + 1) * quarter] for k in range(4)]
    first, second, third, last = (float(np.median(part)) for part in parts)
    return second - last > max(0.5 * (first - third), FALLS_BY * error_of_level(parts[3])) > 0 and first > third


HALF_WAY = 0.5  # of the loss of one answer for all, above which a rate can be called too low although training works
MANY_STEPS_OF_FALL = 40
FALLS_BY = 4.0  # standard errors of a quarter's level


def lower(room: float) -> Change:
    """A rate at a quarter of the limit, which is ``room`` times the present one; at least ten times lower."""
    return Change("learning_rate", max(LOWEST_FACTOR, min(0.1, SHARE_OF_LIMIT * room)))


def _curvatures(run: Run) -> list[_Curvature]:
    """Adam's kin and unequal groups by the preconditioned Hessian, other gradient descent by the plain one.

    Other optimisers have no known limit. Of a loop that sums its losses, what is measured is of the sum. Of the first
    steps of a model with batch norm nothing is known: in eval mode, in which it is measured, its statistics are still
    those it was made with.
    """
    found = []
    unsettled = any("batchnorm" in kind for kind in kinds(run))
    for record in run.of("sharpness"):
        early = record.step < FIRST_STEPS
        if early and unsettled:
            continue
        if has(record, "preconditioned", "preconditioned_limit"):
            values = (record.values["preconditioned"], record.values["preconditioned_limit"])
        elif record.values.get("optimizer") == "SGD" and has(record, "hessian", "limit"):
            values = (record.values["hessian"], record.values["limit"])
        else:
            continue
        sharpness, limit = map(float, values)
        found.append(_Curvature(record, sharpness, limit, early and "preconditioned" in record.values))
    return found


def _grown_records(run: Run, losses: Losses) -> list[tuple[int, float]]:
    """Steps and losses of what was measured, if that is divergence; the loop's course says more where it is long.

    Each measurement may be of other samples: where the loop's own losses fell, what grew is the choice of these.
    """
    shown = run.course("loss")[1]
    if len(shown) >= MANY_LOSSES and losses.least is not None:
        return []
    if len(shown) > 1 and shown[-1] <= shown[0]:
        return []
    return max((_growth(run, *where) for where in LOSSES), key=lambda each: each[0])[1]


def _growth(run: Run, probe: str, metric: str) -> tuple[float, list[tuple[int, float]]]:
    """Last over first loss, and steps and losses if that is divergence, else nothing.

    The batch loss of the very first step is a record of its own, where no measurement was made at it.
    """
    start = records_with(run, "start", metric)[:1] if probe == "loss" else []
    series = [(r.step, float(r.values[metric])) for r in [*start, *records_with(run, probe, metric)]]
    grown = growth([loss for _, loss in series], least_loss(run))
    return (grown, series) if grown > 1 else (0.0, [])


def _grown(least: float | None) -> str:
    if least is not None:
        return f"the loss grew to above {DIVERGING:g} times the first one" + (f", from {least:g}" if least else "")
    return (
        f"the loss grew by more than {DIVERGING_CHANGES:g} times its changes between measurements and its early range"
    )


def _fastest_layer(run: Run) -> str | None:
    """The layer whose gradient grew most since it was first measured: the direction weights run off in."""
    flows = [norms for r in run.of("flow") if (norms := by_layer(r, "gradient_norm"))]
    if len(flows) < 2:
        return None
    growth = {name: flows[-1][name] / norm for name, norm in flows[0].items() if norm > 0 and name in flows[-1]}
    return max(growth, key=lambda name: growth[name]) if growth else None
