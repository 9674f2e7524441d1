"""Training that fades: weights decayed away, a schedule that has come to nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pullback.advisor.causes import OF_WEIGHTS
from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, lasts, number, records_with
from pullback.advisor.rules.words import as_dict
from pullback.advisor.severity import severity, severity_of_mistake
from pullback.advisor.thresholds import (
    DECAY_COSINE,
    DECAY_HARMS,
    DECAY_NORM,
    DECAY_SHARE,
    FIRST_MEASUREMENT,
    MANY_RATES,
    RATE_GONE,
    RATE_GONE_MOST,
    RATE_GONE_SHARE,
    TAKES_ALL,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows

WITHIN_GRADIENTS = ("Adam", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop")  # they add decay to gradients


def weight_decay_too_high(run: Run) -> Iterator[Finding]:
    """Steps of which decay is most, or that do little else than make the weights smaller."""
    decay = number(as_dict(run.meta.get("optimizer")).get("weight_decay"))
    records = records_with(run, "updates", "shrink", "norm", "median")
    if not decay > 0 or not records:
        return
    shares = _decay_shares(run, records, decay)
    most = records.where(shares > DECAY_SHARE)
    shares = shares[np.isfinite(shares)]
    first, last = records[0].values["norm"], records[-1].values["norm"]
    cosine = float(records.numbers("shrink").max())
    fades = last < DECAY_NORM * first and cosine > DECAY_COSINE
    if not lasts(most, records) and not fades:
        return
    share = float(np.median(shares)) if len(shares) else cosine
    begin = records[0].step if fades else most[0].step
    if most and most[0].step == records[0].step:  # as early as it can be seen
        begin = min(FIRST_MEASUREMENT, begin)
    left, taken = training_losses(run).share, _taken(run, decay)
    yield Finding(
        "weight-decay-too-high",
        "warning" if left is not None and left > DECAY_HARMS else severity(run),
        None,
        (0 if _takes_all(run, records, decay) else begin, records[-1].step),
        {
            "share of a step that is decay": share,
            "cosine of steps with minus the weights": cosine,
            "weight decay": decay,
        }
        | {"first norm of the weights": first, "last norm": last}
        | ({} if taken is None else {OF_WEIGHTS: taken}),
        f"decay alone above {DECAY_SHARE:g} of a step's length in half of the measurements, or weights that fell to "
        f"{DECAY_NORM:g} of their norm in steps whose cosine with minus the weights is above {DECAY_COSINE:g}",
        "definition of weight decay; " + CONVENTION,
        "Lower the weight decay a hundredfold, or take it out",
        summary="Weight decay outweighs the gradient: steps shrink the weights in place of learning.",
        change=Change("weight_decay", min(0.01, 0.01 / share) if share > 0 else 0.01),
    )


def _takes_all(run: Run, records: Rows, decay: float) -> bool:
    """Whether decay takes a hundredth of the weights a step or more: that is in the settings.

    The rate times the decay; where decay is part of the gradient, and the larger one, what the first step takes.
    """
    optimizer = as_dict(run.meta.get("optimizer"))
    if optimizer.get("class") in WITHIN_GRADIENTS:
        taken = records[0].values["shrink"] * records[0].values["median"]
        return bool(_decay_shares(run, records, decay)[0] > DECAY_SHARE and taken >= TAKES_ALL)
    taken = _taken(run, decay)
    return taken is not None and taken >= TAKES_ALL


def _taken(run: Run, decay: float) -> float | None:
    """The share of the weights that decay takes at every step, where that is the rate times the decay."""
    optimizer = as_dict(run.meta.get("optimizer"))
    return number(optimizer.get("learning_rate")) * decay if optimizer.get("class") in ("SGD", "AdamW") else None


def _decay_shares(run: Run, records: Rows, decay: float) -> np.ndarray:
    """(R,), length of what decay alone takes from the weights in a step, over that of the step; NaN where not known.

    Of gradient descent and of AdamW the first is the rate times the decay. Where decay is part of the gradient, which
    is then divided by its own size, the least share there can be of that sum, |lam w| / (|lam w| + |g|), of steps that
    do shrink the weights.
    """
    optimizer = as_dict(run.meta.get("optimizer"))
    if optimizer.get("class") in WITHIN_GRADIENTS:
        steps, sizes = run.courses.of("gradient_norm")
        sizes = np.interp(records.steps, steps, sizes, left=math.nan) if len(steps) else np.full(len(records), math.nan)
        decayed = decay * records.numbers("norm")
        shrinks = records.numbers("shrink").max() > DECAY_COSINE
        return np.where((sizes > 0) & shrinks, decayed / np.where(sizes > 0, decayed + sizes, 1.0), math.nan)
    steps, rates = run.courses.of("learning_rate")
    rates = np.append(rates, number(optimizer.get("learning_rate")))[np.searchsorted(steps, records.steps)]
    sizes = records.numbers("median")
    known = (rates > 0) & (sizes > 0) & (optimizer.get("class") in ("SGD", "AdamW"))
    return np.where(known, rates * decay / np.where(known, sizes, 1.0), math.nan)


def schedule_at_zero(run: Run) -> Iterator[Finding]:
    """A learning rate that has come down to nothing with much of the run still to go."""
    steps, rates = run.courses.of("learning_rate")
    known = np.isfinite(rates)
    steps, rates = steps[known], rates[known]
    if len(rates) < MANY_RATES or not rates.max() > 0:
        return
    alive = int(np.flatnonzero(rates > rates.max() / RATE_GONE)[-1])
    gone = len(rates) - 1 - alive
    if gone < RATE_GONE_SHARE * len(rates):
        return
    yield Finding(
        "schedule-at-zero",
        "warning" if gone >= RATE_GONE_MOST * len(rates) else severity_of_mistake(run),
        None,
        (int(steps[alive + 1]), int(steps[-1])),
        {
            "highest rate": float(rates.max()),
            "rate then": float(rates[alive + 1]),
            "share of the steps": gone / len(rates),
        },
        f"a learning rate below 1 / {RATE_GONE:g} of its highest for the last {RATE_GONE_SHARE:.0%} of the steps; a "
        f"warning in any run from {RATE_GONE_MOST:.0%}",
        CONVENTION,
        "Let the schedule last as long as training does: hold the rate, or stretch the schedule over all steps",
        summary=f"The schedule has brought the learning rate to nothing at step {int(steps[alive + 1])}: what follows "
        "is no training.",
        change=Change("learning_rate", 1.0),
    )
