"""Samples and classes whose gradients disagree, and samples that stand out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, lasts, number, records_with, severity, span
from pullback.advisor.thresholds import CLASS_CONFLICT, CONFLICT, SUSPECT_SHARE
from pullback.runs import Record, Run

NUM_LISTED = 5
REMEDIES = {
    "label": "check the labels of samples",
    "duplicate": "remove the copies among samples",
    "outlier": "look at samples",
}

REASONS = {
    "label": "the model contradicts their labels",
    "duplicate": "they are copies of others",
    "outlier": "their gradients outweigh all others",
}


def conflicting_gradients(run: Run) -> Iterator[Finding]:
    """Samples that on the whole pull against each other, the two classes and the two samples that do so most."""
    records = records_with(run, "alignment", "mean_cosine", "conflict_fraction")
    apart = {r.step for r in records_with(run, "classes", "within", "between") if r.values["between"] < CLASS_CONFLICT}
    bad = [r for r in records if r.values["mean_cosine"] < CONFLICT or r.step in apart]
    if not lasts(bad, records):
        return
    last = bad[-1].values
    evidence = {"mean cosine": last["mean_cosine"], "share of conflicting pairs": last["conflict_fraction"]}
    where = []
    if classes := _triple(_at(run, "classes", bad[-1].step).get("worst")):
        evidence["cosine between the worst classes"] = classes[2]
        where.append(f"classes {classes[0]:g} and {classes[1]:g}")
    pairs = last.get("worst_pairs")
    if pair := _triple(pairs[0] if isinstance(pairs, list) and pairs else None):
        evidence["cosine of the worst pair"] = pair[2]
        where.append(f"samples {pair[0]:g} and {pair[1]:g} of those measured")
    yield Finding(
        "conflicting-gradients",
        severity(run),
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


def suspect_samples(run: Run) -> Iterator[Finding]:
    """Samples the probe suspects: of a wrong label, of being copies, or of a gradient that outweighs the others.

    Wrong labels show when the others are learnt, so the last measurement names them. Copies and outliers are named by
    the one that saw most: the gradient of a sample a hundred times too large vanishes as soon as it is learnt.
    """
    records = [r for r in records_with(run, "samples", "num_samples") if r.values["num_samples"] > 0]
    if not records:
        return
    seen = {
        reason: records[-1] if reason == "label" else max(records, key=lambda r: len(_suspects(r, reason)))
        for reason in REMEDIES
    }
    found = {reason: _suspects(record, reason) for reason, record in seen.items() if _suspects(record, reason)}
    if not found:
        return
    wrong = len(found.get("label", [])) / records[-1].values["num_samples"]
    yield Finding(
        "suspect-samples",
        "warning" if wrong > SUSPECT_SHARE else "info",
        None,
        (min(seen[reason].step for reason in found), max(seen[reason].step for reason in found)),
        {f"{reason}s": float(len(each)) for reason, each in found.items()}
        | {"samples": records[-1].values["num_samples"]},
        "another label ten times as probable, with a gradient that opposes its class (labels); modified z-score above "
        "3.5 (outliers); equal inputs and gradients (copies); a warning if more than "
        f"{SUSPECT_SHARE:.0%} of the samples have suspect labels",
        "Northcutt et al. (2021), arXiv:1911.00068; Iglewicz and Hoaglin (1993); " + CONVENTION,
        _listed(found, {reason: seen[reason].step for reason in found}),
        summary="Some samples stand out: " + ", ".join(REASONS[reason] for reason in found) + ".",
        change=Change("check_samples", tuple(sorted({s[0] for each in found.values() for s in each}))),
    )


def _listed(found: dict[str, list[Any]], steps: dict[str, int]) -> str:
    parts = []
    for reason, each in found.items():
        rest = f" and {len(each) - NUM_LISTED} more" if len(each) > NUM_LISTED else ""
        names = ", ".join(str(s[0]) for s in each[:NUM_LISTED])
        parts.append(f"{REMEDIES[reason]} {names}{rest} of step {steps[reason]}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}, counted within the measured batch"


def _suspects(record: Record, reason: str) -> list[Any]:
    suspects = record.values.get("suspects")
    return [s for s in suspects if _is_suspect(s) and s[2] == reason] if isinstance(suspects, list) else []


def _is_suspect(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and type(value[0]) is int and value[2] in tuple(REMEDIES)


def _at(run: Run, probe: str, step: int) -> dict[str, Any]:
    """Values of a probe at a step, empty if it was not measured then."""
    records: list[Record] = [record for record in run.of(probe) if record.step == step]
    return records[-1].values if records else {}


def _triple(value: Any) -> tuple[float, float, float] | None:
    """Two indices and a cosine; None where a record is damaged."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    a, b, cosine = map(number, value)
    return (a, b, cosine) if all(map(math.isfinite, (a, b, cosine))) else None
