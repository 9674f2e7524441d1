"""Pages on depth scales and on the depth that trains: their own arithmetic by other routes, and the checklist."""

from __future__ import annotations

import math
import re

import pytest
import torch

import pullback as pb
from pullback import measure


@pytest.fixture
def scales(load):
    return load("schoenholz2017_depth_scales")


@pytest.fixture
def depths(load):
    return load("schoenholz2017_trainable_depth")


def rows_like(page, pattern):
    """Rows whose quantity matches, all of which hold."""
    rows = [row for row in page.rows if re.search(pattern, row.quantity)]
    assert rows, pattern
    assert all(row.holds for row in rows)
    return rows


class TestDepthScales:
    """Fits."""

    def test_a_fitted_slope_is_that_of_an_exponential(self, scales):
        layers = torch.arange(9, dtype=torch.float64)
        assert scales.fit(5 * torch.exp(-layers / 3)) == pytest.approx(-1 / 3, rel=1e-12)

    def test_its_standard_error_is_the_spread_of_repeats(self, scales):
        """Of 12 networks whose every layer multiplies by a random factor; the widening by Student's distribution."""
        generator = torch.Generator().manual_seed(0)
        steps = 0.1 * torch.randn(400, 12, 8, generator=generator, dtype=torch.float64)
        found = [scales.fit_networks(torch.exp(-0.2 * torch.arange(8) + one.cumsum(1))) for one in steps]
        slopes, errors = torch.tensor(found).unbind(1)
        assert slopes.mean() == pytest.approx(-0.2, abs=5e-3)
        assert errors.mean() / slopes.std() == pytest.approx(scales.student(11), rel=0.1)

    @pytest.mark.slow
    def test_a_wrong_network_is_seen(self, scales, monkeypatch):
        """Weights a tenth too large halve the rates of c and of gradients, many standard errors."""
        assert all(rate.holds for rate in scales.measured(1.2, 0.05, 150, 10).rates.values())

        def larger(phi, sigma_w, sigma_b, **sizes):
            return measure.NetworkSpec(phi, 1.1 * sigma_w, sigma_b, **sizes)

        monkeypatch.setattr(scales, "measure", FakeMeasure(larger))
        wrong = scales.measured(1.2, 0.05, 150, 10).rates
        assert not any(rate.holds for name, rate in wrong.items() if name != "q")

    @pytest.mark.slow
    def test_page(self, filled):
        """S1-24: scales fitted to iterates, within one percent; S1-28: xi_grad in both phases; drawn networks."""
        page = filled("schoenholz2017_depth_scales")
        assert [row.paper for row in rows_like(page, "^ξ_. fitted to iterates at")] == [
            "1.337668",
            "1.959989",
            "6.648264",
        ]
        assert all(row.here < 0.01 for row in rows_like(page, "^ξ_. fitted to iterates, off its closed form"))
        assert [row.paper for row in rows_like(page, "^ξ_grad at")] == ["16.108", "-2.170486"]
        assert len(rows_like(page, "within 3 standard errors")) == 4


class FakeMeasure:
    """``measure`` with another specification."""

    Profile, signal_propagation = measure.Profile, staticmethod(measure.signal_propagation)

    def __init__(self, spec):
        self.NetworkSpec = spec


class TestTrainableDepth:
    """Many networks in one batch against one network at a time."""

    def test_networks_in_one_batch_are_those_of_modules(self, depths):
        variances, x = (1.0, 2.5), torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
        parameters = depths.start(3, 20, torch.tensor(variances).sqrt())
        found = depths.outputs(parameters, x, 1.0)
        for variance, one in zip(variances, found, strict=True):
            assert torch.allclose(one, network(depths, variance)(x), atol=1e-5)

    def test_training_in_one_batch_is_that_of_one_network(self, depths, monkeypatch):
        monkeypatch.setattr(depths, "RATE", 2.0)
        data = depths.load()
        found = depths.train(3, 20, (1.0, 2.5), 1.0, data, steps=30)
        for variance, accuracy in zip((1.0, 2.5), found, strict=True):
            expected = one_by_one(depths, variance, 2 / 3, data)
            assert expected > 0.3
            assert float(accuracy) == pytest.approx(expected, abs=2 / len(data[1]))  # rounding may move a sample

    def test_dropout_keeps_the_mean(self, depths):
        """The read-out is linear in the units that are dropped."""
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        parameters, generator = depths.start(1, 20, torch.tensor([1.3])), torch.Generator().manual_seed(1)
        with torch.no_grad():
            whole = depths.outputs(parameters, x, 0.7)[0]
            drawn = torch.stack([depths.outputs(parameters, x, 0.7, generator)[0] for _ in range(4000)])
        assert drawn.std(0).min() > 0.05
        assert ((drawn.mean(0) - whole).abs() < 4.5 * drawn.std(0) / 4000**0.5).all()

    def test_what_a_map_says(self, depths, load):
        accuracy = torch.tensor([[0.9, 0.9], [0.9, 0.2], [0.1, 0.7]])
        found = depths.Map(1.0, (1.0, 4.0), (10, 20, 400), accuracy)
        assert (found.deepest(1.0), found.deepest(4.0)) == (20, 10)
        assert found.multiples[:, 0].tolist() == pytest.approx([d / depths.reach(1.0) for d in (10, 20, 400)])
        page = load("kit.page").Page("name", "Title.")
        depths.shares(page, found)  # up to 6 xi_c: 3 of 4; beyond 12: 1 of 2
        assert [row.here for row in page.rows] == [0.75, 0.5]
        assert not any(row.holds for row in page.rows)

    @pytest.mark.slow
    def test_page(self, filled):
        """The closed forms with dropout, the critical point, and trained depths with dropout and without."""
        page = filled("schoenholz2017_trainable_depth")
        assert [row.paper for row in rows_like(page, "a tenth dropped")] == [
            "0.719823",
            "0.512223",
            "0.912503",
            "3.935054",
        ]
        assert rows_like(page, "^critical")[0].here == pytest.approx(1.760955, abs=5e-7)
        assert len(rows_like(page, "ξ_c deep")) == 4


def network(depths, variance):
    return pb.modules.MLP(
        [64, 20, 20, 20, 10], "tanh", init="orthogonal", sigma_w=math.sqrt(variance), sigma_b=depths.SIGMA_B
    )


def one_by_one(depths, variance, rate, data):
    """Accuracy of one network trained by torch's own optimiser on the same batches."""
    (x, y), model, generator = data, network(depths, variance), torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(30):
        chosen = torch.randint(len(x), (depths.BATCH,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return float((model(x).argmax(1) == y).double().mean())
