"""The demo's training loop, watched or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pullback._checks import check_option, check_positive
from pullback._rng import make_generator
from pullback.controllers import CurvatureLR
from pullback.functional import Dataset
from pullback.monitor import Monitor

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "momentum": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def make_optimizer(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """An optimizer by name."""
    check_option("demo", "--optimizer", name, tuple(OPTIMIZERS))
    check_positive("demo", "--lr", lr)
    return OPTIMIZERS[name](model.parameters(), lr=lr)


def make_controller(
    name: str, optimizer: torch.optim.Optimizer, model: nn.Module, loss_fn: nn.Module
) -> CurvatureLR | None:
    """A controller by name, None for "none"."""
    check_option("demo", "--controller", name, ("none", "curvature"))
    return None if name == "none" else CurvatureLR(optimizer, model, loss_fn, target=0.7)  # deep: see docs/limits.md


@dataclass(frozen=True)
class Epochs:
    """How often the data are gone through, how many samples a step, and the seed of their order."""

    count: int
    batch_size: int
    seed: int


def train(
    model: nn.Module,
    loss_fn: nn.Module,
    data: Dataset,
    optimizer: torch.optim.Optimizer,
    epochs: Epochs,
    *,
    monitor: Monitor | None,
    controller: CurvatureLR | None = None,
) -> Iterator[tuple[int, float]]:
    """Train epoch by epoch: its number and the mean of its batch losses, the last one where that is not finite."""
    generator = make_generator(epochs.seed)
    for epoch in range(1, epochs.count + 1):
        model.train()
        running = 0.0
        for x, y in data.batches(epochs.batch_size, generator):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            if controller is not None and math.isfinite(loss.item()):
                controller.step(x, y, loss)
            optimizer.step()
            running += loss.item()
            if monitor is not None:
                monitor.step(x, y, loss=loss)
        mean = running / data.num_batches(epochs.batch_size)
        test_loss, accuracy = evaluate(model, loss_fn, data)
        if monitor is not None:
            values = {"epoch": epoch, "train_loss": mean, "test_loss": test_loss, "test_accuracy": accuracy}
            monitor.log("epoch", values)
        yield epoch, mean
        if not math.isfinite(mean):
            break
    if monitor is not None:
        monitor.measure(x, y, loss=loss)  # the end is always measured, so that what is printed does not hang on time


def evaluate(model: nn.Module, loss_fn: nn.Module, data: Dataset) -> tuple[float, float]:
    """Mean loss and share of right answers on the test samples."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(data.x_test)
    model.train(training)
    right = (outputs.argmax(1) == data.y_test).float().mean()
    return float(loss_fn(outputs, data.y_test)), float(right)
