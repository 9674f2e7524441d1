"""A training run as a value: a healthy one for each architecture, which a fault changes in one place."""

from __future__ import annotations

import inspect
import json.decoder
import string
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import pullback as pb
from benchmarks.studies.pathologies.networks import CONTEXT, Transformer, conv_net
from pullback._rng import make_generator
from pullback.functional import load_digits
from pullback.modules import MLP

MEASUREMENTS = 12
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setup:
    """What a run is made of; everything a fault may replace."""

    kind: str  # "mlp", "conv", "transformer" or "rows"
    model: nn.Module
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    optimizer: Optimizer
    batch_size: int = 64
    steps: int = 240

    @property
    def loss_fn(self) -> nn.Module:
        return PerToken() if self.y.dim() > 1 else nn.CrossEntropyLoss()


class PerToken(nn.Module):
    """Mean cross-entropy of the tokens, with the samples' axis first."""

    reduction = "mean"
    least_loss = 0.0  # as that of CrossEntropyLoss, which says so by itself

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction=self.reduction)


def mlp(seed: int) -> Setup:
    """Digits, two hidden layers, He initialisation, Adam."""
    return _digits("mlp", seed, MLP([64, 64, 64, 10], init="he", seed=seed), adam(3e-3))


def conv(seed: int) -> Setup:
    """Digits, two convolutions, SGD with momentum."""
    torch.manual_seed(seed)
    return _digits("conv", seed, conv_net(), sgd(0.02, momentum=0.9))


def transformer(seed: int) -> Setup:
    """Characters of Python's own JSON decoder and text wrapper, Adam."""
    x, y = _source()
    torch.manual_seed(seed)
    order = torch.randperm(len(x), generator=make_generator(seed))
    train, test = order[: -len(x) // 5], order[-len(x) // 5 :]
    model = Transformer()
    return Setup("transformer", model, x[train], y[train], x[test], y[test], adam(3e-3), batch_size=32, steps=120)


def rows(seed: int) -> Setup:
    """The transformer over the rows of digits, for faults in classes and in inputs, which characters do not have."""
    torch.manual_seed(seed)
    return _digits("rows", seed, Transformer(rows=True), adam(3e-3))


ARCHITECTURES: dict[str, Callable[[int], Setup]] = {"mlp": mlp, "conv": conv, "transformer": transformer}


def adam(lr: float) -> Optimizer:
    return lambda params: torch.optim.Adam(params, lr)


def sgd(lr: float, momentum: float = 0.0) -> Optimizer:
    return lambda params: torch.optim.SGD(params, lr, momentum=momentum)


def watched(setup: Setup, folder: Path, seed: int) -> tuple[pb.Run, list[float]]:
    """Train, measure before the first step and a dozen times after; the record, and the losses the loop saw."""
    optimizer = setup.optimizer(list(setup.model.parameters()))
    generator = make_generator(seed)
    losses: list[float] = []
    with pb.Monitor(
        setup.model,
        setup.loss_fn,
        folder,
        optimizer=optimizer,
        every=max(1, setup.steps // MEASUREMENTS),
        probes="full",
        max_samples=64,
        budget=None,
    ) as monitor:
        for step in range(setup.steps):
            index = torch.randperm(len(setup.x), generator=generator)[: setup.batch_size]
            x, y = setup.x[index], setup.y[index]
            if step == 0:
                whole = _some(setup, generator)
                monitor.measure(setup.x[whole], setup.y[whole])
            setup.model.train()
            optimizer.zero_grad()
            loss = setup.loss_fn(setup.model(x), y)
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
            if not bool(loss.isfinite()):
                break
        whole = _some(setup, generator)
        monitor.measure(setup.x[whole], setup.y[whole], loss=loss)
        monitor.log("test", _held_out(setup))
    return pb.load_run(folder), losses


def _some(setup: Setup, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(setup.x), generator=generator)[:256]


def _held_out(setup: Setup) -> dict[str, float]:
    setup.model.eval()
    with torch.no_grad():
        outputs = setup.model(setup.x_test)
    right = (outputs.argmax(-1) == setup.y_test).float().mean()
    return {"loss": float(setup.loss_fn(outputs, setup.y_test)), "accuracy": float(right)}


def _digits(kind: str, seed: int, model: nn.Module, optimizer: Optimizer) -> Setup:
    data = load_digits(seed)
    flat = [x.flatten(1) if kind == "rows" else x for x in (data.x_train, data.x_test)]
    return Setup(kind, model, flat[0], data.y_train, flat[1], data.y_test, optimizer)


@cache
def _source() -> tuple[Tensor, Tensor]:
    text = "".join(c for c in inspect.getsource(json.decoder) + inspect.getsource(textwrap) if c in string.printable)
    tokens = torch.tensor([string.printable.index(c) for c in text])
    windows = tokens.unfold(0, CONTEXT + 1, CONTEXT // 2)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
