"""A learning rate that is too high: steps too long for the curvature, for the weights, or by what they did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pullback._text import listed, multiple
from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import is_batch_normed
from pullback.advisor.reading import CONVENTION, lasts, not_finite, records_with
from pullback.advisor.rules.curvature import STABILITY, Curvature, curvatures_of
from pullback.advisor.rules.first_steps import in_sums, out_of_reach
from pullback.advisor.rules.momentum import too_long_memory
from pullback.advisor.rules.travelled import crawls, updates_of
from pullback.advisor.rules.units import died
from pullback.advisor.rules.zeros import zero_layers
from pullback.advisor.severity import falls_short, is_early, learns, severity
from pullback.advisor.thresholds import (
    DEAD,
    DIVERGING,
    FIRST_MEASUREMENT,
    FIRST_UPDATE,
    GOOD_UPDATE,
    LARGE_UPDATE,
    LOWEST_FACTOR,
    MANY_SHARPNESS,
    MODEST_UPDATE,
    REPLACES,
    ROSE,
    SHARE_OF_LIMIT,
    WILD_UPDATE,
)
from pullback.advisor.training_losses import summed_over, training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows

WHERE_TOO_HIGH = (
    "largest curvature above the optimiser's limit of stability in half of the measurements, or in the first of a "
    f"run that does not learn; of such a run also relative updates above {LARGE_UPDATE:g}; of one that falls short "
    f"first updates above {WILD_UPDATE:g}, updates above {LARGE_UPDATE:g} in half of the measurements, a loss that "
    f"leapt to {DIVERGING:g} times its start or, as the median of the first tenth of the steps, stood at {ROSE:g} "
    f"times it (and at that of one answer for all), or more than {DEAD:g} of every layer's units dead that were not at "
    f"the start; of one that learns nothing a single update above {FIRST_UPDATE:g}"
)


SO_LONG = "so long that "  # begins the words of what steps did


class Sign(NamedTuple):
    """What says that steps are too long.

    Attributes:
        steps: the first and the last at which it shows.
        evidence: name -> number.
        factor: on the learning rate.
        words: steps are ...
    """

    steps: tuple[int, int]
    evidence: dict[str, float]
    factor: float
    words: str


def too_high(run: Run) -> Iterator[Finding]:
    """Steps that are too long, or that are made of gradients from all of the run."""
    findings = list(_too_long(run))
    yield from findings or too_long_memory(run)


def _too_long(run: Run) -> Iterator[Finding]:
    """Steps that are too long: for the curvature, for the weights, or by what they did to the loss or to units.

    Training may hover at the limit of stability and still learn. Where it does not, the first measurement is enough:
    units that the first steps killed have no curvature, and a loss that leapt comes back to that of one answer for all.
    """
    if is_early(run):
        yield from out_of_reach(run)
        return
    above = [each for each in curvatures_of(run) if not each.at_start and each.sharpness > each.limit]
    bent, wild = [*_curvature(run, above)], _wild_steps(run)
    signs = [*bent, *wild]
    if not signs:
        return
    which, target = "learning rate", ""
    if bent:
        worst = _worst(above)
        which, target = worst.which, f" to below {worst.stable_rate:.3g}"
    summed = summed_over(run)
    factor = max(LOWEST_FACTOR, min([*(sign.factor for sign in signs), 1 / summed]))
    yield Finding(
        "learning-rate-too-high",
        "warning" if wild else severity(run),
        None,
        (min(sign.steps[0] for sign in signs), max(sign.steps[1] for sign in signs)),
        {name: value for sign in signs for name, value in sign.evidence.items()},
        WHERE_TOO_HIGH,
        STABILITY + "; " + CONVENTION,
        f"Lower the {which}{target}"
        + (f", best to {factor:.2g} of what it is" if target else f" to {factor:.2g} of what it is"),
        summary=f"Steps are {_told(signs)}: they overshoot.{in_sums(summed)}",
        change=Change("learning_rate", factor),
    )


def _told(signs: list[Sign]) -> str:
    """What steps are, in one clause: by their length, then by what they did."""
    done = [sign.words.removeprefix(SO_LONG) for sign in signs if sign.words.startswith(SO_LONG)]
    long = [sign.words for sign in signs if not sign.words.startswith(SO_LONG)]
    return listed([*long, *([SO_LONG + listed(done)] if done else [])])


def _worst(above: list[Curvature]) -> Curvature:
    return max(above, key=lambda each: each.sharpness / each.limit)


def _curvature(run: Run, above: list[Curvature]) -> Iterator[Sign]:
    """Longer than the curvature bears; of Adam's first steps, at thousands of limits in good runs, it says nothing."""
    if not above:
        return
    known = [each for each in curvatures_of(run) if not each.at_start]
    works, stands = learns(run), crawls(run)
    at_first = above[0] == known[0] and not works and not stands
    if at_first or (lasts(above, known) and not stands and (len(above) >= MANY_SHARPNESS or not works)):
        worst = _worst(above)
        evidence = {"sharpness": worst.sharpness, "limit": worst.limit}
        factor = SHARE_OF_LIMIT * above[0].limit / above[0].sharpness
        yield Sign((above[0].step, above[-1].step), evidence, factor, "longer than the curvature of the loss can bear")


