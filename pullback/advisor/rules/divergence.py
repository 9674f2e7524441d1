"""A loss that leaves the finite numbers, or grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.course import Losses, growth
from pullback.advisor.findings import Finding
from pullback.advisor.growth import beyond_noise, rose_at
from pullback.advisor.reading import LOSSES, by_layer, least_loss, not_finite, records_with, with_layers
from pullback.advisor.rules.curvature import STABILITY, curvatures_of, lower
from pullback.advisor.thresholds import DIVERGING, DIVERGING_CHANGES, MANY_LOSSES, MANY_STEPS
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run


def divergence(run: Run) -> Iterator[Finding]:
    """The loss left the finite numbers, or is on its way: the trained weights do worse than the first ones."""
    losses, bad = training_losses(run), not_finite(run)
    grown = None
    if bad:
        steps, threshold = (min(bad), max(bad)), "the loss is NaN or infinite"
        evidence = {"measurements": float(len(set(bad)))}
        words = f"The loss left the finite numbers at step {min(bad)}"
    elif losses.grew and losses.leapt_at is not None and (losses.constant is not None or beyond_noise(run, losses)):
        steps, threshold = (losses.leapt_at, int(losses.steps[-1])), _grown(losses.least) + ", as the median of three"
        evidence = {"first loss": losses.start, "lowest loss": float(losses.finite.min()), "last loss": losses.last}
        words = f"The loss grew to {float(losses.running[-1]):.3g}, from {losses.start:.3g} at the start"
    elif losses.least is None and (rose := rose_at(run, losses)) is not None:
        steps, threshold = (rose, int(losses.steps[-1])), _grown(None)
        evidence = {"first loss": losses.start, "lowest loss": float(losses.finite.min()), "last loss": losses.last}
        words = f"The loss grew to {losses.last:.3g}, from {losses.start:.3g} at the start"
    elif grown := _grown_records(run, losses):
        steps, threshold = (_far_at(grown, least_loss(run)), grown[-1][0]), _grown(least_loss(run))
        lowest = min(loss for _, loss in grown)
        evidence = {"first loss": grown[0][1], "lowest loss": lowest, "last loss": grown[-1][1]}
        words = f"The loss grew to {grown[-1][1]:.3g}, from {grown[0][1]:.3g} at the start"
    else:
        return
    action = "Lower the learning rate, or clip gradients by norm"
    change = Change("learning_rate", 0.1)
    sharp = [each for each in curvatures_of(run)[-1:] if each.sharpness > each.limit]
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


def _grown_records(run: Run, losses: Losses) -> list[tuple[int, float]]:
    """Steps and losses of what was measured, if that is divergence; the loop's course says more where it is long.

    Each measurement may be of other samples: where the loop's own losses fell, what grew is the choice of these.
    """
    shown = run.courses.of("loss")[1]
    if len(shown) >= MANY_LOSSES and losses.least is not None:
        return []
    long = losses.least is not None or len(shown) >= MANY_STEPS
    if len(shown) > 1 and (shown[-1] <= shown[0] or (long and growth(shown, losses.least) <= 1)):
        return []
    return max((_growth(run, *where) for where in LOSSES), key=lambda each: each[0])[1]


def _growth(run: Run, probe: str, metric: str) -> tuple[float, list[tuple[int, float]]]:
    """Last over first loss, and steps and losses if that is divergence, else nothing.

    The batch loss of the very first step is a record of its own, where no measurement was made at it.
    """
    known = [*([records_with(run, "start", metric)[:1]] if probe == "loss" else []), records_with(run, probe, metric)]
    shown = np.concatenate([records.numbers(metric) for records in known])
    grown = growth(shown, least_loss(run))
    steps = np.concatenate([records.steps for records in known])
    return (grown, list(zip(steps.tolist(), shown.tolist(), strict=True))) if grown > 1 else (0.0, [])


def _far_at(grown: Sequence[tuple[int, float]], least: float | None) -> int:
    """The first step by which the loss had grown by what is divergence; at the last it has."""
    first, last = grown[0][1], grown[-1][1]
    times = growth(np.array([loss for _, loss in grown]), least)
    base = first if least is None or first <= least else least
    return next(step for step, loss in grown if loss - base > (last - base) / times)


def _grown(least: float | None) -> str:
    if least is not None:
        return f"the loss grew to above {DIVERGING:g} times the first one" + (f", from {least:g}" if least else "")
    return (
        f"the loss grew by more than {DIVERGING_CHANGES:g} times its changes between measurements and its early range"
    )


def _fastest_layer(run: Run) -> str | None:
    """The layer whose gradient grew most since it was first measured: the direction weights run off in."""
    flows = with_layers(run, "flow", "gradient_norm")
    if len(flows) < 2:
        return None
    first, last = (by_layer(flows[place], "gradient_norm") for place in (0, -1))
    growth = {name: last[name] / norm for name, norm in first.items() if norm > 0 and name in last}
    return max(growth, key=lambda name: growth[name]) if growth else None
