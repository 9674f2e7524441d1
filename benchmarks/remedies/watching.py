"""Watch a set-up as a user would, ask what is wrong, do what is said, and see what comes of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pullback as pb
from benchmarks.remedies.changes import NotPossibleError, carried_out
from benchmarks.remedies.faults import TOO_HIGH, names
from benchmarks.remedies.setups import Drawn, described
from benchmarks.remedies.training import Trained, train
from benchmarks.remedies.truth import Outcomes, Truth, compare

DOUBLED = 2.0  # times the first loss
AFTER = 3  # steps by which a divergence may be named late


def row(drawn: Drawn, found: Truth, outcomes: Outcomes) -> dict[str, Any]:
    """Everything about a set-up, as JSON: what is wrong with it, what was said, and what the first change did."""
    told: dict[str, Any] = {"number": drawn.number, "planted": drawn.planted, **found.as_json()}
    if found.verdict == "untrainable":
        return told
    with tempfile.TemporaryDirectory() as folder:
        try:
            trained = train(found.setup, 0, Path(folder) / "run")
            run = pb.load_run(Path(folder) / "run")
            findings = pb.diagnose(run)
        except pb.PullbackError as error:  # a refusal: the user has no diagnosis
            return told | {"findings": [], "error": str(error), "first": None}
        told["watched_skill"] = trained.skill
        told["findings"] = [_finding(each) for each in findings]
        told["failed_probes"] = sorted({record.probe for record in run.records if record.error})
        told["divergence"] = divergence(run, trained.losses)
    first = next((each for each in findings if each.severity != "info"), None)
    told["first"] = None if first is None else _finding(first)
    if first is not None:
        told["cause_first"] = first.name in names(drawn.planted, found.verdict)
        told |= _changed(first, trained, found, outcomes)
    return told


def _changed(first: pb.Finding, trained: Trained, found: Truth, outcomes: Outcomes) -> dict[str, Any]:
    """What the change did: "better", "same" or "worse", or why there is nothing to say."""
    if first.change is None:
        return {"did": "no change given"}
    value = first.change.value
    if first.change.kind == "check_samples":
        value = samples(first, trained)
    try:
        setup = carried_out(found.setup, first.change.kind, value)
    except NotPossibleError as error:
        return {"did": "not possible", "why": str(error)}
    if setup == found.setup:
        return {"did": "same", "changed": {}, "changed_skills": found.skills}
    before, after = described(found.setup), described(setup)
    different = {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}
    reached = outcomes.skills(setup)
    return {"did": compare(reached, found.skills), "changed": different, "changed_skills": reached}


def samples(first: pb.Finding, trained: Trained) -> tuple[int, ...]:
    """Training samples of the places in the measured batch that a finding names."""
    assert first.change is not None
    batch = trained.batches[min(first.steps[1], len(trained.batches)) - 1]
    return tuple(int(batch[place]) for place in first.change.value if place < len(batch))


def divergence(run: pb.Run, losses: Sequence[float]) -> dict[str, int | None] | None:
    """The first step whose loss is not below twice the first one, and the step at which a finding says so.

    A finding counts from the record of the steps up to one, no later than a few after the loss had doubled.
    """
    doubled = next((step for step, loss in enumerate(losses, start=1) if not loss <= DOUBLED * losses[0]), None)
    if doubled is None:
        return None
    steps = range(1, min(doubled + AFTER, len(losses)) + 1)
    named = next((step for step in steps if _named(pb.diagnose(run.until(step)))), None)
    return {"doubled": doubled, "named": named}


def _named(findings: Sequence[pb.Finding]) -> bool:
    return any(each.name in TOO_HIGH and each.severity != "info" for each in findings)


def _finding(each: pb.Finding) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": each.name,
        "severity": each.severity,
        "layer": each.layer,
        "steps": list(each.steps),
    }
    change = None if each.change is None else {"kind": each.change.kind, "value": _plain(each.change.value)}
    return told | {"summary": each.summary, "because": list(each.because), "change": change}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
