"""Growth of gradients by layer, with and without batch norm, and what batch norm does forwards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback._rng import make_generator
from pullback.measure import NetworkSpec, gradient_factors
from pullback.measure.networks.drawn import DATA
from pullback.measure.networks.settled import settled_inputs
from pullback.theory import MeanField, batch_norm_gradient_factor
from pullback.theory.expectations import gaussian
from pullback.theory.expectations.activations import activation_of
from tests.compare import assert_same


def test_by_hand() -> None:
    """One network: delta taken back through D and W by the recursion, without autograd."""
    spec = NetworkSpec("tanh", 1.5, 0.2, depth=3, width=7)
    found = gradient_factors(spec, 5, seeds=2)
    rows = []
    for number in range(2):
        generator = make_generator(number + DATA)
        model, h = spec.build(number), settled_inputs(spec, 5, generator, "test")
        slopes = []
        for layer in model:
            h = torch.tanh(h @ layer.linear.weight.detach().T + layer.linear.bias.detach())
            slopes.append(1 - h.square())
        torch.randint(2**62, (), generator=generator)
        g = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        g, factors = g - g.mean(0), []
        for layer, slope in zip(reversed(model), reversed(slopes), strict=True):
            below = (g * slope) @ layer.linear.weight.detach()
            factors.insert(0, below.square().mean() / g.square().mean())
            g = below
        rows.append(torch.stack(factors))
    both = torch.stack(rows)
    assert_same(found.by_layer.value, both.mean(0), 1e-12)
    assert found.mean.value == pytest.approx(float(both[:, 1:].mean()), rel=1e-12)


@pytest.mark.parametrize(("sigma_w", "keep_prob"), [(1.3, 1.0), (2.5, 1.0), (1.3, 0.8)])
def test_without_batch_norm_it_is_chi(sigma_w: float, keep_prob: float) -> None:
    spec = NetworkSpec("tanh", sigma_w, 0.3, depth=4, width=600, keep_prob=keep_prob)
    found, net = gradient_factors(spec, 8, seeds=8).mean, spec.theory()
    expected = net.sigma_w**2 * net.phi_slope_square(net.q_star) / keep_prob
    assert abs(found.value - expected) < 3.5 * found.stderr < 0.1 * expected


@pytest.mark.slow
def test_relu_over_a_batch_of_128() -> None:
    """S1-34: at width 800 the factor is 1.478 +- 0.01; theory has 1.4799."""
    spec = NetworkSpec("relu", 2**0.5, depth=4, width=800, batch_norm=True)
    found = gradient_factors(spec, 128, seeds=4).mean
    assert found.value == pytest.approx(1.478, abs=0.01)
    assert abs(found.value - batch_norm_gradient_factor("relu", 128)) < 3.5 * found.stderr < 0.04


@pytest.mark.slow
def test_the_identity_and_batches() -> None:
    """S1-34, S1-39: (B - 2) / (B - 3), measured at B = 8 and 32, and falling with B for any activation."""
    assert [batch_norm_gradient_factor("linear", B) for B in (4, 8, 32)] == pytest.approx([2.0, 1.2, 1.0345], abs=5e-5)
    measured = []
    for B in (8, 32):
        spec = NetworkSpec("linear", 1.0, depth=4, width=500, batch_norm=True)
        found = gradient_factors(spec, B, seeds=12).mean
        assert abs(found.value - (B - 2) / (B - 3)) < 3.5 * found.stderr < 0.1
        measured.append(found.value)
    assert measured[0] > measured[1] > 1
    for name in ("relu", "tanh"):
        exact = [batch_norm_gradient_factor(name, B) for B in (4, 8, 32, 128, math.inf)]
        assert exact == sorted(exact, reverse=True)
        spec = NetworkSpec(name, 1.0, depth=3, width=400, batch_norm=True)
        small, large = (gradient_factors(spec, B, seeds=6).mean.value for B in (8, 64))
        assert small > large + 0.05


@pytest.mark.parametrize("sigma_w", [0.5, 1.0, 4.0])
def test_batch_norm_makes_gradients_grow_at_every_sigma(sigma_w: float) -> None:
    """S1-38: more than 1 a layer in every layer, where the network without it is ordered, near critical or chaotic."""
    found = gradient_factors(NetworkSpec("tanh", sigma_w, depth=6, width=300, batch_norm=True), 32, seeds=10)
    low = found.by_layer.value[1:] - 3 * found.by_layer.stderr[1:]
    assert bool((low > 1).all())
    assert MeanField("tanh", 0.5).chi < 1  # so that batch norm turns vanishing into exploding
    other = gradient_factors(NetworkSpec("tanh", sigma_w * 2, depth=6, width=300, batch_norm=True), 32, seeds=10)
    assert other.mean.value == pytest.approx(found.mean.value, rel=1e-3)  # sigma_w cancels, but for torch's 1e-5


def test_slopes_of_the_sigmoid() -> None:
    """S1-06: at most 1/4, at 0; batch norm keeps it from vanishing: 0.2066 for N(0, 1), less for N(3, 1)."""
    phi = activation_of(torch.sigmoid, "test")
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    slopes = phi.slope(z.numpy())
    assert float(slopes.max()) == pytest.approx(0.25) == float(phi.slope(torch.zeros(1).double().numpy())[0])
    assert gaussian.mean(phi.slope, 1.0, phi.kinks).value == pytest.approx(0.2066, abs=5e-5)
    h = 3 + torch.randn(40000, 1, dtype=torch.float64)
    normalised = nn.BatchNorm1d(1, dtype=torch.float64)(h).detach()
    after, before = (float((torch.sigmoid(u) * (1 - torch.sigmoid(u))).mean()) for u in (normalised, h))
    assert after == pytest.approx(0.2066, abs=1e-3)
    assert before == pytest.approx(gaussian.mean(lambda u: phi.slope(u + 3), 1.0, phi.kinks).value, abs=1e-3)
    assert before < 0.0605 < after


def test_placement() -> None:
    """S1-36: between W and phi, with scale and shift to learn; gamma = 0 makes outputs constant, phi(beta)."""
    model = pb.modules.MLP([4, 6, 5, 3], "tanh", normalisation="batch").double()
    kinds = [type(module).__name__ for module in model.layers[0].children()]
    assert kinds[:3] == ["Linear", "BatchNorm1d", "Tanh"]
    x = torch.randn(16, 4, dtype=torch.float64)
    assert float(model(x).detach().std(0).min()) > 1e-3
    layer = model.layers[1]
    with torch.no_grad():
        layer.norm.weight.zero_()
        layer.norm.bias.copy_(torch.linspace(-1, 1, 5))
    assert_same(model.activations(x)[2].detach(), torch.tanh(layer.norm.bias).detach().expand(16, -1), 1e-14)
    assert float(model(x).detach().std(0).max()) == 0
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"layers.0.norm.weight", "layers.0.norm.bias"} <= names
    spec = NetworkSpec("tanh", 1.0, depth=1, width=5, batch_norm=True)
    assert [type(m).__name__ for m in spec.build()[0]] == ["Linear", "BatchNorm1d", "Tanh"]


def test_the_global_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    gradient_factors(NetworkSpec("tanh", 1.0, depth=2, width=5, batch_norm=True, keep_prob=0.9), 6, seeds=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gradient_factors(NetworkSpec("tanh", 1.0, depth=1, width=5)),
            r"gradient_factors: expected at least two layers, got one",
        ),
        (
            lambda: gradient_factors(NetworkSpec("tanh", 1.0, depth=2, width=5, batch_norm=True), 3),
            r"gradient_factors: expected `batch_size` at least 4, got 3",
        ),
        (
            lambda: gradient_factors(NetworkSpec("tanh", 1.0, depth=2, width=5), seeds=1),
            r"gradient_factors: expected `seeds` at least 2, got 1",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
