"""Learning rate against curvature, against the weights, and against what the loss does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.course import Losses, error_of_level, grew
from pullback.advisor.findings import Finding
from pullback.advisor.model import is_batch_normed
from pullback.advisor.reading import CONVENTION, class_counts, lasts, least_loss, not_finite, records_with
from pullback.advisor.rules.curvature import STABILITY, curvatures_of
from pullback.advisor.rules.first_steps import in_sums, out_of_reach
from pullback.advisor.rules.travelled import crawls, updates_of, way_of
from pullback.advisor.severity import falls_short, is_early, learns, severity
from pullback.advisor.thresholds import (
    DIVERGING,
    FALLS_BY,
    FALLS_SHORT,
    FIRST_UPDATE,
    GOOD_UPDATE,
    HALF_TRAVELLED,
    HALF_WAY,
    HARDLY_BEGUN,
    LARGE_UPDATE,
    LEARNS_CHANGES,
    LITTLE_WAY,
    LOWEST_FACTOR,
    MANY_LOSSES,
    MANY_SHARPNESS,
    MANY_STEPS_OF_FALL,
    MODEST_UPDATE,
    RAISED,
    RAISED_FAR,
    SHARE_OF_LIMIT,
    SMALL_UPDATE,
    STABLE_SHARE,
    TRAVELLED,
    WELL_TRAVELLED,
    WILD_UPDATE,
)
from pullback.advisor.training_losses import summed_over, training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows

WHERE_TOO_HIGH = (
    "largest curvature above the optimiser's limit of stability in half of the measurements, or in the first of a "
    f"run that does not learn; of such a run also relative updates above {LARGE_UPDATE:g}; of one that falls short "
    f"first updates above {WILD_UPDATE:g}, updates above {LARGE_UPDATE:g} in half of the measurements, or a loss that "
    f"leapt to {DIVERGING:g} times its start; of one that learns nothing a single update above {FIRST_UPDATE:g}"
)


def too_high(run: Run) -> Iterator[Finding]:
    """Steps that are too long: for the curvature, for the weights, or by what the loss did at once.

    Of Adam's first steps the curvature says nothing: it stands at thousands of limits in runs that train well.
    Training may hover at the limit of stability and still learn. Where it does not, the first measurement is enough:
    units that the first steps killed have no curvature, and a loss that leapt comes back to that of one answer for all.
    """
    if is_early(run):
        yield from out_of_reach(run)
        return
    curvatures, losses = [each for each in curvatures_of(run) if not each.at_start], training_losses(run)
    works, short = learns(run), falls_short(run)
    above = [each for each in curvatures if each.sharpness > each.limit]
    lasting = lasts(above, curvatures)
    at_first = above[:1] == curvatures[:1] and not works and not crawls(run)
    short = short and not (works and is_batch_normed(run))  # which bears wild steps: weights grow, and turn less
    updates = _large_updates(run, works=works) if short else updates_of(run)[:0]
    factors: list[float] = []
    evidence: dict[str, float] = {}
    reasons: list[str] = []
    steps: list[int] = []
    if above and (at_first or (lasting and not crawls(run) and (len(above) >= MANY_SHARPNESS or not works))):
        worst = max(above, key=lambda each: each.sharpness / each.limit)
        evidence |= {"sharpness": worst.sharpness, "limit": worst.limit}
        steps += [above[0].step, above[-1].step]
        factors.append(SHARE_OF_LIMIT * above[0].limit / above[0].sharpness)
        reasons.append("longer than the curvature of the loss can bear")
    if updates:
        evidence["|dw| / |w|"] = updates[0].values["median"]
        steps += [min(1, updates[0].step), updates[-1].step]
        modest = works and losses.leapt_at is None
        once = updates[0].values["median"] > FIRST_UPDATE and updates_of(run)[0].values["median"] <= LARGE_UPDATE
        factors.append(0.1 if once else (MODEST_UPDATE if modest else GOOD_UPDATE) / updates[0].values["median"])
        reasons.append(f"{updates[0].values['median']:.2g} times as long as the weights themselves")
    leapt = short and losses.leapt_at is not None
    if leapt and losses.leapt_at is not None and not losses.grew and not not_finite(run):
        evidence["highest loss, in first ones"] = losses.peak
        steps += [max(1, losses.leapt_at - 3), losses.leapt_at]
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
    summed_words = in_sums(summed)
    yield Finding(
        "learning-rate-too-high",
        "warning" if updates or leapt else severity(run),
        None,
        (min(steps), max(steps)),
        evidence,
        WHERE_TOO_HIGH,
        STABILITY + "; " + CONVENTION,
        f"Lower the {which}{target}"
        + (f", best to {factor:.2g} of what it is" if target else f" to {factor:.2g} of what it is"),
        summary=f"Steps are {' and '.join(reasons)}, so that they overshoot.{summed_words}",
        change=Change("learning_rate", factor),
    )


def _large_updates(run: Run, *, works: bool) -> Rows:
    """Measurements of steps that move the weights by so much of their size, if half of them show it, or the first does.

    Where training works the first has to be wild for that: many start so, and go on with shorter ones. Where it does
    not, one step of half of the weights is enough, whenever it came: what it killed has no gradient, and later steps
    are short.
    """
    records = updates_of(run)
    sizes = records.numbers("median")
    large = records.where(sizes > LARGE_UPDATE)
    if lasts(large, records):
        return large
    beyond = sizes > (WILD_UPDATE if works else LARGE_UPDATE)
    if beyond[:1].any():
        return records.where(beyond)
    return large[:0] if works else records.where(sizes > FIRST_UPDATE)


def too_low(run: Run) -> Iterator[Finding]:
    """The loss hardly moves, or still falls evenly from near its start, and steps could be many times longer."""
    losses, least = training_losses(run), least_loss(run)
    finite = losses.finite
    if len(finite) < MANY_LOSSES or not_finite(run) or grew(finite, least) or losses.leapt_at is not None:
        return
    updates = updates_of(run)
    way, stuck = way_of(updates, run), crawls(run)
    barely = len(updates) > MANY_SHARPNESS and way < LITTLE_WAY
    falls = _still_falls(losses, barely=barely, tokens=not class_counts(run) and _is_entropy(run))
    far = len(updates) > MANY_SHARPNESS and way < HALF_TRAVELLED and _has_hardly_begun(losses)
    if learns(run) and not falls and not far:
        return
    curvatures = [each for each in curvatures_of(run) if each.sharpness > 0]
    slow = len(curvatures) >= MANY_SHARPNESS and all(c.sharpness < STABLE_SHARE * c.limit for c in curvatures)
    small = updates.where(updates.numbers("median") < SMALL_UPDATE)
    little = slow or stuck or lasts(small, updates) or far or (len(updates) > MANY_SHARPNESS and falls)
    if not little or way > (TRAVELLED if falls else HALF_TRAVELLED):
        return
    evidence = {"first loss": float(finite[0]), "last loss": float(finite[-1])}
    factor = RAISED if way == 0 else min(RAISED, WELL_TRAVELLED / way)
    if way > 0 and (stuck or barely):
        factor = min(RAISED_FAR, max(RAISED, HALF_TRAVELLED / way))
    action = f"Raise the learning rate {'tenfold' if factor == RAISED else f'{factor:.2g} times'}"
    bent = [c for c in curvatures if not c.at_start]
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
        + f", falls as evenly at the end as at the start with much of one answer's loss left, or has {HARDLY_BEGUN:g} "
        f"of it left after weights went less than {HALF_TRAVELLED:g} of their size",
        CONVENTION,
        action,
        summary="The steps are so short that the loss hardly moves: the same training could be many times faster.",
        change=Change("learning_rate", factor),
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
