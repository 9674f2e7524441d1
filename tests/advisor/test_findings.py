"""What a finding and a change hold, what they refuse, and the way through a record and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.advisor import Change, Finding
from pullback.advisor.change import KINDS
from pullback.runs import RunWriter

FINDING = Finding(
    "dead-units", "warning", "net.0", (3, 9), {"share": 0.75}, "more than half", "someone", "Do this",
    summary="Most are off.", because=("divergence",), change=Change("clip_norm", 1.0),
)  # fmt: skip
HELD: dict[str, tuple[Any, ...]] = {
    "learning_rate": (0.1, 3), "batch_size": (4.0,), "clip_norm": (1,), "warmup_steps": (100,),
    "weight_decay": (0.0, 0.1), "initialisation": ("critical", "he", "xavier"), "activation": ("gelu",),
    "normalisation": ("layer", "batch"), "residual": (None,), "standardise_inputs": (None,),
    "standardise_targets": (None,), "shuffle": (None,), "check_samples": ((3, 5),), "balance_classes": (None,),
    "loss_from_logits": (None,), "zero_grad": (None,), "train_parameters": (("0.weight",),), "early_stopping": (None,),
}  # fmt: skip
REFUSED: dict[str, tuple[Any, ...]] = {
    "learning_rate": (0, -1.0, math.nan, math.inf, "half", None, True), "batch_size": (0.0,), "clip_norm": (0.0,),
    "warmup_steps": (0, 2.5, True), "weight_decay": (-0.1, math.inf), "initialisation": ("He", None),
    "activation": ("", 3), "normalisation": ("group",), "residual": (True,), "standardise_inputs": (1.0,),
    "standardise_targets": ((),), "shuffle": (True,), "check_samples": ((), (1.0,), 3, ("a",)), "balance_classes": (2,),
    "loss_from_logits": ("yes",), "zero_grad": (0,), "train_parameters": ((), "0.weight", (1,)), "early_stopping": (5,),
}  # fmt: skip


def test_every_kind_takes_its_values_and_no_others() -> None:
    assert set(HELD) == set(REFUSED) == set(KINDS)
    for kind, values in HELD.items():
        assert [Change(kind, value).value for value in values] == list(values)
    for kind, values in REFUSED.items():
        for value in values:
            with pytest.raises(pb.InputError, match=rf"Change: expected a value of '{kind}' that is .*, got .*\. Pass"):
                Change(kind, value)
    with pytest.raises(pb.InputError, match="`kind` to be one of 'learning_rate'"):
        pb.Change("lr", 0.1)


def test_lists_are_tuples_so_that_changes_can_be_compared() -> None:
    assert Change("check_samples", [3, 5]) == Change("check_samples", (3, 5))


@pytest.mark.parametrize("kind", HELD)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    """Through JSON and through a run's record."""
    finding = replace(FINDING, change=Change(kind, HELD[kind][0]))
    assert Finding.from_record(json.loads(json.dumps(finding.as_record()))) == finding
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(9, "finding", finding.as_record())
    (record,) = pb.load_run(tmp_path / "run").of("finding")
    assert Finding.from_record(record.values) == finding


def test_a_record_of_an_earlier_version() -> None:
    old = {k: v for k, v in FINDING.as_record().items() if k not in ("summary", "because", "change")}
    assert Finding.from_record(old) == replace(FINDING, summary="", because=(), change=None)


@pytest.mark.slow
@given(st.recursive(st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(sorted(KINDS)), st.lists))
def test_altered_changes_are_none(value: Any) -> None:
    assert Change.from_record(value) is None
    for kind in (*KINDS, value):
        found = Change.from_record({"kind": kind, "value": value})
        assert found is None or found.kind == kind


def test_in_words() -> None:
    assert str(FINDING) == (
        "warning: dead-units in net.0, steps 3 to 9 (share 0.75). Most are off. It follows from divergence."
    )
