"""Mistakes of the training loop: what is not zeroed, and what is no score."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, is_text, records_with, rows, span
from pullback.advisor.thresholds import (
    ADDS_UP,
    ADDS_UP_BEYOND,
    LEARNT_NOTHING,
    MANY_NORMS,
    MANY_OUTPUTS,
    MEDIAN_OF,
    NOT_ZEROED,
    RISES,
    STANDS,
    ZEROED,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Record, Run


def gradients_not_zeroed(run: Run) -> Iterator[Finding]:
    """Gradients that add up over the steps.

    A mean is never longer than the root mean square of what it is made of, so .grad stays below that of the measured
    samples or, where losses are summed or scaled, at the same multiple of it. A sum of all gradients so far outgrows
    it; in the first steps, while gradients are alike, it does so evenly. Of steps long before the first measurement,
    after the last one, or after a leap of the loss, nothing is said: samples' own gradients are then others from step
    to step. But a norm that grew at nearly every step, whatever the batch was, and past the samples' gradients is a sum
    also there.
    """
    steps, norms = run.courses.of("gradient_norm")
    at, sizes = _sizes(run)
    if len(at) < 2:
        return
    kept = np.isfinite(norms) & (norms > 0) & (steps <= int(at[-1])) & (steps >= int(at[0]) // 2)
    steps, norms = steps[kept], norms[kept]
    leapt = training_losses(run).leapt_at
    before = slice(None) if leapt is None else slice(int(np.searchsorted(steps, leapt - MEDIAN_OF + 1, side="right")))
    ratios = _outgrown(steps[before], norms[before], at, sizes) or _always_rising(steps, norms, at, sizes)
    if ratios is not None:
        yield Finding(
            "gradients-not-zeroed",
            "warning",
            None,
            (int(steps[0]), int(steps[-1])),
            {"|.grad| over samples' root mean square, at last": ratios[1], "at first": ratios[0]},
            "the norm of .grad, over the root mean square of the measured samples' gradients, above 2 and grown "
            f"{NOT_ZEROED:g}-fold in the second half of the run, or in the first steps grown from step to step by "
            f"{ADDS_UP:g} of the first one or more ({ADDS_UP_BEYOND:g} where later ones are longer than the samples'), "
            f"or above {ZEROED:g} and {ZEROED:g}-fold where it grew at more steps than chance does by {RISES:g} "
            "standard errors",
            "triangle inequality; sum of all gradients so far; difference-sign test, Moore and Wallis (1943); "
            + CONVENTION,
            "Call optimizer.zero_grad() before every loss.backward()",
            summary="Gradients of all earlier steps add up, so that the optimizer follows what is long past.",
            change=Change("zero_grad"),
        )


def _outgrown(steps: np.ndarray, norms: np.ndarray, at: np.ndarray, sizes: np.ndarray) -> tuple[float, float] | None:
    """First and last norm over the samples' gradients around, if they outgrow these as sums do; else None."""
    if len(steps) < MANY_NORMS or _falls(norms):
        return None
    ratios = norms / _largest_around(at, sizes, steps)
    late = float(np.median(ratios[len(ratios) // 2 :]))
    outgrown = late > NOT_ZEROED * max(float(ratios[0]), 2 / NOT_ZEROED)
    count = _growing(steps, norms, np.exp(np.interp(steps[: MANY_NORMS + 3], at, np.log(sizes))))
    growth = (norms[count - 1] - norms[0]) / (max(1, count - 1) * norms[0])  # a step
    beyond = len(ratios) > count and float(np.median(ratios[count:])) > max(1.0, float(ratios[0]))
    adds_up = outgrown or growth > (ADDS_UP_BEYOND if beyond else ADDS_UP)
    return (float(ratios[0]), float(ratios[-1])) if adds_up else None


def _always_rising(
    steps: np.ndarray, norms: np.ndarray, at: np.ndarray, sizes: np.ndarray
) -> tuple[float, float] | None:
    """The same of norms that grew at nearly every step, and past the samples' gradients; else None.

    Of batches drawn anew a norm falls as often as it rises, about a drift; of n independent ones (n - 1) / 2 rise, with
    a variance of (n + 1) / 12. What changes by next to nothing, as a sum of many does, says neither: of batches drawn
    anew hardly any two are so near. Each measurement is compared with the norm last seen before it: a loss that grows
    makes later samples' gradients longer, so that a mean of them stays below.
    """
    count = len(norms)
    if count < MANY_NORMS or _falls(norms):
        return None
    changes = np.diff(norms) / norms[:-1]
    changes = changes[np.abs(changes) > STANDS]
    rises, count = int((changes > 0).sum()), len(changes) + 1
    if rises - (count - 1) / 2 <= RISES * math.sqrt((count + 1) / 12):
        return None
    seen = at >= steps[0]
    ratios = norms[np.searchsorted(steps, at[seen], side="right") - 1] / sizes[seen]
    late = float(np.median(ratios[len(ratios) // 2 :]))
    return (float(ratios[0]), float(ratios[-1])) if late > ZEROED * max(1.0, float(ratios[0])) else None


def _falls(norms: np.ndarray) -> bool:
    """Whether one step of the second half took most of the norm away: a sum of many loses no more than one of them."""
    late = norms[len(norms) // 2 :]
    return bool((late[:-1] > ZEROED * late[1:]).any())


def _sizes(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Measured steps, and the root mean square of samples' gradients at these, where it is above zero."""
    records = records_with(run, "gradients", "rms_gradient_norm")
    at, sizes = records.steps, records.numbers("rms_gradient_norm")
    return at[sizes > 0], sizes[sizes > 0]


def _largest_around(at: np.ndarray, sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(S,), of the sizes measured at these steps (two before each step, two from it on) the largest."""
    beside = np.concatenate([np.full(2, -np.inf), sizes, np.full(2, -np.inf)])
    return np.lib.stride_tricks.sliding_window_view(beside, 4).max(1)[np.searchsorted(at, steps)]


def _growing(steps: np.ndarray, norms: np.ndarray, sizes: np.ndarray) -> int:
    """Steps at the start, in a row, whose norms grow each by each while samples' gradients hardly do; 1 if few.

    Of five that grow by chance, as 1 in 120 do, none outgrows the samples: fewer than eight have to.
    """
    apart = np.flatnonzero(np.diff(steps) != 1)
    count = int(apart[0]) + 1 if len(apart) else len(steps)
    falls = np.flatnonzero(np.diff(norms[:count]) <= 0)
    grow = int(falls[0]) + 1 if len(falls) else count
    most = min(count, MANY_NORMS + 3)
    last = min(grow, most) - 1
    outgrows = norms[0] <= sizes[0] and norms[last] > sizes[last]
    if grow < (MANY_NORMS if outgrows else max(MANY_NORMS, most)) or sizes[last] > 2 * sizes[0]:
        return 1
    return last + 1


def _is_wrong(record: Record) -> bool:
    form = record.values.get("form")
    return isinstance(form, str) and (form, record.values["outputs"]) in WRONG_OUTPUTS


def loss_of_probabilities(run: Run) -> Iterator[Finding]:
    """A loss that wants scores and is given probabilities: it takes the softmax, or the sigmoid, a second time."""
    records = rows(run, "loss")
    records = records.where(records.mapped("outputs", is_text) > 0)
    if not records or not all(map(_is_wrong, records)):
        return
    form, outputs = records[-1].values["form"], records[-1].values["outputs"]
    share = training_losses(run).share
    if form == "binary" and (len(records) < MANY_OUTPUTS or share is None or share > LEARNT_NOTHING):
        return  # one score for all samples, between 0 and 1, is no probability
    wanted, remedy = WRONG_OUTPUTS[form, outputs]
    yield Finding(
        "loss-of-probabilities",
        "warning",
        None,
        span(records),
        {"measurements": float(len(records))},
        f"outputs that are {outputs} in every measurement, where the loss expects {wanted}",
        "definition of the loss",
        remedy,
        summary=f"The loss expects {wanted} and is given {outputs}: its gradient is a fraction of what it should be.",
        change=Change("loss_from_logits"),
    )


WRONG_OUTPUTS = {
    ("cross-entropy", "probabilities"): (
        "scores, of which it takes the softmax itself",
        "Take the softmax out of the model, or take its logarithm and NLLLoss",
    ),
    ("binary", "probabilities"): (
        "scores, of which it takes the sigmoid itself",
        "Take the sigmoid out of the model, or use BCELoss",
    ),
    ("nll", "probabilities"): ("log-probabilities", "Use CrossEntropyLoss on the scores, without a softmax"),
    ("nll", "scores"): ("log-probabilities", "Use CrossEntropyLoss in place of NLLLoss"),
}
