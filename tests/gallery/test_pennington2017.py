"""Pages on dynamical isometry: their laws against other routes, their numbers against stored ones, the checklist."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pullback as pb
from pullback import theory

KNOWN = json.loads((Path(__file__).parents[1] / "data/theory.json").read_text())["jacobian_critical"]
KINDS = [(row["act"], init) for row in KNOWN if row["act"] != "erf" for init in ("gaussian", "orthogonal")]


@pytest.fixture
def script(load):
    return load("pennington2017_isometry")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("activation", ["relu", "hard_tanh"])
def test_the_law_by_newton_is_the_law_by_polynomials(script, activation, init):
    """The page's own solver, which tanh needs, on activations whose law theory finds by another way."""
    net = script.critical(activation, script.BIASES[activation])
    found, expected = script.smooth_law(net, init), theory.jacobian_density(net, script.DEPTH, init)
    for level in (0.5, 2.0, 6.0):
        exact = script.Law(expected.squares, expected.density * expected.squares)
        assert found.share_above(level) == pytest.approx(exact.share_above(level), abs=0.01)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_the_law_of_tanh_has_the_moments_of_the_formula(script, init):
    net = script.critical("tanh", 0.3)
    found, expected = script.smooth_law(net, init), net.jacobian_moments(script.DEPTH, init)
    inside = (found.squares > 1e-5) & (found.squares < 200)  # the tilt has tails that fall as 1 / s²
    logs, density, squares = np.log(found.squares[inside]), found.density[inside], found.squares[inside]
    assert np.trapezoid(density * squares, logs) == pytest.approx(expected.mean, abs=0.05)
    assert found.share_above(1e-6) == pytest.approx(1, abs=0.1)
    assert found.share_above(40.0) < 0.01


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
        for row, exact in zip(measured, printed, strict=True):
            assert row.holds
            assert abs(row.here - exact.here) <= 0.1 * exact.here + 1e-9  # and within a tenth, as the errors are small

    def test_densities_are_drawn(self, page):
        """S1-30: a figure for each activation, theory as lines and real networks as points with standard errors."""
        charts = {chart.key: chart for chart in page.charts}
        for activation in ("linear", "relu", "hard_tanh", "tanh"):
            traces = charts[f"density-{activation}"].figure["data"]
            modes = [trace["mode"] for trace in traces]
            assert modes.count("markers") == 2
            assert modes.count("lines") == (1 if activation == "linear" else 2)  # orthogonal linear layers: one point
            assert all(
                max(trace["error_y"]["array"]) > 0
                for trace in traces
                if trace["mode"] == "markers" and len(trace["x"]) > 1
            )

    def test_bounded_and_unbounded_activations(self, page):
        """S1-32: ReLU adds 2 (Gaussian) or 1 (orthogonal) a layer; hard tanh 1 and 0 as q* falls."""
        found = {row.quantity: row for row in page.rows}
        assert found["ReLU, gaussian: variance a layer"].here == pytest.approx(2)
        assert found["ReLU, orthogonal: variance a layer"].here == pytest.approx(1)
        assert found["hard tanh, gaussian: variance a layer, σ_b = 0.05"].here == pytest.approx(1.01779, abs=5e-6)
        assert found["hard tanh, orthogonal: variance a layer, σ_b = 0.05"].here == pytest.approx(0.01779, abs=5e-6)
        assert found["hard tanh, orthogonal: variance a layer as q* → 0"].here < 1e-3


@pytest.mark.slow
def test_orthogonal_weights_learn_faster(filled):
    """S1-31: fewer steps to a fixed loss at 16 layers and more, linear and tanh, both counts reported."""
    page = filled("pennington2017_learning")
    rows = {row.quantity.split(":")[0]: row for row in page.rows}
    for name in ("linear, 16 layers", "tanh, 16 layers", "linear, 32 layers", "tanh, 32 layers"):
        row = rows[name]
        assert row.holds
        gaussian, orthogonal = (int(count) for count in re.findall(r"(\d+) ± ", row.source))
        assert orthogonal < gaussian
        assert row.here >= 1
    (table,) = page.tables
    assert {(row[0], row[1], row[2]) for row in table.rows} >= {("tanh", 32, "gaussian"), ("tanh", 32, "orthogonal")}


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
        losses.append(float(loss))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.03 * gradient
    assert 0 < taken < 400
    assert losses[-1] <= script.TARGET < min(losses[:-1])
    assert math.isclose(losses[0], math.log(10), rel_tol=0.5)
