"""The page on exploding gradients under batch norm: theory by another formula, wrong numbers seen, the checklist."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import pullback as pb
from pullback import measure, theory

RESULTS = Path(__file__).parents[2] / "gallery/results"


@pytest.fixture
def script(load):
    return load("yang2019_batch_norm")


@pytest.fixture
def page(load):
    return load("kit.page").Page("yang2019_batch_norm", "A title.")


def test_theorem_8_is_the_theory_of_relu(script):
    """S1-34: another formula than the integrals of ``theory``; 1.7877 (to 0.005) over a batch of 8."""
    for B in (8, 9, 16, 100, 1000):
        assert script.relu_factor(B) == pytest.approx(theory.batch_norm_gradient_factor("relu", B), abs=1e-9)
    assert script.relu_factor(8) == pytest.approx(1.7877, abs=0.005)
    assert script.relu_factor(10**6) == pytest.approx(math.pi / (math.pi - 1), rel=1e-5)
    assert theory.batch_norm_gradient_factor("relu") == pytest.approx(1.466942, abs=1e-6)


def test_growth_is_held_to_theory(script, page, monkeypatch):
    """Networks of another growth are seen."""
    size = script.Size(100, 4, 16)
    script.growth(page, "relu", "relu", 16, size)

    def wrong(*args, **kwargs):
        found = measured(*args, **kwargs)
        return dataclasses.replace(found, mean=dataclasses.replace(found.mean, value=1.5 * found.mean.value))

    measured = measure.gradient_factors
    monkeypatch.setattr(measure, "gradient_factors", wrong)
    script.growth(page, "relu", "relu", 16, size)
    assert [row.holds for row in page.rows] == [True, False]


def test_extrapolation_removes_what_is_off_by_one_over_the_width(script, page, monkeypatch):
    factor = theory.batch_norm_gradient_factor("tanh", 16)

    def off(spec, *args, **kwargs):
        found = measured(dataclasses.replace(spec, width=10), *args, **kwargs)
        return dataclasses.replace(found, mean=dataclasses.replace(found.mean, value=factor + 3 / spec.width))

    measured = measure.gradient_factors
    monkeypatch.setattr(measure, "gradient_factors", off)
    found = script.growth(page, "tanh", "tanh", 16, script.Size(50, 3, 2))
    assert found.value == pytest.approx(factor, abs=1e-12)


def test_training_is_gradient_descent_on_the_digits(script):
    """Losses of three steps are those of a twin that is stepped by hand."""
    model, twin, data = script.network(2, 8), script.network(2, 8), pb.functional.load_digits(0)
    draw, found, expected = torch.Generator().manual_seed(0), [], []
    for _, loss, hidden in script.train(model, 3):
        found.append(loss.item())
        assert [h.shape for h in hidden] == [(script.BATCH, 8)] * 2
        index = torch.randperm(len(data.x_train), generator=draw)[: script.BATCH]
        loss = torch.nn.functional.cross_entropy(twin(data.x_train[index]), data.y_train[index])
        expected.append(loss.item())
        parameters = list(twin.parameters())
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= script.RATE * g
    assert found == pytest.approx(expected, rel=1e-6)
    assert {layer.norm.eps for layer in model.layers[:-1]} == {1e-3}


@pytest.mark.slow
class TestPage:
    """At its small size."""

    def test_gradients_grow_with_batch_norm(self, filled):
        """S1-38: the measured factor is above 1, by more than three standard errors, where theory's is."""
        rows = {row.quantity: row for row in filled("yang2019_batch_norm").rows}
        measured = [row for name, row in rows.items() if name.startswith(("λ measured: relu", "λ measured: tanh"))]
        assert len(measured) >= 6
        assert all(row.holds and row.here > 1 for row in measured)
        assert rows["standard errors by which λ of ReLU and tanh is above 1, least"].here > 3

    def test_the_factor_falls_with_the_batch(self, filled):
        """S1-39: 2.0, 1.2 and 1.0345 for the identity over batches of 4, 8 and 32; networks follow."""
        rows = {row.quantity: row.here for row in filled("yang2019_batch_norm").rows}
        found = [rows[f"λ of the identity, B = {B}"] for B in (4, 8, 32)]
        assert found == pytest.approx([2.0, 1.2, 1.0345], abs=5e-5)
        for name in ("relu", "tanh", "linear"):
            assert all(a > b for a, b in pairwise(rows[f"λ measured: {name}, B = {B}"] for B in (8, 32, 128)))

    def test_figures(self, filled):
        charts = {chart.key: chart for chart in filled("yang2019_batch_norm").charts}
        assert list(charts) == ["factor", "layers", "linear", "depth", "steps"]
        before, after = (torch.tensor(trace["y"]) for trace in charts["steps"].figure["data"])
        assert before[0] / before[9] > 10 > after[0] / after[9]


def test_the_depth_that_trains_at_full_size():
    """S1-38: with batch norm 30 layers learn the digits and 60 do not, on either side of 16 ξ = 40.8."""
    record = json.loads((RESULTS / "yang2019_batch_norm.json").read_text())
    (chart,) = [chart for chart in record["charts"] if chart["key"] == "depth"]
    trace = chart["figure"]["data"][0]
    accuracy = dict(zip(trace["x"], trace["y"], strict=True))
    assert trace["name"] == "batch norm"
    assert min(accuracy[depth] for depth in (10, 20, 30)) > 0.8
    assert max(accuracy[depth] for depth in (60, 80)) < 0.25
