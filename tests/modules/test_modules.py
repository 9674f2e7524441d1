"""Networks, activations and starting weights. S0-29 to S0-31, S0-36, S0-43."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.modules import ACTIVATIONS, MLP, activation_module, initialise_weights
from tests.compare import assert_same


def test_the_note_s_network() -> None:
    """S0-43: seven activations of the note's shapes; the last is the output."""
    model = MLP([3072, 128, 128, 128, 128, 128, 10])
    x = torch.randn(4, 3, 32, 32)
    found = model.activations(x)
    assert [tuple(h.shape) for h in found] == [(4, 3072)] + [(4, 128)] * 5 + [(4, 10)]
    assert torch.equal(found[-1], model(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_activations(name: str) -> None:
    """S0-29: autograd against finite differences."""
    phi = activation_module(name)
    z = torch.linspace(-2.9, 3.1, 40, dtype=torch.float64, requires_grad=True)  # no kink is hit
    slope = torch.autograd.grad(phi(z).sum(), z)[0]
    h = 1e-6
    with torch.no_grad():
        difference = (phi(z + h) - phi(z - h)) / (2 * h)
    assert_same(slope, difference, 1e-6)


def test_known_values_of_activations() -> None:
    z = torch.tensor([-2.0, 0.5])
    assert activation_module("hard_tanh")(z).tolist() == [-1.0, 0.5]
    assert activation_module("leaky_relu")(z).tolist() == pytest.approx([-0.02, 0.5])
    assert activation_module("erf")(z).tolist() == pytest.approx([math.erf(-2), math.erf(0.5)])
    assert activation_module("sin")(z).tolist() == pytest.approx([math.sin(-2), math.sin(0.5)])
    assert activation_module(torch.cos)(z).tolist() == pytest.approx([math.cos(-2), math.cos(0.5)])
    assert "erf" in repr(activation_module("erf"))


def test_batch_norm_makes_mean_zero_and_variance_one() -> None:
    """S0-30."""
    layer = MLP([5, 7, 2], normalisation="batch").train().layers[0]
    out = layer.norm(layer.linear(torch.randn(512, 5))).detach()
    assert float(out.mean(0).abs().max()) < 1e-5
    assert float((out.var(0, unbiased=False) - 1).abs().max()) < 1e-3  # epsilon 1e-5 against small variances
    by_sample = MLP([5, 7, 2], normalisation="layer").layers[0]
    out = by_sample.norm(by_sample.linear(torch.randn(9, 5))).detach()
    assert float(out.mean(1).abs().max()) < 1e-5


def test_skip_and_dropout() -> None:
    """S0-31: a zero branch passes its input on exactly; dropout is off in eval mode."""
    model = MLP([4, 4, 2], residual=True)
    nn.init.zeros_(model.layers[0].linear.weight)
    nn.init.zeros_(model.layers[0].linear.bias)
    x = torch.randn(3, 4)
    assert torch.equal(model.layers[0](x), x)
    assert not MLP([3, 4, 2], residual=True).layers[0].residual  # widths differ: no skip
    dropped = MLP([4, 400, 2], dropout=0.5)
    torch.manual_seed(0)
    train = dropped.train().layers[0](x)
    assert float((train == 0).float().mean()) > float((dropped.eval().layers[0](x) == 0).float().mean()) + 0.1


@pytest.mark.parametrize(("scheme", "variance"), [("he", 2 / 1000), ("xavier", 2 / 2000), ("gaussian", 1.5**2 / 1000)])
def test_variance_of_starting_weights(scheme: str, variance: float) -> None:
    """S0-36: within two percent at 1000 x 1000."""
    layer = initialise_weights(nn.Linear(1000, 1000), scheme, sigma_w=1.5, sigma_b=0.3, seed=1)
    assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.02)
    assert float(layer.bias.detach().std()) == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonal_weights(shape: tuple[int, int]) -> None:
    """S0-36: W^T W (or W W^T, whichever is smaller) is sigma_w^2 times the identity to 1e-10."""
    layer = initialise_weights(nn.Linear(*shape).double(), "orthogonal", sigma_w=1.3)
    w = layer.weight.detach()
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    assert_same(gram, 1.69 * torch.eye(len(gram), dtype=torch.float64), 1e-10)
    assert float(layer.bias.detach().abs().max()) == 0


def test_starting_weights_have_their_own_randomness() -> None:
    before = torch.get_rng_state()
    first, second = (initialise_weights(nn.Conv2d(2, 3, 3), "he", seed=5).weight for _ in range(2))
    kept = nn.Linear(2, 2)
    weight = kept.weight.clone()
    assert torch.equal(initialise_weights(kept, "default").weight, weight)
    assert torch.equal(first, second)
    torch.set_rng_state(before)


def test_errors() -> None:
    with pytest.raises(pb.InputError, match="`activation` to be one of 'relu', .* got 'rleu'"):
        MLP([2, 3, 2], activation="rleu")
    with pytest.raises(pb.InputError, match="`scheme` to be one of 'default', 'he'"):
        MLP([2, 3, 2], init="kaiming")
    with pytest.raises(pb.InputError, match="`normalisation` to be one of 'none', 'batch', 'layer'"):
        MLP([2, 3, 2], normalisation="group")
    with pytest.raises(pb.InputError, match="two or more positive `layer_sizes`"):
        MLP([2])
    with pytest.raises(pb.InputError, match="`dropout` from 0 to below 1, got 1.0"):
        MLP([2, 3, 2], dropout=1.0)
