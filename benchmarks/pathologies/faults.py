"""Planted faults: what is changed in a healthy setup, and the findings that name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.pathologies.setups import ARCHITECTURES, Setup, adam, sgd
from pullback._rng import make_generator
from pullback.modules import MLP

ANY = tuple(ARCHITECTURES)
DIGITS = ("mlp", "conv")


@dataclass(frozen=True)
class Fault:
    """A change of a setup, by seed; one of ``names`` is the right answer."""

    plant: Callable[[Setup, int], Setup]
    names: tuple[str, ...]
    architectures: tuple[str, ...] = ("mlp",)
    evidence: str | None = None  # this number of the finding has to be a percent of the samples or more


def _scaled(setup: Setup, factor: float) -> Setup:
    with torch.no_grad():
        for p in setup.model.parameters():
            if p.dim() > 1:
                p.mul_(factor)
    return setup


def _biased(setup: Setup, bias: float) -> Setup:
    first = next(m for m in setup.model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
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


def _deep(seed: int, activation: str, sigma_w: float, depth: int, **options: str) -> MLP:
    sizes = [64, *[64] * depth, 10]
    return MLP(sizes, activation, init="gaussian", sigma_w=sigma_w, seed=seed, **options)  # type: ignore[arg-type]


# A rate that kills the units before the first measurement leaves only dead units to see, whose remedy is a lower rate.
FAULTS: dict[str, Fault] = {
    "rate thirty times too high": Fault(
        lambda s, _: replace(s, optimizer=sgd(3.0)), ("learning-rate-too-high", "divergence", "dead-units"), DIGITS
    ),
    "rate beyond all bounds": Fault(lambda s, _: replace(s, optimizer=sgd(1e3)), ("divergence",), ANY),
    "rate a thousandth": Fault(lambda s, _: replace(s, optimizer=adam(3e-6)), ("learning-rate-too-low",), ANY),
    "rate of gradient descent a thousandth": Fault(
        lambda s, _: replace(s, optimizer=sgd(1e-4)), ("learning-rate-too-low",), ANY
    ),
    "deep sigmoid network": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "sigmoid", 1.0, 8), optimizer=sgd(0.1)), ("vanishing-gradients",)
    ),
    "ordered tanh network": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "tanh", 0.6, 16), optimizer=sgd(0.1)),
        ("ordered-initialisation",),
    ),
    "chaotic tanh network": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "tanh", 3.0, 16), optimizer=sgd(0.1)),
        ("chaotic-initialisation",),
    ),
    "large weights, deep": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "tanh", 3.0, 16), optimizer=sgd(1e-3)), ("exploding-gradients",)
    ),
    "saturated tanh": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "tanh", 20.0, 3), optimizer=sgd(0.01)), ("saturated-units",)
    ),
    "units off from the start": Fault(lambda s, _: _biased(s, -20.0), ("dead-units",), DIGITS),
    "narrowing to one direction": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "relu", 1.0, 24), optimizer=sgd(0.1)), ("rank-collapse",)
    ),
    "a tenth of the labels wrong": Fault(lambda s, seed: _labels(s, 0.1, seed), ("suspect-samples",), DIGITS, "labels"),
    "copies in the data": Fault(lambda s, seed: _copies(s, seed), ("suspect-samples",), DIGITS, "duplicates"),
    "random labels, few samples": Fault(
        lambda s, seed: replace(_labels(s, 1.0, seed, samples=64), steps=480), ("memorisation",), DIGITS
    ),
    "inputs in hundreds": Fault(
        lambda s, _: replace(s, x=200 * s.x + 300, x_test=200 * s.x_test + 300), ("inputs-not-normalised",), DIGITS
    ),
    "inputs far from zero": Fault(
        lambda s, _: replace(s, x=s.x + 50, x_test=s.x_test + 50), ("inputs-not-normalised",), DIGITS
    ),
    "batch norm over four": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "relu", 1.4, 2, normalisation="batch"), batch_size=4),
        ("batch-norm-batch-too-small",),
    ),
    "two samples a batch": Fault(
        lambda s, _: replace(s, batch_size=2, optimizer=adam(1e-2)), ("batch-too-small",), ANY
    ),
    "growing weights before batch norm": Fault(
        lambda s, seed: replace(s, model=_deep(seed, "relu", 0.1, 2, normalisation="batch"), optimizer=sgd(2.0)),
        ("effective-rate-decay",),
    ),
    "every picture with two labels": Fault(
        lambda s, seed: replace(s, x=s.x[:1].expand(len(s.x), *s.x.shape[1:]), y=s.y % 2),
        ("conflicting-gradients",),
        DIGITS,
    ),
    "tiny weights": Fault(
        lambda s, _: replace(_biased(_scaled(s, 1e-3), 0.0), optimizer=sgd(0.1)), ("saddle-plateau",), ("mlp",)
    ),
}


HEALTHY: dict[str, Callable[[Setup, int], Setup]] = {
    "as it is": lambda s, _: s,
    "half the rate": lambda s, _: replace(s, steps=2 * s.steps, optimizer=adam(1.5e-3)),
    "twice the batch": lambda s, _: replace(s, batch_size=2 * s.batch_size),
    "AdamW": lambda s, _: replace(s, optimizer=lambda p: torch.optim.AdamW(p, 3e-3)),
    "momentum": lambda s, _: replace(s, optimizer=sgd(0.05, momentum=0.9)),
}
