"""Norms of the weights, and the rate at which those before a normalisation really learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.diagnostics import equilibrium_norm, scale_invariance
from pullback.diagnostics.preconditioned import ADAM
from pullback.functional import ModelView, num_samples, take, undisturbed
from pullback.functional.losses import per_sample_loss
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.initialisation import NORMALISES

NUM_SAMPLES = 32  # on which invariance is looked for, until it is found


def measure(seen: Observation) -> Measurement:
    """By layer ``norm`` = |w| and whether w is scale-``invariant``; where it is, its ``effective`` rate.

    w are the invariant parameters, or the matrix of a layer without. The effective rate is lr / |w|^2, and lr / |w| for
    Adam; ``weight_decay`` is the optimiser's. ``equilibrium``, for plain SGD with decay: the |w| that decay would hold
    at the gradient of the measured samples.
    """
    view = ModelView.of(seen.model, where="effective_lr")
    groups = seen.memory.get("effective_lr")
    if groups is None or (not any(groups.values()) and _normalises(view)):  # small weights hide behind the norm's eps
        part = take(seen.x, slice(0, min(NUM_SAMPLES, num_samples(seen.x))))
        groups = seen.memory["effective_lr"] = scale_invariance(seen.model, part)
    shown = {layer: groups[layer] or _matrix(view, layer) for layer in groups}
    norms = {layer: _norm([view.parameters[name].detach() for name in names]) for layer, names in shown.items()}
    values: dict[str, Any] = {"norm": norms, "invariant": {layer: bool(names) for layer, names in groups.items()}}
    invariant = {layer: names for layer, names in groups.items() if names and norms[layer] > 0}
    if seen.optimizer is not None:
        group = seen.optimizer.param_groups[0]
        rate, decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
        power = 1 if isinstance(seen.optimizer, ADAM) else 2
        values["weight_decay"] = decay
        if invariant:
            values["effective"] = {layer: rate / norms[layer] ** power for layer in invariant}
        plain = isinstance(seen.optimizer, torch.optim.SGD) and group["momentum"] == 0
        if plain and invariant and 0 < rate * decay < 2:
            slopes = _gradient_norms(seen, view, invariant)
            values["equilibrium"] = {
                layer: equilibrium_norm(rate, decay, slope * norms[layer])
                for layer, slope in slopes.items()
                if slope > 0
            }
    return Measurement(values)


def _normalises(view: ModelView) -> bool:
    return any(isinstance(module, NORMALISES) for module in view.model.modules())


def _matrix(view: ModelView, layer: str) -> tuple[str, ...]:
    return tuple(name for name in view.layers[layer] if view.parameters[name].dim() >= 2)


def _norm(parts: list[Tensor]) -> float:
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())


def _gradient_norms(seen: Observation, view: ModelView, groups: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """|grad| of the mean loss in every group, batch norm with the batch's statistics as in training."""
    with undisturbed(view.model, training=False):
        for module in view.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        with torch.enable_grad():
            loss = per_sample_loss(seen.loss_fn, view(seen.x), seen.y).mean()
            wanted = [view.parameters[name] for names in groups.values() for name in names]
            gradients = iter(torch.autograd.grad(loss, wanted))
    return {layer: _norm([next(gradients) for _ in names]) for layer, names in groups.items()}


PROBE = Probe("effective_lr", measure)
