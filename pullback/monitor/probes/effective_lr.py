"""Norms of the weights, and the rate at which those before a normalisation really learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pullback.diagnostics import equilibrium_norm, scale_invariance
from pullback.diagnostics.step_sizes import ADAM, Optimizers, StepGroup, step_groups
from pullback.functional import ModelView, num_samples, take, undisturbed
from pullback.functional.losses import per_sample_loss
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.initialisation import NORMALISES
from pullback.monitor.probes.work import Work

NUM_SAMPLES = 32  # on which invariance is looked for, until it is found


def measure(observed: Observation) -> Measurement:
    """By layer ``norm`` = |w| and whether w is scale-``invariant``; where it is, its ``effective`` rate.

    w are the invariant parameters, or the matrix of a layer without. The effective rate is lr / |w|^2, and lr / |w| for
    Adam; ``weight_decay`` is the optimiser's, by layer where its groups differ. ``equilibrium``, for plain SGD with
    decay: the |w| that decay would hold at the gradient of the measured samples. A layer whose w are in groups that
    differ, or have no rate that is a number, has neither.
    """
    view = ModelView.of(observed.model, where="effective_lr")
    groups = _invariant_groups(observed, view)
    shown = {layer: groups[layer] or _matrix(view, layer) for layer in groups}
    norms = {layer: _norm([view.parameters[name].detach() for name in names]) for layer, names in shown.items()}
    values: dict[str, Any] = {"norm": norms, "invariant": {layer: bool(names) for layer, names in groups.items()}}
    if observed.optimizer is None:
        return Measurement(values)
    steps = _steps_of(view, shown, observed.optimizer)
    decays = {layer: step.number("weight_decay") for layer, step in steps.items()}
    if decays:
        values["weight_decay"] = decays if len(set(decays.values())) > 1 else next(iter(decays.values()))
    invariant = {layer: names for layer, names in groups.items() if names and layer in steps and norms[layer] > 0}
    if invariant:
        values["effective"] = {layer: _effective(steps[layer], norms[layer]) for layer in invariant}
    held = {layer: names for layer, names in invariant.items() if _has_equilibrium(steps[layer])}
    if held:
        values["equilibrium"] = {
            layer: equilibrium_norm(steps[layer].rate, decays[layer], slope * norms[layer])
            for layer, slope in _gradient_norms(observed, view, held).items()
            if slope > 0
        }
    return Measurement(values)


def _invariant_groups(observed: Observation, view: ModelView) -> dict[str, tuple[str, ...]]:
    """As of ``scale_invariance``; found once, and again where parameters were frozen, released or replaced."""
    of, groups = observed.memory.get("effective_lr", (None, {}))
    if of != observed.parameters or (
        not any(groups.values()) and _normalises(view)
    ):  # small weights hide behind the norm's eps
        part = take(observed.x, slice(0, min(NUM_SAMPLES, num_samples(observed.x))))
        groups = scale_invariance(observed.model, part)
        observed.memory["effective_lr"] = observed.parameters, groups
    return groups


def _steps_of(view: ModelView, shown: dict[str, tuple[str, ...]], optimizer: Optimizers) -> dict[str, StepGroup]:
    """The group of each layer's parameters, where there is one rate, decay and kind of step for all of them."""
    group_of = {id(p): group for group in step_groups(optimizer, view.parameters.values()) for p in group.params}
    lengths = {}
    for layer, names in shown.items():
        steps = [group_of.get(id(view.parameters[name])) for name in names]
        marks = {
            None if step is None else (step.rate, step.number("weight_decay"), step.is_plain, type(step.optimizer))
            for step in steps
        }
        if len(marks) == 1 and steps[0] is not None and not math.isnan(steps[0].rate):
            lengths[layer] = steps[0]
    return lengths


def _effective(step: StepGroup, norm: float) -> float:
    return step.rate / norm ** (1 if isinstance(step.optimizer, ADAM) else 2)


def _has_equilibrium(step: StepGroup) -> bool:
    return step.is_plain and 0 < step.rate * step.number("weight_decay") < 2


def _normalises(view: ModelView) -> bool:
    return any(isinstance(module, NORMALISES) for module in view.model.modules())


def _matrix(view: ModelView, layer: str) -> tuple[str, ...]:
    return tuple(name for name in view.layers[layer] if view.parameters[name].dim() >= 2)


def _norm(parts: list[Tensor]) -> float:
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())


def _gradient_norms(observed: Observation, view: ModelView, groups: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """|grad| of the loss the optimiser descends in every group, batch norm with its own statistics."""
    with undisturbed(view.model, training=False):
        for module in view.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        with torch.enable_grad():
            loss = observed.scale * per_sample_loss(observed.loss_fn, view(observed.x), observed.y).mean()
            wanted = [view.parameters[name] for names in groups.values() for name in names]
            gradients = iter(torch.autograd.grad(loss, wanted))
    return {layer: _norm([next(gradients) for _ in names]) for layer, names in groups.items()}


def work(observed: Observation) -> Work:
    """While invariance is looked for two passes for every layer, later at most that of a gradient."""
    view = ModelView.of(observed.model, where="effective_lr")
    of, groups = observed.memory.get("effective_lr", (None, {}))
    if of == observed.parameters and (any(groups.values()) or not _normalises(view)):
        return Work(1.0)
    return Work(2.0 + 2 * len(view.layers), most=NUM_SAMPLES)


PROBE = Probe("effective_lr", measure, work=work)
