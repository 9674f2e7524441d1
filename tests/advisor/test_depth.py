"""Findings on gradients over depth and on the initial weights."""

from __future__ import annotations

from typing import Any

import pytest

import pullback as pb
from tests.advisor.runs import LEARNS, found, severities


def flow(verdict: str, slope: float, **norms: float) -> dict[str, Any]:
    return {"verdict": verdict, "slope": slope, "gradient_norm": norms}


def test_vanishing_gradients_and_the_layer_where_they_start() -> None:
    """S0-22, S0-28: activation, normalisation, skip, initialisation."""
    norms = {"a": 0.001, "b": 0.02, "c": 0.05, "d": 0.5, "e": 1.0}
    records = [(s, "flow", flow("vanishing", slope, **norms)) for s, slope in ((50, -2.0), (100, -1.5))]
    finding = found("vanishing-gradients", *records)
    assert finding is not None
    assert (finding.severity, finding.layer, finding.steps) == ("warning", "c", (50, 100))  # the first below e / 10
    assert finding.evidence["slope of ln|g|^2 per layer"] == -1.5
    assert finding.evidence["first layer's gradient norm"] == 0.001
    assert finding.evidence["last layer's"] == 1.0
    for remedy in ("activation", "normalisation", "skip connections", "initialisation"):
        assert remedy in finding.action
    assert "vanishing-gradients in c, steps 50 to 100" in str(finding)
    assert severities("vanishing-gradients", *records) == ("info", "warning")


def test_exploding_gradients() -> None:
    """S0-22."""
    exploding = flow("exploding", 2.0, a=300.0, b=12.0, c=1.0)
    finding = found("exploding-gradients", (50, "flow", exploding), (100, "flow", flow("steady", 0.0)))
    assert finding is not None
    assert finding.layer == "b"
    assert "clip" in finding.action
    steady = [(s, "flow", flow("steady", 0.0)) for s in (1, 2)]
    assert found("exploding-gradients", *steady, (3, "flow", exploding)) is None  # once in three is a spike
    assert found("vanishing-gradients", (50, "flow", exploding)) is None


def initialisation(chi: float, depth: int) -> dict[str, Any]:
    layers = [f"l{place}" for place in range(depth)]
    return {
        "chi": dict.fromkeys(layers, chi),
        "sigma_w": dict.fromkeys(layers, 0.9),
        "critical_sigma_w": dict.fromkeys(layers, 1.17),
    }


def test_initialisations_off_the_critical_point() -> None:
    ordered = found("ordered-initialisation", (1, "initialisation", initialisation(0.6, 20)))
    assert ordered is not None
    assert "sigma_w = 1.17 in place of 0.9" in ordered.action
    assert abs(ordered.evidence["chi per layer (geometric mean)"] - 0.6) < 1e-12
    assert found("chaotic-initialisation", (1, "initialisation", initialisation(0.6, 20))) is None
    chaotic = found("chaotic-initialisation", (1, "initialisation", initialisation(1.585, 20)))
    assert chaotic is not None
    assert chaotic.steps == (1, 1)
    assert found("ordered-initialisation", (1, "initialisation", initialisation(0.6, 4))) is None  # 0.13: not deep
    assert found("chaotic-initialisation", (1, "initialisation", initialisation(1.0, 90))) is None
    assert severities("chaotic-initialisation", (1, "initialisation", initialisation(1.6, 20))) == ("info", "warning")


def test_without_a_critical_value_the_action_names_the_call() -> None:
    finding = found("ordered-initialisation", (1, "initialisation", {"chi": dict.fromkeys("abcdefghij", 0.5)}))
    assert finding is not None
    assert 'phase="critical"' in finding.action


def test_recurrent_layers_have_no_critical_start() -> None:
    def told(verdict: str, *kinds: str) -> tuple[pb.Change | None, str]:
        known = {"model": {"modules": dict.fromkeys(kinds, 1)}}
        finding = found(f"{verdict}-gradients", (1, "flow", flow(verdict, -2.0)), meta=known)
        assert finding is not None
        return finding.change, finding.action

    for kind in ("RNN", "GRU", "LSTM"):
        change, words = told("vanishing", kind, "Linear")
        assert (change, "critical" in words) == (pb.Change("initialisation", "xavier"), False)
        assert told("exploding", kind)[0] == pb.Change("clip_norm", 1.0)
    assert told("vanishing", "Linear", "Tanh")[0] == pb.Change("initialisation", "critical")


