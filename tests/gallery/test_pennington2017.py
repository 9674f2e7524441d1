"""Pages on dynamical isometry: their laws against other routes, their numbers against stored ones, the checklist."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

import pullback as pb
from pullback import theory
from tests.thinned import thinned

KNOWN = json.loads((Path(__file__).parents[1] / "data/theory.json").read_text())["jacobian_critical"]
RESULTS = Path(__file__).parents[2] / "gallery/results"
PRINTED = (8.0, 0.0, 16.0, 8.0, 9.966, 1.966, 11.643, 3.643)


@pytest.fixture
def script(load):
    return load("pennington2017_isometry")


@pytest.mark.parametrize(("activation", "init"), thinned(["relu", "hard_tanh"], ["gaussian", "orthogonal"]))
def test_the_law_by_newton_is_the_law_by_polynomials(script, activation, init):
    """The page's own solver, which tanh needs, on activations whose law theory finds by another way."""
    net = script.critical(activation, script.BIASES[activation])
    found, expected = script.smooth_law(net, init), script.law(net, init)
    for level in (0.5, 2.0, 6.0):
        assert found.share_above(level) == pytest.approx(expected.share_above(level), abs=0.002)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_the_law_of_tanh_has_the_moments_of_the_formula(script, init):
    net = script.critical("tanh", 0.3)
    found, expected = script.smooth_law(net, init), net.jacobian_moments(script.DEPTH, init)
    inside = found.squares <= 1.05 * found.edge  # beyond are the tails of the tilt
    logs, density, squares = np.log(found.squares[inside]), found.density[inside], found.squares[inside]
    assert trapezoid(density * squares, logs) == pytest.approx(expected.mean, rel=0.01)
    assert trapezoid(density * squares**2, logs) == pytest.approx(expected.mean**2 + expected.variance, rel=0.02)


@pytest.mark.slow
class TestIsometry:
    """The page at its small size."""

    @pytest.fixture
    def page(self, filled):
        return filled("pennington2017_isometry")

    def test_table_of_spreads(self, page):
        """S1-30: Var s² / (E s²)² of 8 layers, by theory, by the stored numbers and in real networks."""
        printed = [row for row in page.rows if row.quantity.endswith("Var s² / (E s²)², theory")]
        measured = [row for row in page.rows if row.quantity.endswith("the same, measured")][: len(printed)]
        known = {(row["act"], init): value for row in KNOWN for init, value in row["sigma2_JJ"]["8"].items()}
        known |= {("relu", "gaussian"): 16.0, ("relu", "orthogonal"): 8.0}
        for row, (activation, weights) in zip(
            printed,
            [(a, w) for a in ("linear", "relu", "hard_tanh", "tanh") for w in ("gaussian", "orthogonal")],
            strict=True,
        ):
            assert row.holds
            assert row.here == pytest.approx(known[activation, weights], abs=1e-9)
        assert all(row.holds for row in measured)

    def test_table_of_spreads_at_full_size(self):
        """S1-30: measured within a tenth of theory; orthogonal linear layers have no spread."""
        record = json.loads((RESULTS / "pennington2017_isometry.json").read_text())
        measured = [row for row in record["rows"] if row["quantity"].endswith("the same, measured")][: len(PRINTED)]
        for row, printed in zip(measured, PRINTED, strict=True):
            assert row["verdict"] == "holds"
            assert abs(row["here"] - printed) <= 0.1 * printed + 1e-9

    def test_densities_are_drawn(self, page):
        """S1-30: a figure for each activation, theory as lines and real networks as points with standard errors."""
        charts = {chart.key: chart for chart in page.charts}
        for activation in ("linear", "relu", "hard_tanh", "tanh"):
            traces = charts[f"density-{activation}"].figure["data"]
            points = [trace for trace in traces if trace["mode"] == "markers"]
            lines = [trace for trace in traces if trace["mode"] == "lines"]
            assert len(lines) == 2
            assert len(points) == (1 if activation == "linear" else 2)
            assert all(max(trace["error_y"]["array"]) > 0 for trace in points)
        (_, orthogonal) = [trace for trace in charts["density-linear"].figure["data"] if trace["mode"] == "lines"]
        assert orthogonal["x"] == pytest.approx([1, 1])  # all singular values, to the digits drawn

    def test_bounded_and_unbounded_activations(self, page):
        """S1-32: ReLU adds 2 (Gaussian) or 1 (orthogonal) a layer; hard tanh 1 and 0 as q* falls."""
        found = {row.quantity: row for row in page.rows}
        assert found["ReLU, gaussian: variance a layer"].here == pytest.approx(2)
        assert found["ReLU, orthogonal: variance a layer"].here == pytest.approx(1)
        assert found["hard tanh, gaussian: variance a layer, σ_b = 0.05"].here == pytest.approx(1.01779, abs=5e-6)
        assert found["hard tanh, orthogonal: variance a layer, σ_b = 0.05"].here == pytest.approx(0.01779, abs=5e-6)
        assert found["hard tanh, orthogonal: variance a layer as q* → 0"].here < 1e-3


