"""What the program does for each kind of ``Change``: one function a kind, from a set-up to a set-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.studies.remedies.data import prepare
from benchmarks.studies.remedies.setups import RECURRENT, TRANSFORMERS, Setup, task
from pullback.modules.activations import ACTIVATIONS

NAMED_RIGHTLY = 0.5  # of the samples a finding names: so many have to be faulty for a person to follow it


class NotPossibleError(Exception):
    """The set-up has no place for the change."""


def learning_rate(setup: Setup, factor: float) -> Setup:
    """Of a schedule that falls the factor is one on its highest rate, which is then held."""
    return replace(setup, rate=setup.rate * float(factor), ends=1.0)


def batch_size(setup: Setup, factor: float) -> Setup:
    count = len(prepare(setup).x)
    return replace(setup, batch_size=min(max(1, round(setup.batch_size * float(factor))), count))


def clip_norm(setup: Setup, norm: float) -> Setup:
    return replace(setup, clip=float(norm))


def warmup_steps(setup: Setup, steps: int) -> Setup:
    return replace(setup, warmup=min(steps, setup.steps))


def weight_decay(setup: Setup, factor: float) -> Setup:
    return replace(setup, weight_decay=setup.weight_decay * float(factor))


def initialisation(setup: Setup, scheme: str) -> Setup:
    if scheme not in ("critical", "he", "xavier"):
        raise NotPossibleError(f"initialisation {scheme!r}")
    return replace(setup, initialisation=scheme)


def activation(setup: Setup, name: str) -> Setup:
    if setup.kind == "GRU" or name not in ACTIVATIONS or (setup.kind == "RNN" and name not in ("relu", "tanh")):
        raise NotPossibleError(f"activation {name!r} in a {setup.kind}")
    return replace(setup, activation=name)


def normalisation(setup: Setup, name: str) -> Setup:
    if setup.kind in RECURRENT or (setup.kind in TRANSFORMERS and name != "layer") or name not in ("layer", "batch"):
        raise NotPossibleError(f"normalisation {name!r} in a {setup.kind}")
    return replace(setup, normalisation=name)


def residual(setup: Setup, value: Any) -> Setup:
    if setup.kind in RECURRENT:
        raise NotPossibleError(f"residual in a {setup.kind}")
    return replace(setup, residual=True)


def standardise_inputs(setup: Setup, value: Any) -> Setup:
    if task(setup) == "tokens":
        raise NotPossibleError("tokens have no scale")
    return replace(setup, inputs="standard")


def standardise_targets(setup: Setup, value: Any) -> Setup:
    if task(setup) == "inputs":  # which are the targets
        return replace(setup, inputs="standard")
    if task(setup) != "values":
        raise NotPossibleError("classes have no scale")
    return replace(setup, targets="standard")


def check_samples(setup: Setup, samples: tuple[int, ...]) -> Setup:
    """A person looks at the training samples that were named, and at all others of their kind if those are wrong."""
    faulty = prepare(setup).faulty
    named = torch.tensor(samples, dtype=torch.long)
    if len(named) == 0 or float(faulty[named].double().mean()) < NAMED_RIGHTLY:
        return setup
    return replace(setup, checked=True)


def balance_classes(setup: Setup, value: Any) -> Setup:
    if task(setup) != "classes":
        raise NotPossibleError(f"{task(setup)} have no classes")
    return replace(setup, adjusted=True)


def train_parameters(setup: Setup, names: tuple[str, ...]) -> Setup:
    return replace(setup, trained=tuple(sorted({*setup.trained, *names})))


def _set(field: str, to: Any, setup: Setup, value: Any) -> Setup:
    return replace(setup, **{field: to})


CHANGES: dict[str, Callable[[Setup, Any], Setup]] = {
    "learning_rate": learning_rate,
    "batch_size": batch_size,
    "clip_norm": clip_norm,
    "warmup_steps": warmup_steps,
    "weight_decay": weight_decay,
    "initialisation": initialisation,
    "activation": activation,
    "normalisation": normalisation,
    "residual": residual,
    "standardise_inputs": standardise_inputs,
    "standardise_targets": standardise_targets,
    "shuffle": partial(_set, "shuffled", True),
    "check_samples": check_samples,
    "balance_classes": balance_classes,
    "loss_from_logits": partial(_set, "probabilities", False),
    "zero_grad": partial(_set, "zero_grad", True),
    "train_parameters": train_parameters,
    "early_stopping": partial(_set, "early_stopping", True),
}


def carried_out(setup: Setup, kind: str, value: Any) -> Setup:
    """The set-up with the change.

    Raises:
        NotPossibleError: the set-up has no place for it.
        KeyError: a kind nobody knows.
    """
    return CHANGES[kind](setup, value)
