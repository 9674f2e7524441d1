"""Remedies that torch has, and what the monitor sees of them: clipping, decay, dropout, schedules. S0-33 to S0-35."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import pullback as pb
from pullback.modules import MLP

RATE = 0.5


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_clipping_by_norm_and_by_value() -> None:
    """S0-33: (3, 4) clipped to norm 1 is (0.6, 0.8), by value 0.5 it is (0.5, 0.5); below the limit nothing changes."""
    for clip, limit, expected in (
        (nn.utils.clip_grad_norm_, 1.0, [0.6, 0.8]),
        (nn.utils.clip_grad_value_, 0.5, [0.5, 0.5]),
        (nn.utils.clip_grad_norm_, 6.0, [3.0, 4.0]),
    ):
        w = parameter(0.0, 0.0)
        w.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
        clip([w], limit)
        assert w.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_monitor_sees_steps_that_were_clipped(tmp_path: Path) -> None:
    """A clipped step has the clip's length over |w|; the gradients that are measured are the loss's own."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(8, 3), 1e3 * torch.ones(8, 1)
    with pb.Monitor(model, nn.MSELoss(), tmp_path / "run", every=2, probes="light") as monitor:
        for _ in range(2):
            size = float(model.weight.detach().norm())
            optimizer.zero_grad()
            nn.MSELoss()(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            monitor.step(x, y)
    run = pb.load_run(tmp_path / "run")
    assert run.series("updates", "median")[1] == [pytest.approx(0.1 * 0.01 / size, rel=1e-3)]
    assert run.series("gradients", "mean_gradient_norm")[1][0] > 100


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_decay_of_weights_without_a_gradient(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """S0-34: one step multiplies w by 1 - lr decay, by the loss (SGD) or decoupled from it (AdamW)."""
    w = parameter(2.0, -3.0)
    optimizer = kind([w], lr=RATE, weight_decay=0.1)
    (0 * w.sum()).backward()
    optimizer.step()
    assert w.tolist() == pytest.approx([2.0 * 0.95, -3.0 * 0.95], rel=1e-12)


def test_decay_in_the_loss_is_rescaled_by_adam_and_decoupled_decay_is_not() -> None:
    """S0-34: where they differ. Adam's first step is lr times the sign of gradient plus decay, whatever the decay."""
    after = []
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        w = parameter(2.0)
        optimizer = kind([w], lr=RATE, weight_decay=0.1)
        (0 * w.sum()).backward()
        optimizer.step()
        after.append(float(w.detach()))
    assert after == pytest.approx([2.0 - RATE, 2.0 * 0.95], rel=1e-6)


def test_dropout_keeps_means_and_is_off_in_eval_mode() -> None:
    """S0-34."""
    torch.manual_seed(0)
    layer = MLP([3, 2000, 2], dropout=0.25).layers[0].dropout
    h = layer.train()(torch.ones(50, 2000))
    assert h.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(h.mean()) == pytest.approx(1, abs=4 * math.sqrt(1 / 3 / 100_000))
    assert bool((layer.eval()(torch.ones(5, 7)) == 1).all())


SCHEDULES: dict[str, tuple[Callable[[Any], Any], Callable[[int], float]]] = {
    "constant": (lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0), lambda t: 1.0),
    "step": (lambda o: lr_scheduler.StepLR(o, 10, gamma=0.1), lambda t: 0.1 ** (t // 10)),
    "1/t": (lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 50), lambda t: (1 + math.cos(math.pi * t / 50)) / 2),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_and_what_the_monitor_reads_of_them(tmp_path: Path, name: str) -> None:
    """S0-35: step with gamma 0.1 every 10 has lr 0.01 at t = 25; the limit of the curvature follows the rate."""
    make, factor = SCHEDULES[name]
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    schedule = make(optimizer)
    x, y = torch.randn(4, 2), torch.zeros(4, 1)
    with pb.Monitor(model, nn.MSELoss(), tmp_path / "run", optimizer=optimizer, probes=["sharpness"]) as monitor:
        for t in range(26):
            if t == 25:
                monitor.measure(x, y)
            optimizer.step()
            schedule.step()
    found = pb.load_run(tmp_path / "run").series("sharpness", "learning_rate")[1]
    assert found == [pytest.approx(RATE * factor(25), rel=1e-12)]
    assert pb.load_run(tmp_path / "run").series("sharpness", "limit")[1] == [pytest.approx(2 / found[0])]
    if name == "step":
        assert found[0] == pytest.approx(0.01 * RATE)