def test_gradients_that_a_sigmoid_lets_die_are_no_passing_state() -> None:
    """Of another activation they may be, in a run that works."""

    def told(kind: str, left: float) -> str:
        line = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
        kinds = (1, "activations", {"kind": {"a": kind}})
        course = [2.0] * 5 + [2.0 * left] * 5
        finding = found("vanishing-gradients", (1, "flow", flow("vanishing", -2.0)), line, kinds, loss=course)
        assert finding is not None
        return finding.severity

    assert (told("sigmoid", 0.6), told("sigmoid", 0.2), told("sigmoid", 0.05)) == ("warning", "warning", "info")
    assert (told("tanh", 0.6), told("tanh", 0.95)) == ("info", "warning")


def test_gradients_that_vanished_at_the_start_cost_the_steps_until_they_do_not() -> None:
    """As long as a good part of the loss is left, and where there were steps that could have gone further."""

    def told(
        *verdicts: str,
        left: float = 0.5,
        steps: int = 100,
        update: float = 0.01,
        first: float = 1e-4,
        kind: str = "Tanh",
    ) -> str | None:
        measured = [
            (step, "flow", flow(verdict, -2.0, a=first, b=0.1, c=1.0))
            for step, verdict in zip((1, 8, 32), verdicts, strict=True)
        ]
        updates = [(step, "updates", {"median": update}) for step in (2, 8, 16, 32)]
        course = [2.0] * (steps // 2) + [2.0 * left] * (steps // 2)
        line = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
        meta = {"model": {"modules": {kind: 3}}}
        finding = found("vanishing-gradients", line, *measured, *updates, loss=course, meta=meta)
        return finding and finding.severity

    assert told("vanishing", "steady", "steady") == "warning"
    assert told("steady", "vanishing", "steady") is None
    assert told("steady", "vanishing", "vanishing") == "info"
    assert told("vanishing", "vanishing", "steady", left=0.05) == "info"
    assert told("vanishing", "steady", "steady", left=0.05) is None
    assert told("vanishing", "steady", "steady", steps=20) is None
    assert told("vanishing", "steady", "steady", left=0.98, update=1e-4) is None  # the rate's doing
    assert told("vanishing", "steady", "steady", left=0.98, update=1e-4, first=3e-6) == "warning"  # no rate's doing
    assert told("vanishing", "steady", "steady", first=1e-3) is None  # a thousandth is made up for soon
    assert told("vanishing", "steady", "steady", kind="BatchNorm1d") is None


@pytest.mark.parametrize(("kind", "norm"), [("Linear", "layer"), ("Conv1d", "batch"), ("ConvTranspose2d", "batch")])
def test_a_deep_chain_is_normalised(kind: str, norm: str) -> None:
    """Of so many layers no start does; of pictures, layer norm leaves what all samples share."""
    norms = {str(place): 0.5**place for place in range(14)}
    line = (1, "flow", flow("vanishing", -2.0, **norms))
    finding = found("vanishing-gradients", line, meta={"model": {"modules": {kind: 14, "SiLU": 13}}})
    assert finding is not None
    assert finding.change == pb.Change("normalisation", norm)
    assert f"Add {norm} norm before each activation" in finding.action
    learning = found("vanishing-gradients", line, *LEARNS, meta={"model": {"modules": {kind: 14, "SiLU": 13}}})
    assert learning is not None
    assert learning.change == pb.Change("initialisation", "he")


@pytest.mark.parametrize(("left", "severity"), [(0.4, "warning"), (0.2, "info")])
def test_units_saturated_from_the_start_of_a_run_that_falls_short(left: float, severity: str) -> None:
    full = {"saturated": {"a": 0.9}, "kind": {"a": "tanh"}}
    constant = (0, "loss", {"loss": 1.0, "constant_loss": 2.0})
    course = [2.0] * 10 + [2 * left] * 30
    at_start = found("saturated-units", (1, "activations", full), constant, loss=course)
    assert at_start is not None
    assert at_start.severity == severity
    calm = {"saturated": {"a": 0.1}, "kind": {"a": "tanh"}}
    later = found("saturated-units", (1, "activations", calm), (2, "activations", full), constant, loss=course)
    assert later is not None
    assert later.severity == "info"
