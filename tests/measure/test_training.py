"""What starting weights and batch norm change in training: counts of steps, and the largest rate that works."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pullback.functional import load_digits
from pullback.measure import smoothness
from pullback.modules import MLP

RATES = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8]


def steps_to(model: nn.Module, loss_fn: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float, goal: float) -> int:
    """Steps of gradient descent until the loss is at the goal; 400 if it never is."""
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(400):
        loss = loss_fn(model(x), y)
        if not math.isfinite(float(loss)):
            return 400
        if float(loss) <= goal:
            return step
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return 400


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "activation"), [(16, "linear"), (32, "linear"), (16, "tanh")])
def test_orthogonal_weights_train_in_fewer_steps(depth: int, activation: str) -> None:
    """S1-31: a deep chain at its critical point, the same rate and goal, two draws each; both counts are printed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 20, generator=generator, dtype=torch.float64)
    y = x @ torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    y = 0.3 * y
    for seed in (0, 1):
        counts = {}
        for init in ("orthogonal", "gaussian"):
            model = MLP([20] * (depth + 1), activation, init=init, sigma_w=1.0, seed=seed).double()
            counts[init] = steps_to(model, nn.MSELoss(), x, y, 0.05, 0.03)
        print(f"depth {depth}, {activation}: {counts}")
        assert counts["orthogonal"] < 400
        assert counts["orthogonal"] < 0.8 * counts["gaussian"]


def largest_rate(normalisation: str) -> float:
    """Largest of RATES at which 40 steps of descent on digits leave a finite loss below half of the first one."""
    digits = load_digits()
    x, y = digits.x_train[:400], digits.y_train[:400]
    works = 0.0
    for rate in RATES:
        model = MLP([64, 40, 40, 40, 10], "relu", normalisation=normalisation, init="he", seed=0)
        loss_fn, optimiser = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=rate)
        losses = []
        for _ in range(40):
            loss = loss_fn(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        if math.isfinite(losses[-1]) and max(losses[-5:]) < losses[0] / 2:
            works = rate
    return works


@pytest.mark.slow
def test_batch_norm_bears_larger_rates() -> None:
    """S1-37: the largest stable rate with and without, and the slope of the gradient along the step."""
    found = {norm: largest_rate(norm) for norm in ("none", "batch")}
    digits = load_digits()
    x, y = digits.x_train[:400], digits.y_train[:400]
    betas = {}
    for norm in found:
        model = MLP([64, 40, 40, 40, 10], "relu", normalisation=norm, init="he", seed=0)
        betas[norm] = smoothness(model, nn.CrossEntropyLoss(), x, y, RATES[:4]).effective_beta
    print(f"largest stable rate {found}, effective beta {betas}")
    assert found["batch"] >= 2 * found["none"] > 0
    assert all(0 < beta < math.inf for beta in betas.values())
