"""Mistakes of the training loop: what is not trained, not zeroed, not a score, decayed or scheduled away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import (
    CONVENTION,
    by_layer,
    lasts,
    number,
    records_with,
    severity,
    severity_of_mistake,
    span,
    training_losses,
)
from pullback.advisor.thresholds import (
    ADDS_UP,
    DECAY_COSINE,
    DECAY_HARMS,
    DECAY_NORM,
    DECAY_SHARE,
    FALLS_SHORT,
    LEARNS_SHARE,
    LEARNT_NOTHING,
    MOVES,
    NOT_ZEROED,
    RATE_GONE,
    RATE_GONE_MOST,
    RATE_GONE_SHARE,
)
from pullback.runs import Record, Run

NUM_NAMED = 4
MANY_OUTPUTS = 3  # measurements below which binary scores may lie between 0 and 1 by chance


def parameters_not_trained(run: Run) -> Iterator[Finding]:
    """Parameters that stay what they were: in no optimizer, frozen behind others that learn, or without a gradient."""
    model, optimizer = (_dict(run.meta.get(name)) for name in ("model", "optimizer"))
    left_out = _names(optimizer.get("left_out"))
    frozen, behind = (_names(model.get(name)) for name in ("frozen", "frozen_behind"))
    still = _still(run)
    end = max(run.steps, default=0)
    source = "definition: a relative update of 0, while others move"
    if left_out:
        yield Finding(
            "parameters-not-trained",
            "warning",
            left_out[0].rpartition(".")[0] or None,
            (0, end),
            {"parameters in no optimizer": float(len(left_out))},
            "a parameter that requires a gradient and that no optimizer holds",
            source,
            f"Hand {_listed(left_out)} to the optimizer, or freeze them with requires_grad_(False) if that is meant",
            summary=f"{_listed(left_out)} never change, because no optimizer holds them.",
            change=Change("train_parameters", tuple(left_out)),
        )
    elif still:
        yield Finding(
            "parameters-not-trained",
            severity(run),
            still[0],
            span(list(run.of("updates"))),
            {"layers that never move": float(len(still))},
            "a relative update of exactly 0 in all measurements, while others are above " + f"{MOVES:g}",
            source,
            f"Look for a detach(), a no_grad() or an item() between {_listed(still)} and the loss",
            summary=f"{_listed(still)} never move although others do: no gradient reaches them.",
            change=Change("train_parameters", tuple(still)),
        )
    elif frozen:
        blank = not behind and _holds_back(run)
        meant = behind or frozen
        yield Finding(
            "parameters-not-trained",
            severity(run) if behind else "warning" if blank else "info",
            meant[0].rpartition(".")[0] or None,
            (0, end),
            {"frozen parameters": float(len(frozen)), "of them behind layers that learn": float(len(behind))},
            "parameters that require no gradient; a warning if training fails and some lie behind layers that learn, "
            f"or if a model that began with what one answer reaches has more than {FALLS_SHORT:g} of its loss left",
            source,
            f"If that is not meant, call requires_grad_(True) on {_listed(meant)}",
            summary=f"{_listed(meant)} are frozen and stay as they are"
            + (", and what they make of the inputs does not suffice." if blank else "."),
            change=Change("train_parameters", tuple(meant)) if behind or blank else None,
        )


def _holds_back(run: Run) -> bool:
    """Whether frozen layers knew nothing of the task at the start, and much is left to learn at the end.

    Those of a model that was trained before bring their knowledge along, or what they make of the inputs suffices.
    """
    losses = training_losses(run)
    if losses.share is None or losses.constant is None or losses.least is None:
        return False
    first = (float(losses.finite[0]) - losses.least) / (losses.constant - losses.least)
    return first > LEARNS_SHARE and losses.share > FALLS_SHORT


def _still(run: Run) -> list[str]:
    """Layers without an update in all of at least two measurements in which others have one."""
    records = [ratios for r in run.of("updates") if (ratios := by_layer(r, "ratio"))]
    moving = [ratios for ratios in records if max(ratios.values()) > MOVES]
    if len(moving) < 2:
        return []
    return [layer for layer in moving[0] if all(ratios.get(layer) == 0.0 for ratios in moving)]


def gradients_not_zeroed(run: Run) -> Iterator[Finding]:
    """Gradients that add up over the steps.

    A mean is never longer than the root mean square of what it is made of, so .grad stays below that of the measured
    samples or, where losses are summed or scaled, at the same multiple of it. A sum of all gradients so far outgrows
    it; in the first steps, while gradients are alike, it does so evenly.
    """
    steps, norms = run.course("gradient_norm")
    kept = np.isfinite(norms) & (norms > 0)
    steps, norms = steps[kept], norms[kept]
    sizes = _sizes_at(run, steps)
    if len(steps) < MANY_NORMS or sizes is None:
        return
    ratios = norms / sizes
    late = float(np.median(ratios[len(ratios) // 2 :]))
    if late > NOT_ZEROED * max(float(ratios[0]), 2 / NOT_ZEROED) or _adds_up(steps, norms, sizes):
        yield Finding(
            "gradients-not-zeroed",
            "warning",
            None,
            (int(steps[0]), int(steps[-1])),
            {"|.grad| over samples' root mean square, at last": float(ratios[-1]), "at first": float(ratios[0])},
            "the norm of .grad, over the root mean square of the measured samples' gradients, above 2 and grown "
            f"{NOT_ZEROED:g}-fold in the second half of the run, or in the first steps grown from step to step by "
            f"{ADDS_UP:g} of the first one or more",
            "triangle inequality; sum of all gradients so far; " + CONVENTION,
            "Call optimizer.zero_grad() before every loss.backward()",
            summary="Gradients of all earlier steps add up, so that the optimizer follows what is long past.",
            change=Change("zero_grad"),
        )


def _sizes_at(run: Run, steps: np.ndarray) -> np.ndarray | None:
    """Root mean square of samples' gradients at these steps: the largest of the measurements around each."""
    found = [
        (r.step, float(r.values["rms_gradient_norm"])) for r in records_with(run, "gradients", "rms_gradient_norm")
    ]
    found = [(step, size) for step, size in found if size > 0]
    if len(found) < 2:
        return None
    at, sizes = np.array([step for step, _ in found]), np.array([size for _, size in found])
    places = np.searchsorted(at, steps)
    return np.array([sizes[max(0, k - 2) : k + 2].max() for k in places])


