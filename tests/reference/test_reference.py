"""The reference is short; these are the few numbers known without any code. S0-02 to S0-05, S0-09, S0-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback import reference
from tests.compare import assert_same


def least_squares() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """f(x) = w x + b with loss (f - y)^2: g_i = 2 r_i (x_i, 1)."""
    model = nn.Linear(2, 1).double()
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    return model, nn.MSELoss(), x, y


def test_gradients_by_hand() -> None:
    """S0-03 to S0-05."""
    model, loss_fn, x, y = least_squares()
    r = (model(x) - y).detach()
    by_hand = 2 * r * torch.cat([x, torch.ones(5, 1)], 1)
    g = reference.gradient_matrix(model, loss_fn, x, y)
    assert_same(g, by_hand, 1e-14)
    rows = reference.per_sample_gradients(model, loss_fn, x, y)
    assert_same(rows["weight"].flatten(1), by_hand[:, :2], 1e-14)
    assert_same(torch.cat(list(reference.layer_gradient_matrices(model, loss_fn, x, y).values()), 1), g)
    assert_same(reference.total_kernel(model, loss_fn, x, y), by_hand @ by_hand.T, 1e-14)
    assert_same(sum(reference.layer_kernels(model, loss_fn, x, y).values()), by_hand @ by_hand.T, 1e-14)  # type: ignore[arg-type]


def test_curvature_by_hand() -> None:
    """S0-09: the mean of outer products; Hessian and Gauss-Newton of least squares are 2 X^T X / N."""
    model, loss_fn, x, y = least_squares()
    design = torch.cat([x, torch.ones(5, 1)], 1)
    g = reference.gradient_matrix(model, loss_fn, x, y)
    assert_same(reference.dense_hessian(model, loss_fn, x, y), 2 * design.T @ design / 5, 1e-13)
    assert_same(reference.dense_gauss_newton(model, loss_fn, x, y), 2 * design.T @ design / 5, 1e-13)
    assert_same(reference.dense_empirical_fisher(model, loss_fn, x, y), g.T @ g / 5, 1e-13)


def test_frozen_and_unused_parameters() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 1), nn.Linear(2, 1)
            self.used.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    rows = reference.per_sample_gradients(Unused(), nn.MSELoss(), torch.randn(3, 2), torch.randn(3, 1))
    assert set(rows) == {"used.weight", "spare.weight", "spare.bias"}
    assert rows["spare.weight"].abs().sum() == 0


def test_sparse_tables_have_the_gradients_of_dense_ones() -> None:
    x, y = torch.tensor([[0, 2], [3, 3], [1, 0]]), torch.tensor([0, 1, 1])
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(4, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 2)).double()
        found.append(
            (reference.gradient_matrix(model, nn.CrossEntropyLoss(), x, y), reference.output_gradients(model, x))
        )
    for dense, other in zip(*found, strict=True):
        assert_same(other, dense, 1e-14)
