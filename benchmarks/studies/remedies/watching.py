"""Watch a set-up as a user would, ask what is wrong, do what is said, and see what comes of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pullback as pb
from benchmarks.studies.remedies.changes import NotPossibleError, carried_out
from benchmarks.studies.remedies.faults import TOO_HIGH, names
from benchmarks.studies.remedies.setups import Drawn, Setup, described
from benchmarks.studies.remedies.training import Trained, train
from benchmarks.studies.remedies.truth import Outcomes, Truth, compare

DOUBLED = 2.0  # times the first loss
AFTER = 3  # steps by which a divergence may be named late


@dataclass(frozen=True)
class Records:
    """A folder that keeps the records of watched runs, so that rules that changed are asked without training anew.

    ``made_by`` is the digest of what a record depends on: another one, and it is made again.
    """

    folder: Path
    made_by: str


@contextmanager
def watched(drawn: Drawn, setup: Setup, records: Records | None) -> Iterator[tuple[pb.Run, Trained]]:
    """The run of a set-up, and what its loop saw; read where it is kept, else trained and watched."""
    if records is None:
        with tempfile.TemporaryDirectory() as folder:
            trained = train(setup, 0, Path(folder) / "run")
            yield pb.load_run(Path(folder) / "run"), trained
        return
    folder = records.folder / str(drawn.number)
    note = folder / "loop.json"
    key = f"{records.made_by} {json.dumps(described(setup), sort_keys=True)}"
    kept = json.loads(note.read_text()) if note.is_file() else {}
    if kept.get("key") == key:
        trained = Trained(kept["skill"], kept["losses"], [torch.tensor(each) for each in kept["batches"]])
    else:
        shutil.rmtree(folder, ignore_errors=True)
        trained = train(setup, 0, folder / "run")
        batches = [each.tolist() for each in trained.batches]
        kept = {"key": key, "skill": trained.skill, "losses": trained.losses, "batches": batches}
        note.write_text(json.dumps(kept))
    yield pb.load_run(folder / "run"), trained


def row(drawn: Drawn, found: Truth, outcomes: Outcomes, records: Records | None = None) -> dict[str, Any]:
    """Everything about a set-up, as JSON: what is wrong with it, what was said, and what the first change did."""
    told: dict[str, Any] = {"number": drawn.number, "planted": drawn.planted, **found.as_json()}
    if found.verdict == "untrainable":
        return told
    try:
        with watched(drawn, found.setup, records) as (run, trained):
            findings = pb.diagnose(run)
            told |= _seen(run, trained, findings)
    except pb.PullbackError as error:  # a refusal: the user has no diagnosis
        return told | {"findings": [], "error": str(error), "first": None}
    first = next((each for each in findings if each.severity != "info"), None)
    told["first"] = None if first is None else _finding(first)
    if first is not None:
        told["cause_first"] = first.name in names(drawn.planted, found.verdict)
        told |= _changed(first, trained, found, outcomes)
    return told


def _seen(run: pb.Run, trained: Trained, findings: Sequence[pb.Finding]) -> dict[str, Any]:
    return {
        "watched_skill": trained.skill,
        "findings": [_finding(each) for each in findings],
        "failed_probes": sorted({record.probe for record in run.records if record.error}),
        "divergence": divergence(run, trained.losses),
    }


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
    try:
        reached = outcomes.skills(setup)
    except pb.UnsupportedError as error:  # a start that is not known of this model
        return {"did": "not possible", "why": str(error)}
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
