"""Random networks by specification, against the same networks written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.measure import NetworkSpec
from tests.compare import assert_same

STEPS = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0), "linear": lambda h: h}


def parts(layer: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of one layer."""
    linear = getattr(layer, "branch", layer).linear
    return linear.weight.detach().numpy(), linear.bias.detach().numpy()


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_the_network_written_out(name: str, weights: str) -> None:
    """S1-01: x^l_i = phi(sum_j W_ij x^{l-1}_j + b_i), sums by loops, to 1e-12."""
    spec = NetworkSpec(name, 1.4, 0.2, depth=3, width=7, inputs=5, weights=weights)
    model = spec.build(seed=3)
    x = np.random.default_rng(0).normal(size=(4, 5))
    found = model(torch.from_numpy(x)).detach().numpy()
    for sample, result in zip(x, found, strict=True):
        state = sample
        for layer in model:
            w, b = parts(layer)
            h = [sum(w[i, j] * state[j] for j in range(len(state))) + b[i] for i in range(len(b))]
            state = STEPS[name](np.array(h))
        assert np.abs(state - result).max() < 1e-12


def test_chain_rule_by_jacobians() -> None:
    """S1-02: dL/dW^1 = (grad L) J^L ... J^2 dx^1/dW^1, with L - 1 factors in this order, to 1e-10."""
    model = NetworkSpec("tanh", 1.5, 0.3, depth=4, width=6, inputs=5).build()
    x, target = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    ((model(x) - target).square().sum() / 2).backward()
    states = [x]
    for layer in model:
        states.append(layer(states[-1]).detach())
    row = states[-1] - target  # dL/dx^L, (1, 6)
    for k in range(3, 0, -1):  # J^4, J^3, J^2 with J^l = D^l W^l
        w = model[k].linear.weight.detach()
        row = row @ ((1 - states[k + 1] ** 2).T * w)
    gradient = (row * (1 - states[1] ** 2)).T @ x  # dx^1_i/dW_ij = phi'(h_i) x_j
    assert_same(gradient, model[0].linear.weight.grad, 1e-10)


def test_first_lengths() -> None:
    """S1-07: q^1 = sigma_w^2 |x|^2 / N_0 + sigma_b^2 within 5 percent at 2000 units."""
    spec = NetworkSpec("tanh", 1.7, 0.4, depth=1, width=2000, inputs=300)
    x = 3 * torch.randn(300, dtype=torch.float64)
    h = spec.build(seed=1)[0].linear(x)
    expected = 1.7**2 * float(x.square().mean()) + 0.16
    assert float(h.detach().square().mean()) == pytest.approx(expected, rel=0.05)


def test_weights_and_biases() -> None:
    spec = NetworkSpec("relu", 1.7, 0.4, depth=2, width=400, inputs=100)
    for linear, fan_in in zip([layer.linear for layer in spec.build()], (100, 400), strict=True):
        assert float(linear.weight.detach().var()) * fan_in == pytest.approx(1.7**2, rel=0.03)
        assert float(linear.bias.detach().std()) == pytest.approx(0.4, rel=0.1)
    w = NetworkSpec("relu", 1.7, depth=1, width=30, weights="orthogonal").build()[0].linear.weight.detach()
    assert_same(w @ w.T, 1.7**2 * torch.eye(30, dtype=torch.float64), 1e-12)


def test_skips() -> None:
    spec = NetworkSpec("tanh", 1.2, 0.1, depth=2, width=6, residual=0.5)
    model = spec.build()
    x = torch.randn(3, 6, dtype=torch.float64)
    state = x.numpy()
    for layer in model:
        w, b = parts(layer)
        state = state + 0.5 * np.tanh(state @ w.T + b)
    assert_same(model(x).detach(), torch.from_numpy(state), 1e-12)


def test_batch_norm_is_between_weights_and_activation() -> None:
    """S1-36: outputs are phi of numbers with mean 0 and variance 1 over the batch."""
    model = NetworkSpec("linear", 1.2, 0.3, depth=2, width=6, batch_norm=True).build().train()
    y = model(torch.randn(9, 6, dtype=torch.float64)).detach()
    assert y.mean(0).abs().max() < 1e-12
    assert y.var(0, correction=0) == pytest.approx(np.ones(6), abs=1e-4)  # torch adds 1e-5 to the variance
    with torch.no_grad():
        model[1].norm.weight.zero_()
    assert model(torch.randn(9, 6, dtype=torch.float64)).abs().max() == 0


@pytest.mark.slow
def test_dropout_keeps_a_share_of_the_units_that_enter() -> None:
    model = NetworkSpec("linear", 1.0, depth=1, width=10000, inputs=10000, keep_prob=0.9).build(dtype=torch.float32)
    entered = []
    handle = model[0].linear.register_forward_pre_hook(lambda _, x: entered.append(x[0]))
    model.train()(torch.ones(1, 10000))
    handle.remove()
    kept = entered[0] != 0
    assert float(kept.double().mean()) == pytest.approx(0.9, abs=0.015)
    assert (entered[0][kept] == 1 / 0.9).all()


def test_a_build_is_repeatable_and_leaves_the_random_state() -> None:
    spec, state = NetworkSpec("tanh", 1.2, 0.1, depth=2, width=6), torch.random.get_rng_state()
    one, same, other = spec.build(4), spec.build(4), spec.build(5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one[1].linear.weight, same[1].linear.weight)
    assert not torch.equal(one[1].linear.weight, other[1].linear.weight)
    assert spec.build(dtype=torch.float32)(torch.zeros(1, 6)).dtype == torch.float32


def test_theory_of_a_specification() -> None:
    net = NetworkSpec("tanh", 1.3, 0.3, depth=2, width=6, keep_prob=0.9).theory()
    assert net == pb.theory.MeanField("tanh", 1.3, 0.3, 0.9)
    own = NetworkSpec(torch.tanh, 1.3, 0.3, depth=2, width=6).theory()
    assert own.q_star == pytest.approx(0.607047, abs=1e-6)
    for extra in ({"batch_norm": True}, {"residual": 1.0}):
        with pytest.raises(pb.InputError, match=r"NetworkSpec.theory: expected layers without batch norm or skip, got"):
            NetworkSpec("tanh", 1.3, 0.3, depth=2, width=6, **extra).theory()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, r"NetworkSpec: expected a `depth` of at least 1, got 0"),
        ({"depth": True}, r"NetworkSpec: expected a `depth` of at least 1, got True"),
        ({"width": 0}, r"NetworkSpec: expected `width` at least 1, got 0"),
        ({"inputs": -2}, r"NetworkSpec: expected `inputs` at least 1, got -2"),
        ({"weights": "uniform"}, r"NetworkSpec: expected `weights` to be one of 'gaussian', 'orthogonal'"),
        ({"residual": 1.0, "inputs": 3}, r"inputs as wide as the layers for a skip, got 3 inputs and width 4"),
        ({"sigma_w": -1.0}, r"`sigma_w` above 0, got -1.0"),
        ({"sigma_b": -1.0}, r"`sigma_b` of at least 0, got -1.0"),
        ({"sigma_b": math.nan}, r"`sigma_b` of at least 0, got nan"),
        ({"keep_prob": 0.0}, r"`keep_prob` in \(0, 1\], got 0.0"),
        ({"activation": "swishy"}, r"`activation` to be one of 'tanh'"),
        ({"activation": torch.log}, r"a finite activation, got log\(-40\) not finite"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"activation": "tanh", "sigma_w": 1.0, "depth": 2, "width": 4}
    with pytest.raises(pb.InputError, match=message):
        NetworkSpec(**{**given, **changes})
