"""What is planted, in which set-ups, and the findings that name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.studies.remedies.setups import RECURRENT, TRANSFORMERS, Drawn, Setup, task

MADE_OF_LAYERS = ("MLP", "conv net", "residual conv net", "autoencoder", "regression MLP")


def always(setup: Setup) -> bool:
    return True


def same(setup: Setup) -> Setup:
    return setup


def of(*tasks: str) -> Callable[[Setup], bool]:
    return lambda setup: task(setup) in tasks


@dataclass(frozen=True)
class Fault:
    """A change of a set-up; one of ``names`` is the cause.

    ``fits`` says of which set-ups. ``sound`` makes the twin without the fault, where that needs more than was drawn.
    """

    plant: Callable[[Setup], Setup]
    names: tuple[str, ...]
    fits: Callable[[Setup], bool] = always
    sound: Callable[[Setup], Setup] = same


def changed(**fields: Any) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, **fields)


TOO_HIGH = ("learning-rate-too-high", "divergence")
TOO_LOW = ("learning-rate-too-low",)
SMALL_START = ("ordered-initialisation", "vanishing-gradients", "saddle-plateau", "rank-collapse")
LARGE_START = ("chaotic-initialisation", "exploding-gradients", "saturated-units")
LABELS = of("classes")
NUMBERS = of("classes", "values", "inputs")


def plain(setup: Setup) -> bool:
    return setup.kind in MADE_OF_LAYERS and setup.normalisation == "none"


FAULTS: dict[str, Fault] = {
    "raw inputs": Fault(changed(inputs="raw"), ("inputs-not-normalised",), NUMBERS),
    "raw targets": Fault(changed(targets="raw"), ("targets-not-normalised",), of("values")),
    "a tenth of the labels wrong": Fault(changed(wrong_labels=0.1), ("suspect-samples",), LABELS),
    "two fifths of the labels wrong": Fault(changed(wrong_labels=0.4), ("suspect-samples",), LABELS),
    "sorted by class": Fault(changed(shuffled=False), ("data-not-shuffled",), of("classes", "values")),
    "one class 99 times as frequent": Fault(changed(majority=0.99), ("class-imbalance",), LABELS),
    "samples that are not finite": Fault(changed(not_finite=0.01), ("non-finite-data",), NUMBERS),
    "samples a hundred times too large": Fault(
        changed(outliers=0.05), ("outlying-samples", "suspect-samples"), NUMBERS
    ),
    "copies of a few samples": Fault(
        changed(checked=False), ("suspect-samples", "duplicates"), LABELS, changed(copies=0.7, checked=True)
    ),
    "softmax before the loss": Fault(changed(probabilities=True), ("loss-of-probabilities",), of("classes", "tokens")),
    "gradients not zeroed": Fault(changed(zero_grad=False), ("gradients-not-zeroed",)),
    "matrices no optimizer holds": Fault(changed(untrained="forgotten"), ("parameters-not-trained",)),
    "frozen by mistake": Fault(changed(untrained="frozen"), ("parameters-not-trained",)),
    "weight decay too high": Fault(changed(weight_decay=3.0), ("weight-decay-too-high",)),
    "schedule at zero": Fault(changed(ends=0.04), ("schedule-at-zero",)),
    "losses summed": Fault(changed(reduction="sum"), TOO_HIGH),
    "no warm-up": Fault(
        changed(warmup=0), TOO_HIGH, lambda s: s.kind in TRANSFORMERS, lambda s: replace(s, warmup=s.steps // 3)
    ),
    "small weights": Fault(changed(initialisation="small"), SMALL_START, plain),
    "large weights": Fault(changed(initialisation="large"), LARGE_START),
    "units off from the start": Fault(
        changed(initialisation="dead"), ("dead-units",), lambda s: plain(s) and s.activation == "relu"
    ),
    "deep, without skips": Fault(
        changed(residual=False, normalisation="none"),
        (*SMALL_START, *LARGE_START),
        lambda s: s.kind in ("MLP", "regression MLP"),
        changed(depth=16, residual=True, normalisation="layer"),
    ),
    "deep, sigmoid": Fault(
        changed(activation="sigmoid"),
        (*SMALL_START, "saturated-units"),
        plain,
        lambda s: replace(s, depth=6 if "MLP" in s.kind else s.depth, initialisation="default"),
    ),
    "few samples, many steps": Fault(
        changed(early_stopping=False),
        ("memorisation",),
        of("classes", "values"),
        lambda s: replace(s, samples=48, early_stopping=True, logs=True, steps=2 * s.steps),
    ),
    "one sample a batch": Fault(
        changed(batch_size=1), ("batch-too-small",), lambda s: s.normalisation != "batch" and s.kind not in RECURRENT
    ),
    "batch norm over three": Fault(
        changed(batch_size=3), ("batch-norm-batch-too-small", "batch-too-small"), lambda s: s.normalisation == "batch"
    ),
}


def sound(drawn: Drawn) -> Setup:
    """The set-up without its fault."""
    return FAULTS[drawn.planted].sound(drawn.setup) if drawn.planted in FAULTS else drawn.setup


def names(planted: str, verdict: str) -> tuple[str, ...]:
    """The findings that name what is wrong, by what was planted and how the rate turned out."""
    if planted in FAULTS:
        return FAULTS[planted].names
    return {"rate too high": TOO_HIGH, "rate too low": TOO_LOW}.get(verdict, ())
