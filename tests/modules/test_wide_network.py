"""The wide network against its formula, its variants, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pullback as pb
from pullback import _memory, measure, theory
from pullback.modules import WideNetwork

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(model, x, phi, end):
    """The slides' recursion, one matrix after the other."""
    a = x
    for layer in model.layers:
        a = phi(a @ layer.weight.T / math.sqrt(layer.weight.shape[1]))
    return end(a @ model.readout.weight.T / math.sqrt(model.readout.weight.shape[1]))


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ({"output": "linear"}, lambda z: z),
        ({"output": "swish", "activation": "erf"}, lambda z: z * torch.sigmoid(z)),
        ({"output": "tanh", "outputs": 2}, torch.tanh),
        ({"output": "softmax"}, lambda z: z.softmax(1)),
        ({"output": "linear", "activation": torch.sin, "train_output": True, "outputs": 3}, lambda z: z),
    ],
)
def test_the_network_is_its_formula(kind, end):
    """S4-01, S4-02: values, the number of trained weights, and signs of V."""
    model = WideNetwork(3, [7, 5], dtype=torch.float64, **kind)
    phi = {"tanh": torch.tanh, "erf": torch.erf}.get(kind.get("activation", "tanh"), torch.sin)
    assert torch.allclose(model(X), by_hand(model, X, phi, end), rtol=1e-13)
    trained = 7 * 3 + 5 * 7 + (15 if kind.get("train_output") else 0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert bool((model.readout.weight.square() == 1).all())
    assert len(model.readout.weight) == kind.get("outputs", 2 if kind["output"] == "softmax" else 1)
    states = model.activations(X)
    assert torch.equal(states[0], X)
    assert torch.equal(states[-1], model(X))
    assert len(states) == 4 + (kind["output"] != "linear")


def test_the_variance_of_the_output():
    """S4-01: E f^2 = E sigma^2 in wide networks; 4 standard errors over 400 draws."""
    x = torch.ones(1, 2, dtype=torch.float64)
    values = torch.stack([WideNetwork(2, [200], seed=s, dtype=torch.float64)(x).detach() for s in range(400)]).flatten()
    squares = values.square()
    expected = theory.wide_network_kernels("tanh", 1, x.numpy())[0][0, 0]
    assert abs(float(squares.mean()) - expected) < 4 * float(squares.std()) / 20


def test_draws():
    """One seed, one network in every dtype; weights are standard normal; global random state stays."""
    before = torch.get_rng_state()
    one, same, other = (WideNetwork(2, [1500], seed=s, dtype=d) for s, d in ((1, torch.float64), (1, None), (2, None)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(one.layers[0].weight.float(), same.layers[0].weight)
    assert not torch.equal(same.layers[0].weight, other.layers[0].weight)
    weights = one.layers[0].weight.detach()
    assert abs(float(weights.mean())) < 4 / 3000**0.5
    assert abs(float(weights.square().mean()) - 1) < 4 * (2 / 3000) ** 0.5
    assert same.layers[0].weight.dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("bottleneck", "widths"),
    [(1, (9, 1, 9)), ((1, 2), (2, 9, 9)), ((3, 4), (9, 9, 4)), (None, (9, 9, 9))],
)
def test_a_bottleneck_at_any_layer(bottleneck, widths):
    model = WideNetwork(2, [9, 9, 9], bottleneck=bottleneck)
    assert model.widths == widths
    assert [layer.weight.shape[0] for layer in model.layers] == list(widths)
    wider = model.resized(20, seed=3)
    assert wider.widths == tuple(20 if w == 9 else w for w in widths)
    assert torch.equal(wider.layers[0].weight, model.resized(20, seed=3).layers[0].weight)


def test_variants_are_kept_when_resized():
    model = WideNetwork(2, [4, 4], "gelu", "softmax", train_output=True, outputs=3, dtype=torch.float64).resized(6)
    assert isinstance(model.output, nn.Softmax)
    assert isinstance(model.activation, nn.GELU)
    assert model.readout.weight.shape == (3, 6)
    assert model.readout.weight.requires_grad
    assert model.readout.weight.dtype == torch.float64


@pytest.mark.parametrize("train_output", [False, True])
def test_kernels_and_curvature_of_it_are_exact(train_output):
    """S4-04, S4-20: structured rules apply to scaled layers; blocks of layers sum to K(x, x)."""
    model = WideNetwork(3, [6, 5], outputs=2, train_output=train_output, dtype=torch.float64)
    kernel = pb.tangent_kernel(model, X, contract="full")
    assert torch.allclose(kernel.total, pb.reference.tangent_kernel(model, X), rtol=1e-10)
    assert torch.allclose(sum(kernel.layers.values()), kernel.total, rtol=1e-10)
    assert len(kernel.layers) == 2 + train_output
    assert not any("fallback" in str(form) for form in str(kernel.plan).split())
    jacobian = pb.Jacobian(model, X, wrt="input").per_sample()
    chained = pb.layer_jacobians(model, X)
    assert torch.allclose(chained[2] @ chained[1] @ chained[0], jacobian, rtol=1e-10)


def test_state_and_images():
    """The fixed output is saved with the weights; inputs of several axes are flattened."""
    model, other = WideNetwork(12, [5], seed=1), WideNetwork(12, [5], seed=2)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(other(x), model(x))
    assert torch.equal(model(x), model(x.flatten(1)))
    assert "5, 1, fixed" in repr(model)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((3, []), "WideNetwork: expected at least one hidden layer in `widths`, got none"),
        ((3, [0]), r"WideNetwork: expected whole sizes of at least 1, got \[3, 0, 1\]"),
        ((3, [2.5]), "WideNetwork: expected whole sizes of at least 1"),
        ((3, [5], "tanh", "cosine"), "WideNetwork: expected `output` to be one of 'linear'"),
        ((3, [5], "tanh", "linear", (2, 1)), "expected a bottleneck at one of the hidden layers 1 to 1, got layer 2"),
        ((3, [5], "tanh", "linear", 0), "WideNetwork: expected whole sizes of at least 1"),
        ((3, [5], "tanhh"), "activation_module: expected `activation` to be one of"),
    ],
)
def test_what_is_no_network_is_refused(arguments, match):
    with pytest.raises(pb.InputError, match=match):
        WideNetwork(*arguments)


def test_a_softmax_over_one_output_is_refused():
    with pytest.raises(pb.InputError, match="WideNetwork: expected two or more `outputs` for a softmax, got 1"):
        WideNetwork(3, [5], output="softmax", outputs=1)


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(_memory, "physical_bytes", lambda: 2**20)
    expected = r"WideNetwork: expected at most the 0.000977 GiB this machine has, got 1,010,910 weights, 0.00377 GiB"
    with pytest.raises(pb.InputError, match=expected):
        WideNetwork(100, [1000, 910], "tanh")
    WideNetwork(100, [100])


def test_gradients_reach_every_trained_weight():
    model = WideNetwork(3, [6, 5], output="swish", bottleneck=(1, 2))
    F.mse_loss(model(X.float()), torch.zeros(4, 1)).backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert measure.signal_propagation(model, X.float()).layers[0].endswith("0")