def counts(row):
    """Steps from Gaussian and from orthogonal weights, as a row reports them."""
    return [int(count) for count in re.findall(r"(\d+) ± ", row["source"])]


def test_orthogonal_weights_learn_faster_at_full_size():
    """S1-31: fewer steps to a fixed loss at the same rate, at 16 layers and more; both counts are reported."""
    record = json.loads((RESULTS / "pennington2017_learning.json").read_text())
    rows = {row["quantity"].split(":")[0]: row for row in record["rows"]}
    for name in ("linear, 16 layers", "tanh, 16 layers", "linear, 32 layers", "tanh, 32 layers"):
        gaussian, orthogonal = counts(rows[name])
        assert orthogonal < gaussian
        assert rows[name]["verdict"] == "holds"


@pytest.mark.slow
def test_orthogonal_weights_learn_faster(filled):
    """S1-31, in the page's small size."""
    page = filled("pennington2017_learning")
    rows = [dataclasses.asdict(row) for row in page.rows if "steps saved" in row.quantity]
    assert [row["quantity"].split(":")[0] for row in rows] == ["linear, 16 layers", "tanh, 16 layers"]
    for row in rows:
        gaussian, orthogonal = counts(row)
        assert orthogonal < gaussian
        assert row["here"] >= 1
    (table,) = page.tables
    assert {tuple(row[:3]) for row in table.rows} >= {("tanh", 16, "gaussian"), ("tanh", 16, "orthogonal")}


def test_steps_that_are_not_saved_fail_the_page(load):
    """Equal counts, and a difference that is within the errors."""
    script, page = load("pennington2017_learning"), load("kit.page").Page("pennington2017_learning", "t")

    def steps(mean, stderr):
        return pb.measure.Profile(torch.tensor([mean]), torch.tensor([stderr]))

    script.saved(
        page,
        "clear",
        {"gaussian": [steps(90.0, 1.0), steps(40.0, 3.0)], "orthogonal": [steps(80.0, 1.0), steps(20.0, 4.0)]},
    )
    assert page.rows[0].here == pytest.approx(40 - 20 - 3 * 5)  # at the rate that is best for Gaussian weights
    page.check()
    script.saved(page, "equal", {"gaussian": [steps(40.0, 0.0)], "orthogonal": [steps(40.0, 0.0)]})
    script.saved(page, "within", {"gaussian": [steps(40.0, 3.0)], "orthogonal": [steps(30.0, 4.0)]})
    assert [row.holds for row in page.rows] == [True, False, False]
    with pytest.raises(pb.SelfCheckError, match="pennington2017_learning: expected ≥ 1"):
        page.check()


def test_a_loss_that_is_not_reached_counts_the_most_steps(load):
    script = load("pennington2017_learning")
    training = script.Training.on_digits(32, 16, 2, 5)
    net = theory.MeanField("tanh", 1.0)
    assert training.one(net, "gaussian", 2, 1e-9, 0) == 5
    assert training.one(net, "gaussian", 2, 1e9, 0) == 5  # also where it diverges
    assert abs(float(training.x.mean())) < 1e-6
    assert float(training.x.square().mean()) == pytest.approx(1, rel=1e-3)


def test_steps_are_counted_at_the_first_loss_below_the_target(load):
    """By the same descent, written out."""
    script = load("pennington2017_learning")
    training = script.Training.on_digits(64, 24, 1, 400)
    net = theory.MeanField("linear", 1.0)
    taken = training.one(net, "orthogonal", 3, 0.03, 5)
    model = pb.modules.MLP([64, 24, 24, 24, 10], "linear", init="orthogonal", sigma_w=1.0, seed=5)
    losses = []
    for _ in range(taken + 1):
        loss = torch.nn.functional.cross_entropy(model(training.x), training.y)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.03 * gradient
    assert 0 < taken < 400
    assert losses[-1] <= script.TARGET < min(losses[:-1])
    assert math.isclose(losses[0], math.log(10), rel_tol=0.5)
