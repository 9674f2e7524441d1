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
from pullback._rng import make_generator
from pullback.functional import load_digits
from pullback.modules import MLP

CONTEXT = 32  # characters the transformer sees
MEASUREMENTS = 12
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setup:
    """What a run is made of; everything a fault may replace."""

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

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction=self.reduction)


class Transformer(nn.Module):
    """Two pre-norm blocks over characters."""

    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(0.1 * torch.randn(CONTEXT, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions
        for place, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            z = self.norms[2 * place](h)
            h = h + attention(z, z, z, attn_mask=self.mask, need_weights=False)[0]
            h = h + feed(self.norms[2 * place + 1](h))
        return self.head(h)


def mlp(seed: int) -> Setup:
    """Digits, two hidden layers, He initialisation, Adam."""
    return _digits(seed, MLP([64, 64, 64, 10], init="he", seed=seed), adam(3e-3))


def conv(seed: int) -> Setup:
    """Digits, two convolutions, SGD with momentum."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return _digits(seed, model, sgd(0.02, momentum=0.9))


def transformer(seed: int) -> Setup:
    """Characters of Python's own JSON decoder and text wrapper, Adam."""
    x, y = _source()
    torch.manual_seed(seed)
    order = torch.randperm(len(x), generator=make_generator(seed))
    train, test = order[: -len(x) // 5], order[-len(x) // 5 :]
    model = Transformer(len(string.printable))
    return Setup(model, x[train], y[train], x[test], y[test], adam(3e-3), batch_size=32, steps=120)


ARCHITECTURES: dict[str, Callable[[int], Setup]] = {"mlp": mlp, "conv": conv, "transformer": transformer}


def adam(lr: float) -> Optimizer:
    return lambda params: torch.optim.Adam(params, lr)


def sgd(lr: float, momentum: float = 0.0) -> Optimizer:
    return lambda params: torch.optim.SGD(params, lr, momentum=momentum)


def watched(setup: Setup, folder: Path, seed: int) -> pb.Run:
    """Train, measure a dozen times, and read the record."""
    optimizer = setup.optimizer(list(setup.model.parameters()))
    generator = make_generator(seed)
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
        for _ in range(setup.steps):
            index = torch.randperm(len(setup.x), generator=generator)[: setup.batch_size]
            x, y = setup.x[index], setup.y[index]
            setup.model.train()
            optimizer.zero_grad()
            loss = setup.loss_fn(setup.model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
            if not bool(loss.isfinite()):
                break
        whole = torch.randperm(len(setup.x), generator=generator)[:256]
        monitor.measure(setup.x[whole], setup.y[whole], loss=loss)
        monitor.log("test", _held_out(setup))
    return pb.load_run(folder)


def _held_out(setup: Setup) -> dict[str, float]:
    setup.model.eval()
    with torch.no_grad():
        outputs = setup.model(setup.x_test)
    right = (outputs.argmax(-1) == setup.y_test).float().mean()
    return {"loss": float(setup.loss_fn(outputs, setup.y_test)), "accuracy": float(right)}


def _digits(seed: int, model: nn.Module, optimizer: Optimizer) -> Setup:
    data = load_digits(seed)
    return Setup(model, data.x_train, data.y_train, data.x_test, data.y_test, optimizer)


@cache
def _source() -> tuple[Tensor, Tensor]:
    text = "".join(c for c in inspect.getsource(json.decoder) + inspect.getsource(textwrap) if c in string.printable)
    tokens = torch.tensor([string.printable.index(c) for c in text])
    windows = tokens.unfold(0, CONTEXT + 1, CONTEXT // 2)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
