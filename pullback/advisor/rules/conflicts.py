"""Samples and classes whose gradients pull against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, lasts, number, records_with, rows, span
from pullback.advisor.severity import severity_of_symptom
from pullback.advisor.thresholds import CLASS_CONFLICT, CONFLICT
from pullback.runs import Run


def conflicting_gradients(run: Run) -> Iterator[Finding]:
    """Samples that on the whole pull against each other, the two classes and the two samples that do so most."""
    records = records_with(run, "alignment", "mean_cosine", "conflict_fraction")
    classes = records_with(run, "classes", "within", "between")
    apart = np.isin(records.steps, classes.steps[classes.numbers("between") < CLASS_CONFLICT])
    bad = records.where((records.numbers("mean_cosine") < CONFLICT) | apart)
    if not lasts(bad, records):
        return
    last = bad[-1].values
    evidence = {"mean cosine": last["mean_cosine"], "share of conflicting pairs": last["conflict_fraction"]}
    where = []
    if worst := _triple(_at(run, "classes", bad[-1].step).get("worst")):
        evidence["cosine between the worst classes"] = worst[2]
        where.append(f"classes {worst[0]:g} and {worst[1]:g}")
    pairs = last.get("worst_pairs")
    if pair := _triple(pairs[0] if isinstance(pairs, list) and pairs else None):
        evidence["cosine of the worst pair"] = pair[2]
        where.append(f"samples {pair[0]:g} and {pair[1]:g} of those measured")
    yield Finding(
        "conflicting-gradients",
        severity_of_symptom(run),
        None,
        span(bad),
        evidence,
        f"mean cosine below {CONFLICT}, or below {CLASS_CONFLICT} between classes, in half of the measurements",
        CONVENTION,
        "Look at the most conflicting pairs for wrong labels"
        + (f" ({', '.join(where)})" if where else "")
        + ", and consider a larger batch",
        summary="A step for some samples undoes that for others, so that much of every step is lost.",
    )


def _at(run: Run, probe: str, step: int) -> Mapping[str, Any]:
    """Values of a probe at a step, empty if it was not measured then."""
    records = rows(run, probe)
    records = records.where(records.steps == step)
    return records[-1].values if records else {}


def _triple(value: Any) -> tuple[float, float, float] | None:
    """Two indices and a cosine; None where a record is damaged."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    a, b, cosine = map(number, value)
    return (a, b, cosine) if all(map(math.isfinite, (a, b, cosine))) else None
