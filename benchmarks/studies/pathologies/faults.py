"""Planted faults: what is changed in a healthy setup, and the findings that name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.studies.pathologies.networks import Transformer, deep, with_batch_norm
from benchmarks.studies.pathologies.setups import Setup, adam, sgd
from pullback._rng import make_generator
from pullback.modules import initialise_weights

ABOVE = {"mlp": 1.5, "conv": 2.0, "transformer": 1.0}  # a few times 2 / curvature at the start


@dataclass(frozen=True)
class Fault:
    """A change of a setup, by seed; one of ``names`` is the right answer.

    ``classes``: it is one of inputs or of classes, so the transformer gets the rows of digits. ``evidence``: this
    number of the finding has to be a percent of the samples or more. ``diverges``: the loss may show it, later.
    ``only``: the architecture it is planted in, where others have no place for it.
    """

    plant: Callable[[Setup, int], Setup]
    names: tuple[str, ...]
    classes: bool = False
    evidence: str | None = None
    diverges: bool = False
    only: str | None = None


def _scaled(setup: Setup, factor: float) -> Setup:
    with torch.no_grad():
        for p in setup.model.parameters():
            if p.dim() > 1:
                p.mul_(factor)
    return setup


def _sharp(setup: Setup, factor: float) -> Setup:
    """Queries and keys too large, so that each token looks at one."""
    with torch.no_grad():
        for attention in setup.model.attention:
            queries_and_keys = len(attention.in_proj_weight) * 2 // 3
            attention.in_proj_weight[:queries_and_keys] *= factor
    return setup


def _biased(setup: Setup, bias: float) -> Setup:
    model = setup.model
    within = model.feed if isinstance(model, Transformer) else model  # where an activation follows
    first = next(m for m in within.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        first.bias.fill_(bias)
    return setup


def _labels(setup: Setup, share: float, seed: int, samples: int | None = None) -> Setup:
    """A share of the labels is drawn anew."""
    generator = make_generator(seed + 1)
    y = setup.y[:samples].clone()
    wrong = torch.rand(y.shape, generator=generator) < share
    y[wrong] = torch.randint(int(y.max()) + 1, y.shape, generator=generator)[wrong]
    return replace(setup, x=setup.x[:samples], y=y)


def _copies(setup: Setup, seed: int) -> Setup:
    """A third of the samples are copies of a few others."""
    index = torch.arange(len(setup.x))
    index[::3] = index[::3] % 4
    return replace(setup, x=setup.x[index], y=setup.y[index])


def _small_before_norm(setup: Setup) -> Setup:
    """The layers before a batch norm start small, and grow."""
    modules = list(setup.model.modules())
    for layer, after in pairwise(m for m in modules if not list(m.children())):
        if isinstance(after, nn.BatchNorm1d) and isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(0.1)
    return setup


def _outliers(setup: Setup, seed: int) -> Setup:
    """One sample in twenty is a hundred times too large."""
    drawn = torch.rand(len(setup.x), generator=make_generator(seed + 2)) < 0.05
    factor = torch.where(drawn, 100.0, 1.0).view(-1, *[1] * (setup.x.dim() - 1))
    return replace(setup, x=setup.x * factor)


def _deep(setup: Setup, seed: int, activation: str, sigma_w: float, depth: int, lr: float) -> Setup:
    return replace(setup, model=deep(setup.kind, activation, sigma_w, depth, seed), optimizer=sgd(lr))


def _batch_norm(setup: Setup, seed: int, **options: Any) -> Setup:
    return replace(setup, model=with_batch_norm(setup.kind, seed), **options)


TOO_HIGH = ("learning-rate-too-high", "divergence")
FAULTS: dict[str, Fault] = {
    "rate above the limit": Fault(lambda s, _: replace(s, optimizer=sgd(ABOVE[s.kind])), TOO_HIGH, diverges=True),
    "rate thirty times too high": Fault(lambda s, _: replace(s, optimizer=sgd(3.0)), TOO_HIGH, diverges=True),
    "rate beyond all bounds": Fault(lambda s, _: replace(s, optimizer=sgd(1e3)), TOO_HIGH, diverges=True),
    "rate too high for momentum": Fault(
        lambda s, _: replace(s, optimizer=sgd(3.0, momentum=0.9)), TOO_HIGH, diverges=True
    ),
    "rate a thousandth": Fault(lambda s, _: replace(s, optimizer=adam(3e-6)), ("learning-rate-too-low",)),
    "rate of gradient descent a thousandth": Fault(
        lambda s, _: replace(s, optimizer=sgd(1e-4)), ("learning-rate-too-low",)
    ),
    "deep sigmoid network": Fault(lambda s, seed: _deep(s, seed, "sigmoid", 1.0, 8, 0.1), ("vanishing-gradients",)),
    "ordered tanh network": Fault(lambda s, seed: _deep(s, seed, "tanh", 0.6, 16, 0.1), ("ordered-initialisation",)),
    "chaotic tanh network": Fault(lambda s, seed: _deep(s, seed, "tanh", 3.0, 16, 0.1), ("chaotic-initialisation",)),
    "large weights, deep": Fault(lambda s, seed: _deep(s, seed, "tanh", 3.0, 16, 1e-3), ("exploding-gradients",)),
    "saturated tanh": Fault(lambda s, seed: _deep(s, seed, "tanh", 20.0, 3, 0.01), ("saturated-units",)),
    "units off from the start": Fault(lambda s, _: _biased(s, -20.0), ("dead-units",)),
    "narrowing to one direction": Fault(lambda s, seed: _deep(s, seed, "relu", 1.0, 24, 0.1), ("rank-collapse",)),
    "a tenth of the labels wrong": Fault(
        lambda s, seed: _labels(s, 0.1, seed), ("suspect-samples",), classes=True, evidence="labels"
    ),
    "copies in the data": Fault(lambda s, seed: _copies(s, seed), ("duplicates",), evidence="duplicates"),
    "samples a hundred times too large": Fault(
        lambda s, seed: _outliers(s, seed), ("suspect-samples",), classes=True, evidence="outliers"
    ),
    "random labels, few samples": Fault(
        lambda s, seed: replace(_labels(s, 1.0, seed, samples=64), steps=480), ("memorisation",), classes=True
    ),
    "inputs in hundreds": Fault(
        lambda s, _: replace(s, x=200 * s.x + 300, x_test=200 * s.x_test + 300),
        ("inputs-not-normalised",),
        classes=True,
    ),
    "inputs far from zero": Fault(
        lambda s, _: replace(s, x=s.x + 50, x_test=s.x_test + 50), ("inputs-not-normalised",), classes=True
    ),
    "batch norm over four": Fault(
        lambda s, seed: _batch_norm(s, seed, batch_size=4), ("batch-norm-batch-too-small",), classes=True
    ),
    "one sample a batch": Fault(
        lambda s, _: replace(s, batch_size=1, optimizer=adam(1e-2)), ("batch-too-small",), classes=True
    ),
    "growing weights before batch norm": Fault(
        lambda s, seed: _small_before_norm(_batch_norm(s, seed, optimizer=sgd(2.0))),
        ("effective-rate-decay",),
        classes=True,
    ),
    "every picture with two labels": Fault(
        lambda s, seed: replace(s, x=s.x[:1].expand(len(s.x), *s.x.shape[1:]), y=s.y % 2),
        ("conflicting-gradients",),
        classes=True,
    ),
    "tiny weights": Fault(
        lambda s, _: replace(_biased(_scaled(s, 1e-3), 0.0), optimizer=sgd(0.1)), ("saddle-plateau",), classes=True
    ),
    "queries and keys thirty times too large": Fault(
        lambda s, _: _sharp(s, 30.0), ("rank-collapse",), only="transformer"
    ),
}


HEALTHY: dict[str, Callable[[Setup, int], Setup]] = {
    "as it is": lambda s, _: s,
    "half the rate": lambda s, _: replace(s, steps=2 * s.steps, optimizer=adam(1.5e-3)),
    "twice the batch": lambda s, _: replace(s, batch_size=2 * s.batch_size),
    "half the batch": lambda s, _: replace(s, batch_size=s.batch_size // 2),
    "AdamW": lambda s, _: replace(s, optimizer=lambda p: torch.optim.AdamW(p, 3e-3)),
    "momentum": lambda s, _: replace(s, optimizer=sgd(0.05, momentum=0.9)),
    "gradient descent": lambda s, _: replace(s, optimizer=sgd(0.2 if s.kind == "transformer" else 0.1)),
    "other weights": lambda s, seed: replace(s, model=initialise_weights(s.model, "xavier", seed=seed + 10)),
}
