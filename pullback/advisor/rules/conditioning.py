"""Directions that need different learning rates: in the gradients, and already in the inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, lasts, number, records_with, span
from pullback.advisor.rules.outliers import far_samples
from pullback.advisor.severity import learns, severity_of_mistake
from pullback.advisor.thresholds import ALIGNED, ILL_CONDITIONED, LARGEST_INPUT, MEAN_OVER_STD, OFFSET_INPUT, STD_RATIO
from pullback.runs import Record, Run
from pullback.runs.rows import Rows

CONDITIONING_ACTION = (
    "Use an adaptive optimiser (Adam, RMSprop), a smaller learning rate, or a second-order method that evens the "
    "directions out"
)

REINFORCED = ", once the first phase is over: gradients are aligned, so that samples still help each other"


def ill_conditioning(run: Run) -> Iterator[Finding]:
    """Almost all of the gradients' energy in a few directions. A run that works ends so, at its last hard samples.

    Where they point the same way that has its use: the first phase of training is fast.
    """
    records = records_with(run, "kernel", "effective_rank", "num_samples")
    records = records.where(records.numbers("num_samples") > 1)
    ill = records.where(_concentration(records) > ILL_CONDITIONED)
    if lasts(ill, records) and not learns(run):
        last = ill[-1].values
        aligned = records_with(run, "alignment", "mean_cosine").numbers("mean_cosine")[-1:].tolist()
        yield Finding(
            "ill-conditioning",
            "info",
            None,
            span(ill),
            {"effective rank": last["effective_rank"], "samples": last["num_samples"]}
            | ({"mean cosine": aligned[0]} if aligned else {}),
            f"log(N / effective rank) above {ILL_CONDITIONED} log(N) in half of the measurements",
            CONVENTION,
            CONDITIONING_ACTION + (REINFORCED if aligned and aligned[0] > ALIGNED else ""),
            summary="Nearly all of the gradients' energy lies in a few directions; one rate cannot suit the others.",
        )


def inputs_not_normalised(run: Run) -> Iterator[Finding]:
    """Features far from zero mean, on very different scales, or very large: curvature inherits all three."""
    records = records_with(run, "inputs", "largest_abs")
    seen = records.where(_is_beyond(records))
    if lasts(seen, records) and not far_samples(run):  # a few samples that are far out have such numbers alone
        yield Finding(
            "inputs-not-normalised",
            severity_of_mistake(run),
            None,
            span(seen),
            _beyond(seen[-1]),
            f"numbers above {LARGEST_INPUT:g}, standard deviations {STD_RATIO:g}-fold apart, or, where numbers exceed "
            f"{OFFSET_INPUT:g}, a |mean| above {MEAN_OVER_STD:g} standard deviations",
            "LeCun, Bottou, Orr and Müller (1998), Efficient BackProp, section 4.3; " + CONVENTION,
            "Subtract each feature's mean over the training set and divide by its standard deviation",
            summary="The inputs are far from zero mean and unit scale, which the curvature of the loss inherits: "
            "no learning rate suits all weights.",
            change=Change("standardise_inputs"),
        )


def _limits() -> dict[str, float]:
    return {"largest_abs": LARGEST_INPUT, "std_ratio": STD_RATIO, "largest_mean_over_std": MEAN_OVER_STD}


def _beyond(record: Record) -> dict[str, float]:
    """The numbers that are beyond their limits. A nearly constant pixel of a picture in [-1, 1] is no offset."""
    limits = _limits()
    values = {name: number(record.values.get(name)) for name in limits}
    offset = values["largest_abs"] > OFFSET_INPUT
    known = {name: value for name, value in values.items() if name != "largest_mean_over_std" or offset}
    return {name.replace("_", " "): value for name, value in known.items() if limits[name] < value < math.inf}


def _is_beyond(records: Rows) -> np.ndarray:
    """(R,), whether any is."""
    values = {name: records.numbers(name) for name in _limits()}
    beyond = {name: (values[name] > limit) & (values[name] < math.inf) for name, limit in _limits().items()}
    beyond["largest_mean_over_std"] &= values["largest_abs"] > OFFSET_INPUT
    return np.any(list(beyond.values()), 0)


def _concentration(records: Rows) -> np.ndarray:
    """(R,), log(N / effective rank) / log(N), 0 of what has no rank."""
    ranks, samples = records.numbers("effective_rank"), records.numbers("num_samples")
    logs = np.log(samples / np.where(ranks > 0, ranks, samples))
    return np.where(ranks > 0, logs / np.log(samples), 0.0)