def _wild_steps(run: Run) -> list[Sign]:
    """What a run shows that falls short; batch norm bears wild steps: weights grow, and turn less."""
    if not falls_short(run):
        return []
    killed = [*_killed(run)]
    if learns(run) and is_batch_normed(run):
        return killed
    return [*_updates(run), *_leap(run), *killed]


def _updates(run: Run) -> Iterator[Sign]:
    """A good part of the weights' own size at once."""
    losses, works = training_losses(run), learns(run)
    updates = _large_updates(run, works=works)
    if updates:
        size = updates[0].values["median"]
        modest = works and losses.leapt_at is None
        once = size > FIRST_UPDATE and updates[0].step != FIRST_MEASUREMENT
        once = once and updates_of(run)[0].values["median"] <= LARGE_UPDATE
        factor = 0.1 if once else (MODEST_UPDATE if modest else GOOD_UPDATE) / size
        words = f"{multiple(size)} times as long as the weights themselves"
        yield Sign((min(1, updates[0].step), updates[-1].step), {"|dw| / |w|": size}, factor, words)


def _leap(run: Run) -> Iterator[Sign]:
    """The loss leapt, or stood higher for the first tenth of the steps, and came back."""
    losses = training_losses(run)
    if losses.grew or not_finite(run):
        return
    if losses.leapt_at is not None:
        words = f"{SO_LONG}the loss leapt to {multiple(losses.peak)} times its start"
        steps = max(1, losses.leapt_at - 3), losses.leapt_at
        yield Sign(steps, {"highest loss, in first ones": losses.peak}, 0.1, words)
    elif losses.rise > ROSE:
        words = f"{SO_LONG}the loss first rose to {multiple(losses.rise)} times its start"
        evidence = {"loss of the first tenth of the steps, in first ones": losses.rise}
        yield Sign((1, int(losses.steps[len(losses) // 10])), evidence, 0.3, words)


def _killed(run: Run) -> Iterator[Sign]:
    """Units of every layer died on the way: what is still learnt goes past them, by skips or by the few that are left.

    A layer or two of several lose most of their units in runs that do well.
    """
    lost = died(run)
    if lost is not None:
        first, last, layers = lost
        words = f"{SO_LONG}they switched off most units of all {layers} layers for good"
        yield Sign((max(1, first // 2), last), {"layers whose units died": float(layers)}, 0.1, words)


def _large_updates(run: Run, *, works: bool) -> Rows:
    """Measurements of steps that move the weights by so much of their size, if half of them show it, or the first does.

    Where training works the first has to be wild for that: many start so, and go on with shorter ones. Where it does
    not, one step of half of the weights is enough, whenever it came: what it killed has no gradient, and later steps
    are short.
    """
    records = updates_of(run)
    sizes = records.numbers("median")
    large = records.where(sizes > LARGE_UPDATE)
    if lasts(large, records) and not (works and 2 * large[-1].step < records[-1].step):
        return large  # of a run that learns, not of its first steps alone, in which measurements are dense
    beyond = sizes > (WILD_UPDATE if works else LARGE_UPDATE)
    if beyond[:1].any():
        return records.where(beyond)
    once = large[:0] if works else records.where(sizes > FIRST_UPDATE)
    return once if once or works or zero_layers(run) else _first_steps(run)


def _first_steps(run: Run) -> Rows:
    """The first step, which of Adam is the rate itself, where it alone is many times the weights."""
    records = records_with(run, "updates", "median")[:1]
    return records.where(records.numbers("median") > REPLACES)
