"""Jacobians between layers. S0-47 to S0-49, S0-31."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.modules import MLP
from tests.compare import assert_same


def test_the_note_s_shapes_and_printed_lines() -> None:
    """S0-47: canonical (B, out, in), and the script's own printout."""
    model = MLP([3072, 128, 128, 128, 128, 128, 10])
    x = torch.randn(1, 3, 32, 32)
    shapes = [tuple(j.shape) for j in pb.layer_jacobians(model, x)]
    assert shapes == [(1, 128, 3072)] + [(1, 128, 128)] * 4 + [(1, 10, 128)]
    lines = [
        f"Jacobian between Layer {i} and Layer {i + 1}: {j.shape}"
        for i, j in enumerate(pb.layer_jacobians(model, x, legacy_shape=True))
    ]
    assert lines[0] == "Jacobian between Layer 0 and Layer 1: torch.Size([128, 1, 3072])"
    assert lines[1] == "Jacobian between Layer 1 and Layer 2: torch.Size([128, 1, 128])"
    assert lines[5] == "Jacobian between Layer 5 and Layer 6: torch.Size([10, 1, 128])"
    assert len(lines) == 6


def test_jacobian_is_d_times_w_and_the_chain_is_the_whole() -> None:
    """S0-48: D W with zero rows for inactive units; the product is the end-to-end Jacobian."""
    model = MLP([12, 9, 8, 4])
    x = torch.randn(3, 12)
    jacobians = pb.layer_jacobians(model, x)
    h = model.activations(x)
    for index, layer in enumerate(list(model.layers)[:-1]):
        active = (h[index + 1] > 0).float()
        assert_same(jacobians[index], active.unsqueeze(2) * layer.linear.weight.detach(), 1e-6)
        assert (jacobians[index][active == 0] == 0).all()
    assert_same(jacobians[-1], model.layers[-1].weight.detach().expand(3, -1, -1), 1e-6)
    chain = jacobians[2] @ jacobians[1] @ jacobians[0]
    for i in range(3):
        whole = torch.autograd.functional.jacobian(lambda v: model(v.unsqueeze(0))[0], x[i])
        assert float((chain[i] - whole).abs().max()) < 1e-6


def test_singular_values() -> None:
    """S0-49: the product's largest singular value is at most the product of the layers' largest."""
    jacobians = pb.layer_jacobians(MLP([12, 9, 8, 4], activation="tanh"), torch.randn(2, 12))
    largest = torch.stack([torch.linalg.svdvals(j)[:, 0] for j in jacobians]).prod(0)
    whole = torch.linalg.svdvals(jacobians[2] @ jacobians[1] @ jacobians[0])
    assert whole.shape == (2, 4)
    assert (whole[:, 0] <= largest * (1 + 1e-6)).all()


def test_a_skip_around_a_zero_branch_is_the_identity() -> None:
    """S0-31."""
    model = MLP([6, 6, 6, 2], residual=True)
    nn.init.zeros_(model.layers[1].linear.weight)
    nn.init.zeros_(model.layers[1].linear.bias)
    assert torch.equal(pb.layer_jacobians(model, torch.randn(2, 6))[1], torch.eye(6).expand(2, 6, 6))


def test_sequential_groups_parameters_with_what_follows() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert [tuple(j.shape) for j in pb.layer_jacobians(model, torch.randn(2, 2, 2))] == [(2, 3, 4), (2, 2, 3)]


def test_train_mode_is_put_back() -> None:
    model = MLP([4, 3, 2], normalisation="batch", dropout=0.5).train()
    before = model.layers[0].norm.running_mean.clone()
    pb.layer_jacobians(model, torch.randn(5, 4))
    assert model.training
    assert torch.equal(model.layers[0].norm.running_mean, before)


def test_errors() -> None:
    with pytest.raises(pb.InputError, match="an nn.Sequential, or a model with a `layer_maps"):
        pb.layer_jacobians(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(pb.InputError, match="one sample for `legacy_shape`, got 2"):
        pb.layer_jacobians(MLP([2, 2, 2]), torch.randn(2, 2), legacy_shape=True)


def test_weights_that_are_no_numbers_are_not_told_as_coupling() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    with pytest.raises(pb.InputError, match="layer_jacobians: expected a finite output of layer 1 for every sample"):
        pb.layer_jacobians(model, torch.randn(5, 3))
