"""Learning rate against curvature, and a loss that grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pullback.advisor.change import Change
from pullback.advisor.course import grew, growth
from pullback.advisor.findings import Finding
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
)
from pullback.advisor.rules.units import dead_units
from pullback.advisor.thresholds import (
    DIVERGING,
    DIVERGING_CHANGES,
    LEARNS_CHANGES,
    MANY_LOSSES,
    MANY_SHARPNESS,
    SMALL_UPDATE,
    STABLE_SHARE,
)
from pullback.runs import Record, Run

STABILITY = (
    "stability of gradient descent on a quadratic: 2 / lr, with momentum (2 + 2 m) / lr; Cohen et al. (2021), "
    "arXiv:2103.00065; Adam: Cohen et al. (2022), arXiv:2207.14484"
)


@dataclass(frozen=True)
class _Curvature:
    """Largest curvature at a step, as the optimiser sees it, and the largest it can bear at its learning rate."""

    record: Record
    sharpness: float
    limit: float

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
    bad = not_finite(run)
    if bad:
        steps, threshold = (min(bad), max(bad)), "the loss is NaN or infinite"
        evidence = {"measurements": float(len(set(bad)))}
    elif worse := max((_growth(run, *where) for where in LOSSES), key=lambda each: each[0])[1]:
        lowest = min(worse, key=lambda pair: pair[1])
        steps, threshold = (lowest[0], worse[-1][0]), _grown(least_loss(run))
        evidence = {"first loss": worse[0][1], "lowest loss": lowest[1], "last loss": worse[-1][1]}
    else:
        return
    action = "Lower the learning rate, or clip gradients by norm"
    sharp = _curvatures(run)[-1:]
    if sharp and sharp[0].sharpness > sharp[0].limit:
        evidence |= {"sharpness": sharp[0].sharpness, "limit": sharp[0].limit}
        threshold += ", along the sharpest direction, in which the learning rate is above the limit of stability"
        action = f"Lower the {sharp[0].which} to below {sharp[0].stable_rate:.3g}"
    yield Finding(
        "divergence",
        "critical",
        _fastest_layer(run),
        steps,
        evidence,
        threshold,
        "definition; " + STABILITY,
        action,
        summary="The loss left the finite numbers." if bad else "The loss grows: the model is worse than at its start.",
        change=lower(sharp[0].limit / sharp[0].sharpness if sharp and sharp[0].sharpness > 0 else 1.0),
    )


def too_high(run: Run) -> Iterator[Finding]:
    """Curvature above what the optimiser can bear at this rate; training may hover at the limit and still learn.

    Where it does not learn, the first measurement is enough: units that the first steps killed have no curvature.
    """
    curvatures = _curvatures(run)
    above = [each for each in curvatures if each.sharpness > each.limit]
    at_first = above[:1] == curvatures[:1] and not learns(run)
    if above and (at_first or lasts([each.record for each in above], [each.record for each in curvatures])):
        worst = max(above, key=lambda each: each.sharpness / each.limit)
        yield Finding(
            "learning-rate-too-high",
            severity(run),
            None,
            (above[0].record.step, above[-1].record.step),
            {"sharpness": worst.sharpness, "limit": worst.limit},
            "largest curvature above the optimiser's limit of stability in half of the measurements, or in the first "
            "of a run that does not learn",
            STABILITY,
            f"Lower the {worst.which} to below {worst.stable_rate:.3g}",
            summary="Steps are longer than the curvature of the loss can bear, so that they overshoot.",
            change=lower(worst.limit / worst.sharpness),
        )


def too_low(run: Run) -> Iterator[Finding]:
    """The loss hardly moves, and steps could be many times longer; dead units move at no rate."""
    losses, least = records_with(run, "loss", "loss"), least_loss(run)
    if any(True for rule in (divergence, too_high, dead_units) for _ in rule(run)):
        return
    if len(losses) < MANY_LOSSES or learns(run) or grew([float(r.values["loss"]) for r in losses], least):
        return
    curvatures = [each for each in _curvatures(run) if each.sharpness > 0]
    slow = len(curvatures) >= MANY_SHARPNESS and all(c.sharpness < STABLE_SHARE * c.limit for c in curvatures)
    updates = records_with(run, "updates", "median")
    small = [r for r in updates if r.values["median"] < SMALL_UPDATE]
    if not slow and not lasts(small, updates):
        return
    factor = 10.0
    evidence = {"first loss": losses[0].values["loss"], "last loss": losses[-1].values["loss"]}
    action = "Raise the learning rate tenfold"
    if curvatures:
        sharpest = max(curvatures, key=lambda c: c.sharpness / c.limit)
        evidence |= {"sharpness": sharpest.sharpness, "limit": sharpest.limit}
        action = f"Raise the {sharpest.which.rstrip(',')}, step by step, towards {sharpest.stable_rate / 2:.3g}"
        factor = min(factor, sharpest.limit / sharpest.sharpness / 2)
    if small:
        evidence["median |dw| / |w|"] = small[-1].values["median"]
    yield Finding(
        "learning-rate-too-low",
        "warning",
        None,
        (losses[0].step, losses[-1].step),
        evidence,
        f"curvature below {STABLE_SHARE:g} of the limit in all measurements, or relative updates below "
        f"{SMALL_UPDATE:g} in half of them, while the loss changes by less than "
        + (f"{LEARNS_CHANGES:g} of its changes between measurements" if least is None else "a fifth"),
        CONVENTION,
        action,
        summary="The steps are so short that the loss hardly moves.",
        change=Change("learning_rate", factor),
    )


def lower(room: float) -> Change:
    """A rate at a quarter of the limit, at least ten times lower: at the limit itself training works badly."""
    return Change("learning_rate", min(0.1, room / 4))


def _curvatures(run: Run) -> list[_Curvature]:
    """Adam's kin and unequal groups by the preconditioned Hessian, other gradient descent by the plain one.

    Other optimisers have no known limit.
    """
    found = []
    for record in run.of("sharpness"):
        if has(record, "preconditioned", "preconditioned_limit"):
            values = (record.values["preconditioned"], record.values["preconditioned_limit"])
        elif record.values.get("optimizer") == "SGD" and has(record, "hessian", "limit"):
            values = (record.values["hessian"], record.values["limit"])
        else:
            continue
        found.append(_Curvature(record, *map(float, values)))
    return found


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
