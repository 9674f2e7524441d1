"""``GradientMatrix`` over all cases. S0-03 to S0-05."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize(("case", "n"), thinned(CASES, [6, 1]))
def test_equals_the_dense_matrix(case: Case, n: int) -> None:
    """Vectors and matrices, from both sides, norms, and the matrix itself."""
    model, loss_fn, x, y = build(case, n)
    G = pb.GradientMatrix(model, loss_fn, x, y)
    dense = reference.gradient_matrix(model, loss_fn, x, y)
    assert G.shape == tuple(dense.shape)
    size = max(float(dense.norm()), 1e-12)
    assert_same(G.to_dense(), dense, scale=size)
    v = torch.randn(dense.shape[1], 3, dtype=torch.float64)
    u = torch.randn(n, 3, dtype=torch.float64)
    assert_same(G @ v, dense @ v, scale=size * float(v.norm()))
    assert_same(G @ v[:, 0], dense @ v[:, 0], scale=size * float(v.norm()))
    assert_same(G.T @ u, dense.T @ u, scale=size * float(u.norm()))
    assert_same(G.norms(), dense.norm(dim=1), scale=size)
    assert G.T.T.shape == G.shape


@every_case
def test_layers_partition_the_columns(case: Case) -> None:
    """S0-04, S0-05: concatenated layers are G, and their squared norms add up."""
    model, loss_fn, x, y = build(case, 5)
    G = pb.GradientMatrix(model, loss_fn, x, y)
    layers = reference.layer_gradient_matrices(model, loss_fn, x, y)
    assert set(G.layers) == set(layers)
    for layer, dense in layers.items():
        assert_same(G.layers[layer].to_dense(), dense, scale=max(float(dense.norm()), 1e-12))
    assert sum(G.layers[layer].shape[1] for layer in G.layers) == G.shape[1]
    squares = sum(float(part.squared_norms().sum()) for part in G.layers.values())
    assert squares == pytest.approx(float(G.to_dense().square().sum()), rel=1e-10)


def test_mean_row_is_the_gradient_of_the_mean_loss() -> None:
    """S0-03."""
    model, loss_fn, x, y = build(CASES[0], 8)
    G = pb.GradientMatrix(model, loss_fn, x, y)
    gradients = torch.autograd.grad(nn.CrossEntropyLoss()(model(x), y), list(model.parameters()))
    flat = torch.cat([g.reshape(-1) for g in gradients])
    assert_same(G.T @ torch.full((8,), 1 / 8, dtype=torch.float64), flat)


def test_subset_of_parameters() -> None:
    model, loss_fn, x, y = build(CASES[0], 4)
    part = pb.GradientMatrix(model, loss_fn, x, y, params=["3", "1.bias"])
    rows = reference.per_sample_gradients(model, loss_fn, x, y)
    assert_same(part.to_dense(), torch.cat([rows["1.bias"].flatten(1), rows["3.weight"].flatten(1)], 1))
