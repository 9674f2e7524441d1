"""What starting weights and batch norm change in training: counts of steps, and the largest rate that works."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pullback.functional import load_digits
from pullback.measure import smoothness
from pullback.modules import MLP

RATES = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8]


def steps_to(model: nn.Module, x: Tensor, y: Tensor, rate: float, goal: float) -> int:
    """Steps of gradient descent until the loss is at the goal; 400 if it never is."""
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(400):
        loss = nn.CrossEntropyLoss()(model(x), y)
        if loss.item() <= goal:
            return step
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return 400


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "activation", "rate"), [(16, "linear", 0.02), (32, "linear", 0.02), (16, "tanh", 0.1)]
)
def test_orthogonal_weights_train_in_fewer_steps(depth: int, activation: str, rate: float) -> None:
    """S1-31: a deep chain at its critical point (1, 0), the same rate and goal; both counts are printed (-s)."""
    digits = load_digits()
    x, y = digits.x_train[:100].flatten(1), digits.y_train[:100]
    for seed in (0, 1):
        counts = {}
        for init in ("orthogonal", "gaussian"):
            model = MLP([64, *[30] * (depth - 1), 10], activation, init=init, seed=seed)
            counts[init] = steps_to(model, x, y, rate, 0.5)
        print(f"{activation}, depth {depth}, seed {seed}: {counts}")
        assert counts["orthogonal"] < 0.8 * counts["gaussian"]


def largest_rate(normalisation: str) -> float:
    """Largest of RATES at which 40 steps of descent on digits leave a finite loss below half of the first one."""
    digits = load_digits()
    x, y = digits.x_train[:200].flatten(1), digits.y_train[:200]
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
            losses.append(loss.item())
        if math.isfinite(losses[-1]) and max(losses[-5:]) < losses[0] / 2:
            works = rate
    return works


@pytest.mark.slow
def test_batch_norm_bears_larger_rates() -> None:
    """S1-37: the largest stable rate with and without, and the slope of the gradient along the step."""
    found = {norm: largest_rate(norm) for norm in ("none", "batch")}
    digits = load_digits()
    x, y = digits.x_train[:200].flatten(1), digits.y_train[:200]
    betas = {}
    for norm in found:
        model = MLP([64, 40, 40, 40, 10], "relu", normalisation=norm, init="he", seed=0)
        betas[norm] = smoothness(model, nn.CrossEntropyLoss(), x, y, RATES[:4]).effective_beta
    print(f"largest stable rate {found}, effective beta {betas}")
    assert found["batch"] >= 2 * found["none"] > 0
    assert 0 < betas["batch"] < betas["none"]
