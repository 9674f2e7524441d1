"""The page on residual networks: its networks against dense Jacobians, its exponents against known sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pullback as pb


@pytest.fixture
def script(load):
    return load("yang2017_residual")


def test_exponents_of_known_sequences(script):
    """A power and an exponential of the root, each with a correction that is removed."""
    layers = np.arange(1, 5001)
    power = np.concatenate([[1.0], layers**-0.7 * (1 + 2 / np.sqrt(layers))])
    assert script.rate(power, 2048, power=True) == pytest.approx(-0.7, abs=2e-3)  # without it: -0.71 at l = 2048
    root = np.concatenate([[1.0], np.exp(1.5 * np.sqrt(layers)) * layers**0.2])
    assert script.rate(root, 2048, power=False) == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_network_against_autograd(script, activation):
    """Signals of one small network against a module made of the same weights, and the gradient of every weight."""
    depth, width = 3, 7
    net = script.Network(activation, 1.2, 0.4, True, "#000000")
    found = net.one(depth, width, torch.Generator().manual_seed(3))
    make, draw = torch.Generator().manual_seed(3), {"dtype": torch.float64}
    torch.linalg.qr(torch.randn(width, 2, generator=make, **draw))
    weights, biases = [], []
    for _ in range(depth):
        weights.append((1.2 / math.sqrt(width) * torch.randn(width, width, generator=make, **draw)).requires_grad_())
        biases.append(0.4 * torch.randn(width, generator=make, **draw))
    readout = torch.randn(width, generator=make, **draw)
    basis = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(3), **draw)).Q
    x = math.sqrt(width) * basis[:, 0]
    phi = getattr(torch, activation)
    states = [x]
    for weight, bias in zip(weights, biases, strict=True):
        states.append(states[-1] + weight @ phi(states[-1]) + bias)
    sizes = torch.stack([g.square().sum() for g in torch.autograd.grad(states[-1] @ readout, weights)])
    assert found["length"].tolist() == pytest.approx([float(s.detach().square().mean()) for s in states])
    assert found["weights"].tolist() == pytest.approx((sizes / sizes[-1]).tolist())
    assert float(found["correlation"][0]) == pytest.approx(script.START)
    assert float(found["gradient"][-1]) == 1.0


@pytest.mark.slow
class TestPage:
    """At its small size."""

    @pytest.fixture
    def page(self, filled):
        return filled("yang2017_residual")

    def test_laws(self, page):
        """Powers and roots of depth, each held to its closed form."""
        found = {row.quantity: row for row in page.rows}
        closed = {
            "tanh: growth of the length a block": 1.0,
            "tanh: correlation falls as l to the power": 2 / math.pi - 1,
            "tanh: A of gradients exp(A √l)": 8 / (3 * math.sqrt(2 * math.pi)),  # 2 √l E sech(√q z)^4 √q, q = l
            "ReLU, plain: growth of 1/√(1 - c) a layer": math.sqrt(2) / (3 * math.pi),
            "ReLU, residual: growth of 1/√(1 - c) a layer": 0.08 / 1.08 * math.sqrt(2) / (3 * math.pi),
        }
        for quantity, expected in closed.items():
            assert float(found[quantity].paper) == pytest.approx(expected)
            assert found[quantity].here == pytest.approx(expected, rel=0.03)
        assert all(row.holds for row in page.rows)

    def test_real_networks_are_held_to_theory(self, page):
        rows = [row for row in page.rows if "standard errors" in row.source]
        assert len(rows) == 3 * 6 + 1
        assert all(row.holds for row in rows)
        assert all(
            float(row.tolerance[1:].split(",")[0]) < 0.5 * abs(float(row.paper))
            for row in rows
            if "length" in row.quantity
        )

    def test_figures(self, page):
        assert [chart.key for chart in page.charts] == [
            f"{kind}-{name}" for kind in ("tanh", "relu") for name in ("length", "correlation", "gradient")
        ]
        for chart in page.charts:
            assert {trace["mode"] for trace in chart.figure["data"]} == {"lines", "markers"}

    def test_gradients_of_a_plain_network_explode_faster(self, page):
        """Of equal σ: exponential against exp(A √l)."""
        (chart,) = [chart for chart in page.charts if chart.key == "tanh-gradient"]
        lines = {trace["name"]: np.log(trace["y"]) for trace in chart.figure["data"] if trace["mode"] == "lines"}
        plain, skip = lines["plain, σ = 2"], lines["residual, σ = 2"]
        steps = -np.diff(plain)
        assert steps[5:].std() < 1e-3 * steps.mean()
        assert -np.diff(skip)[0] > 1.5 * -np.diff(skip)[-1]


def test_a_wrong_theory_fails(load, monkeypatch, script):
    """A gradient that is off by a thousandth is seen in the closed form, without any network."""
    page = load("kit.page").Page("yang2017_residual", script.__doc__)
    exact = pb.theory.residual_profile

    def wrong(*args, **kwargs):
        profile = exact(*args, **kwargs)
        growth = np.arange(len(profile.length))
        return type(profile)(profile.length * 1.0001**growth, profile.correlation, profile.gradient * 1.0001**-growth)

    monkeypatch.setattr(pb.theory, "residual_profile", wrong)
    script.relu_laws(page)
    with pytest.raises(pb.SelfCheckError, match="yang2017_residual: expected"):
        page.check()
