"""Smoothness along the gradient: closed forms of quadratics, and copies stepped by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback.measure import smoothness
from tests.compare import assert_same

SIZES = [0.01, 0.1, 0.4]


@given(features=st.integers(1, 6), samples=st.integers(1, 8))
def test_quadratics(features: int, samples: int) -> None:
    """Least squares has H = 2 X^T X / N: the gradient changes by eta H g, and beta is |H g| / |g| at every step."""
    model = nn.Linear(features, 1, bias=False).double()
    x, y = torch.randn(samples, features, dtype=torch.float64), torch.randn(samples, 1, dtype=torch.float64)
    found = smoothness(model, nn.MSELoss(), x, y, SIZES)
    H = 2 * x.T @ x / samples
    w = model.weight.detach()[0]
    g = H @ w - 2 * x.T @ y[:, 0] / samples
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    assert_same(found.gradient_changes, sizes * (H @ g).norm(), 1e-9)
    losses = torch.stack([(x @ (w - s * g) - y[:, 0]).square().mean() for s in SIZES])
    assert_same(found.losses, losses, 1e-9)
    assert found.gradient_norm == pytest.approx(float(g.norm()), rel=1e-9)
    assert found.effective_beta == pytest.approx(float((H @ g).norm() / g.norm()), rel=1e-8)
    assert found.effective_beta <= float(torch.linalg.eigvalsh(H)[-1]) * (1 + 1e-9)
    assert found.loss_range == (float(found.losses.min()), float(found.losses.max()))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_against_copies(norm: str) -> None:
    model = pb.modules.MLP([4, 6, 3], "tanh", normalisation=norm).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    loss_fn = nn.CrossEntropyLoss()
    found = smoothness(model, loss_fn, x, y, torch.tensor(SIZES))

    def at(rate: float) -> tuple[float, torch.Tensor]:
        moved = copy.deepcopy(model)
        moved.zero_grad()
        if rate:
            loss_fn(moved(x), y).backward()
            torch.optim.SGD(moved.parameters(), lr=rate).step()
            moved.zero_grad()
        loss = loss_fn(moved(x), y)
        loss.backward()
        return loss.item(), torch.cat([p.grad.reshape(-1) for p in moved.parameters()])

    loss, g = at(0.0)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    for i, rate in enumerate(torch.tensor(SIZES).tolist()):
        value, other = at(rate)
        assert float(found.losses[i]) == pytest.approx(value, rel=1e-10)
        assert float(found.gradient_changes[i]) == pytest.approx(float((other - g).norm()), rel=1e-8)
    least, most = found.gradient_range
    assert least == float(found.gradient_changes.min()) < most == float(found.gradient_changes.max())


def test_small_steps_see_the_hessian() -> None:
    """beta tends to |H g| / |g|, here with the Hessian operator's product."""
    model = pb.modules.MLP([3, 5, 2], "tanh").double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7,))
    g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(nn.CrossEntropyLoss()(model(x), y), model.parameters())])
    expected = float((pb.Hessian(model, nn.CrossEntropyLoss(), (x, y)) @ g).norm() / g.norm())
    assert smoothness(model, nn.CrossEntropyLoss(), x, y, [1e-5]).effective_beta == pytest.approx(expected, rel=1e-4)


def test_nothing_is_disturbed() -> None:
    model = pb.modules.MLP([3, 5, 2], normalisation="batch")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 0, 1, 0])
    smoothness(model, nn.CrossEntropyLoss(), x, y, [0.1])
    with pytest.raises(pb.InputError):
        smoothness(model, nn.CrossEntropyLoss(), x, y, [1e200])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


X, Y = torch.ones(2, 2), torch.ones(2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: smoothness(m, nn.MSELoss(), X, Y, []), r"smoothness: expected at least one step size, got none"),
        (lambda m: smoothness(m, nn.MSELoss(), X, Y, [0.1, 0]), r"smoothness: expected `step_sizes` above 0, got 0.0"),
        (
            lambda m: smoothness(m, nn.MSELoss(), X, m(X).detach(), [0.1]),
            r"smoothness: expected a gradient to step along, got zero. Move away from the stationary point",
        ),
        (lambda m: smoothness(m, nn.MSELoss(), X, Y, [1e30]), r"smoothness: expected a finite loss for every sample"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call(nn.Linear(2, 1))


def test_dropout_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 40), nn.Dropout(0.5), nn.Linear(40, 1))
    with pytest.raises(pb.UnsupportedError, match="a model that answers the same each time"):
        smoothness(model, nn.MSELoss(), X, Y, [0.1])


def test_printed() -> None:
    text = str(smoothness(nn.Linear(2, 1), nn.MSELoss(), X, Y, SIZES))
    assert text.startswith("3 steps of 0.01 to 0.4 times the gradient")
    assert "effective beta" in text