def _adds_up(steps: np.ndarray, norms: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether the norms of the first steps in a row grow each by each, on the whole as a sum of like ones does."""
    apart = np.flatnonzero(np.diff(steps) != 1)
    count = int(apart[0]) + 1 if len(apart) else len(steps)
    count = min(count, MANY_NORMS + 3)
    first = norms[:count]
    if count < MANY_NORMS or not bool((np.diff(first) > 0).all()) or sizes[count - 1] > 2 * sizes[0]:
        return False
    return bool(first[-1] - first[0] > ADDS_UP * (count - 1) * first[0])


MANY_NORMS = 5  # of which all that grow by chance are 1 in 120


def loss_of_probabilities(run: Run) -> Iterator[Finding]:
    """A loss that wants scores and is given probabilities: it takes the softmax, or the sigmoid, a second time."""
    records = [r for r in run.of("loss") if isinstance(r.values.get("outputs"), str)]
    wrong = [r for r in records if (r.values.get("form"), r.values["outputs"]) in WRONG_OUTPUTS]
    if not wrong or len(wrong) < len(records):
        return
    form, outputs = wrong[-1].values["form"], wrong[-1].values["outputs"]
    share = training_losses(run).share
    if form == "binary" and (len(wrong) < MANY_OUTPUTS or share is None or share > LEARNT_NOTHING):
        return  # one score for all samples, between 0 and 1, is no probability
    wanted, remedy = WRONG_OUTPUTS[form, outputs]
    yield Finding(
        "loss-of-probabilities",
        "warning",
        None,
        span(wrong),
        {"measurements": float(len(wrong))},
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


def weight_decay_too_high(run: Run) -> Iterator[Finding]:
    """Steps of which decay is most, or that do little else than make the weights smaller."""
    decay = number(_dict(run.meta.get("optimizer")).get("weight_decay"))
    records = records_with(run, "updates", "shrink", "norm", "median")
    if not decay > 0 or not records:
        return
    shares = [(r, share) for r in records if (share := _decay_share(run, r, decay)) is not None]
    most = [r for r, share in shares if share > DECAY_SHARE]
    first, last = records[0].values["norm"], records[-1].values["norm"]
    cosine = max(float(r.values["shrink"]) for r in records)
    fades = last < DECAY_NORM * first and cosine > DECAY_COSINE
    if not lasts(most, records) and not fades:
        return
    share = median(share for _, share in shares) if shares else cosine
    left = training_losses(run).share
    yield Finding(
        "weight-decay-too-high",
        "warning" if left is not None and left > DECAY_HARMS else severity(run),
        None,
        (records[0].step, records[-1].step),
        {
            "share of a step that is decay": share,
            "cosine of steps with minus the weights": cosine,
            "weight decay": decay,
        }
        | {"first norm of the weights": first, "last norm": last},
        f"decay alone above {DECAY_SHARE:g} of a step's length in half of the measurements, or weights that fell to "
        f"{DECAY_NORM:g} of their norm in steps whose cosine with minus the weights is above {DECAY_COSINE:g}",
        "definition of weight decay; " + CONVENTION,
        "Lower the weight decay a hundredfold, or take it out",
        summary="Weight decay outweighs the gradient: steps shrink the weights in place of learning.",
        change=Change("weight_decay", min(0.01, 0.01 / share) if share > 0 else 0.01),
    )


def _decay_share(run: Run, record: Record, decay: float) -> float | None:
    """Length of what decay alone takes from the weights in a step, over that of the step; None where it is not known.

    Of gradient descent and of AdamW that is the rate times the decay; other optimizers divide it by something.
    """
    optimizer = _dict(run.meta.get("optimizer"))
    steps, rates = run.course("learning_rate")
    place = int(np.searchsorted(steps, record.step))
    rate = float(rates[place]) if place < len(steps) else number(optimizer.get("learning_rate"))
    if optimizer.get("class") not in ("SGD", "AdamW") or not rate > 0 or not record.values["median"] > 0:
        return None
    return rate * decay / float(record.values["median"])


def schedule_at_zero(run: Run) -> Iterator[Finding]:
    """A learning rate that has come down to nothing with much of the run still to go."""
    steps, rates = run.course("learning_rate")
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


MANY_RATES = 20  # steps below which a schedule is not judged


def non_finite_gradients(run: Run) -> Iterator[Finding]:
    """A finite loss whose gradient is none: the root of 0, a norm of 0, a number beyond half precision."""
    for record in run.of("not_finite"):
        names = _names(record.values.get("gradients"))
        if not names or not math.isfinite(number(record.values.get("loss"))) or _from_data(record.values):
            continue
        losses = training_losses(run.until(record.step))
        yield Finding(
            "non-finite-gradients",
            "critical",
            names[0].rpartition(".")[0] or None,
            (record.step, record.step),
            {
                "loss": number(record.values["loss"]),
                "parameters": float(len(names)),
                "highest loss before, in first ones": losses.peak,
            },
            "a gradient that is NaN or infinite beside a loss that is finite",
            "definition",
            "Look behind the named layer for a square root, a norm, a logarithm or a division at 0 and add a small "
            "constant there; in half precision use a gradient scaler",
            summary=f"The gradient of {_listed(names)} is NaN or infinite although the loss is not: one step of it "
            "spoils all weights.",
            change=None,
        )
        return


def _from_data(values: dict[str, Any]) -> bool:
    return any(isinstance(values.get(name), list) and values[name] for name in ("inputs", "targets"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _names(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + rest
