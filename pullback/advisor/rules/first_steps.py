"""A rate out of reach, told by the first steps: before anything can be known of what is learnt."""

from __future__ import annotations

from collections.abc import Iterator

from pullback._text import multiple
from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import is_batch_normed
from pullback.advisor.reading import CONVENTION, largest, layers, records_with
from pullback.advisor.rules.curvature import STABILITY, curvatures_of
from pullback.advisor.thresholds import (
    ALL_AT_ONCE,
    FAR_ABOVE,
    FIRST_UPDATE,
    GOOD_UPDATE,
    LEAPS,
    LOWEST_FACTOR,
    SHARE_OF_LIMIT,
)
from pullback.advisor.training_losses import summed_over, training_losses
from pullback.runs import Run

Sign = tuple[int, str, float, float, str]  # step, name and value of the evidence, factor of the rate, words


def out_of_reach(run: Run) -> Iterator[Finding]:
    """Steps far too long for the curvature, for the weights, or by what they did to the loss of their own samples.

    A rate that is only too high shows later, by what is learnt: many that do well start with a step or two beyond the
    limit, and move a third of the weights at once.
    """
    signs = [sign for sign in (_curvature(run), _update(run), _growth(run)) if sign is not None]
    if not signs:
        return
    summed = summed_over(run)
    factor = max(LOWEST_FACTOR, min(*(sign[3] for sign in signs), 1 / summed))
    yield Finding(
        "learning-rate-too-high",
        "warning",
        None,
        (min(sign[0] for sign in signs), max(sign[0] for sign in signs)),
        {sign[1]: sign[2] for sign in signs},
        f"in the first steps: a curvature {FAR_ABOVE:g} times the optimiser's limit of stability, a step of "
        f"{FIRST_UPDATE:g} of the weights (with batch norm of {ALL_AT_ONCE:g} times a layer's), or one that made the "
        f"loss of its own samples {LEAPS:g} times larger",
        STABILITY + "; " + CONVENTION,
        f"Lower the learning rate to {factor:.2g} of what it is",
        summary=f"The first steps are {' and '.join(sign[4] for sign in signs)}.{in_sums(summed)}",
        change=Change("learning_rate", factor),
    )


def in_sums(summed: float) -> str:
    """What a loss that is summed over so many samples does to steps, in words; nothing of a mean."""
    return (
        f" The loss is summed over {summed:.0f} samples, which makes them as many times longer." if summed > 1 else ""
    )


def _curvature(run: Run) -> Sign | None:
    for each in curvatures_of(run):
        if not each.at_start and each.sharpness > FAR_ABOVE * each.limit:
            room = each.limit / each.sharpness
            words = "far longer than the curvature of the loss can bear"
            return each.step, "curvature over its limit", 1 / room, SHARE_OF_LIMIT * room, words
    return None


def _update(run: Run) -> Sign | None:
    """Of weights before a batch norm the size does not matter: of such models the layer that moved most counts."""
    normed = is_batch_normed(run)
    records = records_with(run, "updates", "median")
    sizes = largest(layers(records, "ratio")[1]) if normed else records.numbers("median")
    for step, size in zip(records.steps.tolist(), sizes.tolist(), strict=True):
        if size > (ALL_AT_ONCE if normed else FIRST_UPDATE):
            words = f"{multiple(size)} times as long as the weights themselves"
            return step, "|dw| / |w|", size, GOOD_UPDATE / size, words
    return None


def _growth(run: Run) -> Sign | None:
    """A step goes down the gradient of these very samples: what is larger after it was overshot.

    Not behind batch norm: in eval mode, in which it is measured, its statistics are still those it was made with.
    """
    losses, summed = training_losses(run), summed_over(run)
    if is_batch_normed(run) or losses.least is None:
        return None
    for record in records_with(run, "loss", "loss", "batch_loss"):
        before = max(record.values["batch_loss"] / summed, losses.constant or 0.0) - losses.least
        after = record.values["loss"] - losses.least
        if before > 0 and after > LEAPS * before:
            words = f"so long that one made the loss of its own samples {multiple(after / before)} times larger"
            return record.step, "loss of the same samples, after over before", after / before, 0.1, words
    return None
