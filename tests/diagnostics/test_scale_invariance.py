"""Scale invariance, and the learning rates it makes: formulas against real optimisers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.diagnostics import equilibrium_norm, scale_invariance, scale_schedule
from tests.compare import assert_same

VALUES = json.loads((Path(__file__).parents[1] / "data" / "scale_invariance.json").read_text())
CE = nn.CrossEntropyLoss()


def normalised(kind: str) -> tuple[nn.Module, str, str]:
    """A network, its layer with invariant weights, and their prefix; epsilons as good as zero."""
    torch.manual_seed(0)
    first = nn.Linear(4, 6, bias=kind == "batch")
    if kind == "weight":
        first = nn.utils.parametrizations.weight_norm(first)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(6, 3)).double(), "0.parametrizations.weight", "original1"
    norm = nn.BatchNorm1d(6, eps=1e-14) if kind == "batch" else nn.LayerNorm(6, eps=1e-14)
    return nn.Sequential(first, norm, nn.Tanh(), nn.Linear(6, 3)).double(), "0", "weight"


def gradient(model: nn.Module, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.autograd.grad(CE(model(x), y), w)[0]


@pytest.mark.parametrize("kind", ["batch", "layer", "weight"])
def test_gradients_of_scaled_weights(kind: str) -> None:
    """S1-58: grad L(2.7 w) = grad L(w) / 2.7 and grad . w = 0, for batch, weight and layer norm."""
    model, layer, name = normalised(kind)
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.arange(16) % 3
    w = model.get_parameter(f"{layer}.{name}")
    before = gradient(model, w, x, y)
    assert abs(float((before * w).sum().detach())) < 1e-6 * float((before.norm() * w.norm()).detach())
    with torch.no_grad():
        w *= 2.7
    assert_same(2.7 * gradient(model, w, x, y), before, 1e-6)
    found = scale_invariance(model, x)
    assert found[layer] == (f"{layer}.{name}",)
    assert next(reversed(found.values())) == ()  # the outputs' own layer


def test_biases_scale_with_the_matrix_before_layer_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert scale_invariance(model, torch.randn(9, 4)) == {"0": ("0.weight", "0.bias"), "2": (), "4": ()}
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_batch_norm_s_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    before = model[1].running_mean.clone()
    assert scale_invariance(model, torch.randn(5, 1, 6, 6)) == {"0": ("0.weight",), "4": ()}
    assert torch.equal(model[1].running_mean, before)
    assert not model[1].training


@pytest.mark.parametrize("steps", [10, 100, 1000, 10_000])
def test_growth_of_scale_invariant_weights(steps: int) -> None:
    """S1-59: |w|^2 = 14.1784 after 1e4 steps of 0.1 at g = 1, the formula 14.1774; effective rate 7.053e-3."""
    known = VALUES["growth"][str(steps)]
    found = scale_schedule(0.1, 1.0, steps)
    assert float(found.square_norm[-1]) == pytest.approx(known["square_norm"], rel=1e-12)
    assert float(found.effective_rate[-1]) == pytest.approx(known["effective_rate"], rel=1e-12)
    formula = (1 + 2 * 0.01 * steps) ** 0.5
    assert formula == pytest.approx(known["formula"], rel=1e-12)
    assert float(found.square_norm[-1]) == pytest.approx(formula, rel=1e-3)


def turning(w: Tensor) -> Tensor:
    """A loss of the direction alone, with a tangential gradient of norm 1 / |w|: the angle in the plane."""
    return torch.atan2(w[1], w[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_schedule_is_that_of_gradient_descent(weight_decay: float) -> None:
    """S1-60: torch's SGD on a loss with |grad| = 1 / |w|; decay on the weights takes none of the gradient's length."""
    w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.1, weight_decay=weight_decay)
    squares = [1.0]
    for _ in range(3000):
        optimizer.zero_grad()
        turning(w).backward()
        optimizer.step()
        squares.append(float(w.detach().square().sum()))
    found = scale_schedule(0.1, 1.0, 3000, weight_decay=weight_decay)
    assert_same(found.square_norm, torch.tensor(squares, dtype=torch.float64), 1e-10)
    if weight_decay:
        assert squares[-1] == pytest.approx(2.23663, abs=1e-5)
        assert equilibrium_norm(0.1, weight_decay, 1.0) ** 2 == pytest.approx(squares[-1], rel=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_the_schedule_of_steps_that_forget_the_gradient_s_size(weight_decay: float) -> None:
    """S1-60: normalised steps of length lr, which is Adam's without momentum and with one second moment for all."""
    w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        slope = torch.autograd.grad(turning(w), w)[0]
        with torch.no_grad():
            w.mul_(1 - 0.1 * weight_decay).sub_(0.1 * slope / slope.norm())
    found = scale_schedule(0.1, 1.0, 3000, weight_decay=weight_decay, optimizer="adam")
    assert float(found.square_norm[-1]) == pytest.approx(float(w.detach().square().sum()), rel=1e-10)
    assert float(found.effective_rate[-1]) == pytest.approx(0.1 / float(w.detach().norm()), rel=1e-10)
    if weight_decay:
        assert equilibrium_norm(0.1, weight_decay, 1.0, optimizer="adam") == pytest.approx(float(w.detach().norm()))


def test_a_schedule_that_cannot_be_is_refused() -> None:
    with pytest.raises(pb.InputError, match="`optimizer` to be one of 'sgd', 'adam', got 'kfac'"):
        scale_schedule(0.1, 1.0, 5, optimizer="kfac")
    with pytest.raises(pb.InputError, match="`weight_decay` of at least 0, got -1"):
        scale_schedule(0.1, 1.0, 5, weight_decay=-1)
    with pytest.raises(pb.InputError, match="lr times weight_decay between 0 and 2, got 0"):
        equilibrium_norm(0.1, 0.0, 1.0)
