"""Two products a measurement, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.controllers.top_curvature import TopCurvature, two_steps
from pullback.modules import MLP


@pytest.mark.parametrize("seed", range(3))
def test_two_steps_give_the_largest_value_in_their_plane(seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    A = torch.randn(7, 7, generator=make, dtype=torch.float64)
    A, v = A + A.T, torch.randn(7, generator=make, dtype=torch.float64)
    value, vector = two_steps(lambda u: A @ u, v)
    basis = torch.linalg.qr(torch.stack([v, A @ v], 1)).Q
    values, vectors = torch.linalg.eigh(basis.T @ A @ basis)
    assert value == pytest.approx(float(values[-1]), rel=1e-10)
    assert abs(float(vector @ (basis @ vectors[:, -1]))) == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0])
def test_an_eigenvector_stays_one(value: float) -> None:
    start = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    found, vector = two_steps(lambda u: value * u, start)
    assert found == value
    assert vector.tolist() == [0, 1, 0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_followed_on_one_batch_it_reaches_the_dense_value(optimizer: str) -> None:
    """Other than the first measurement, which is a search of its own: started from a random vector."""
    torch.manual_seed(0)
    model, loss_fn = MLP([4, 5, 3], activation="tanh").double(), nn.CrossEntropyLoss()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    made: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    if optimizer == "adam":
        made = torch.optim.Adam(model.parameters(), 1e-3)
    loss_fn(model(x), y).backward()
    made.step()
    top = TopCurvature(model, loss_fn, 8, 0)
    top.vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found = [top.measure(made, x, y) for _ in range(60)]
    H = reference.dense_hessian(model, loss_fn, x[:8], y[:8])
    if optimizer == "adam":
        second = torch.cat([made.state[p]["exp_avg_sq"].flatten() for p in model.parameters()]) / (1 - 0.999)
        root = (second.sqrt() + 1e-8) ** -0.5
        H = root.unsqueeze(1) * H * root
    expected = float(torch.linalg.eigvalsh(H)[-1])
    assert found[-1] == pytest.approx(expected, rel=1e-3)
    assert all(value <= expected * (1 + 1e-9) for value in found)
    assert found == pytest.approx(sorted(found), rel=1e-9)  # never worse than the one before


def test_products_that_are_not_finite_are_refused() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.w.square()).sum(1, keepdim=True).sqrt()

    model = Root()
    top = TopCurvature(model, nn.MSELoss(), 4, 0)
    top.vector = torch.ones(2)
    with pytest.raises(pb.UnsupportedError, match="derivatives that are finite numbers"):
        top.measure(torch.optim.SGD(model.parameters(), 0.1), torch.ones(3, 2), torch.zeros(3, 1))
