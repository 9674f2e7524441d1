"""Findings from records. S0-28 in its first form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.runs import Record, Run, RunWriter


def a_run(*records: tuple[int, str, dict[str, Any]]) -> Run:
    return Run(Path("run"), {}, tuple(Record(step, 0.0, probe, values) for step, probe, values in records))


def flow(verdict: str, slope: float) -> dict[str, Any]:
    return {"verdict": verdict, "slope": slope, "gradient_norm": {"a": 0.001, "b": 0.1, "c": 1.0}}


def test_vanishing_gradients_suggest_four_remedies() -> None:
    """S0-28: activation, normalisation, skip, initialisation."""
    (found,) = pb.diagnose(a_run((50, "flow", flow("vanishing", -2.0)), (100, "flow", flow("vanishing", -1.5))))
    assert (found.name, found.severity, found.layer, found.steps) == ("vanishing-gradients", "warning", "a", (50, 100))
    assert found.evidence["slope of ln|g|^2 per layer"] == -1.5
    for remedy in ("activation", "normalisation", "skip connections", "initialisation"):
        assert remedy in found.action
    assert "vanishing-gradients in a, steps 50 to 100" in str(found)


def test_exploding_gradients() -> None:
    (found,) = pb.diagnose(a_run((50, "flow", flow("exploding", 2.0)), (100, "flow", flow("steady", 0.0))))
    assert (found.name, found.layer) == ("exploding-gradients", "c")
    assert "clip" in found.action
    assert not pb.diagnose(
        a_run(*[(s, "flow", flow("steady", 0.0)) for s in (1, 2)], (3, "flow", flow("exploding", 2.0)))
    )


def test_ill_conditioning_suggests_three_remedies() -> None:
    """S0-28: adaptive optimiser, smaller learning rate, second order; worth knowing, not a fault."""
    (found,) = pb.diagnose(a_run((50, "kernel", {"effective_rank": 1.2, "num_samples": 256})))
    assert (found.name, found.severity) == ("ill-conditioning", "info")
    for remedy in ("adaptive optimiser", "smaller learning rate", "second-order"):
        assert remedy in found.action
    assert not pb.diagnose(a_run((50, "kernel", {"effective_rank": 40.0, "num_samples": 256})))


def test_conflicting_gradients() -> None:
    (found,) = pb.diagnose(a_run((50, "alignment", {"mean_cosine": -0.2, "conflict_fraction": 0.8})))
    assert (found.name, found.severity) == ("conflicting-gradients", "info")


def test_learning_rate_is_judged_for_plain_sgd_only() -> None:
    values = {"hessian": 30.0, "limit": 20.0, "optimizer": "SGD"}
    (found,) = pb.diagnose(a_run((50, "sharpness", values)))
    assert (found.name, found.severity) == ("learning-rate-too-high", "warning")
    assert "below 0.0667" in found.action
    assert not pb.diagnose(a_run((50, "sharpness", values | {"optimizer": "Adam"})))
    assert not pb.diagnose(a_run((50, "sharpness", values | {"hessian": 10.0})))


def test_divergence_comes_first() -> None:
    records = a_run((50, "flow", flow("vanishing", -2.0)), (60, "loss", {"loss": math.inf}))
    assert [f.name for f in pb.diagnose(records)] == ["divergence", "vanishing-gradients"]
    failed = Run(Path("run"), {}, (Record(9, 0.0, "loss", {}, "InputError: expected a finite loss for every sample"),))
    assert pb.diagnose(failed)[0].severity == "critical"


def test_findings_are_stored_and_read(tmp_path: Path) -> None:
    (found,) = pb.diagnose(a_run((50, "kernel", {"effective_rank": 1.2, "num_samples": 256})))
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(50, "finding", found.as_record())
    assert pb.load_run(tmp_path / "run").findings == [found.as_record()]
    assert pb.diagnose(tmp_path / "run") == []


PROBES = ("loss", "flow", "kernel", "alignment", "sharpness")
METRICS = (
    "loss",
    "verdict",
    "slope",
    "gradient_norm",
    "effective_rank",
    "num_samples",
    "mean_cosine",
    "conflict_fraction",
)
values = (
    st.none()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["vanishing", "x"])
    | st.lists(st.floats(), max_size=2)
)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(PROBES), st.dictionaries(st.sampled_from(METRICS), values)))
)
def test_altered_records_are_no_crash(records: list[tuple[int, str, dict[str, Any]]]) -> None:
    found = pb.diagnose(a_run(*records))
    assert all(finding.action for finding in found)


def test_no_run() -> None:
    with pytest.raises(pb.InputError, match=r"a run folder with run\.json"):
        pb.diagnose("nowhere")
