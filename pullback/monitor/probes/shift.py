"""Internal covariate shift: how far a step of the layers before turns a layer's own gradient."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from pullback.diagnostics.preconditioned import ADAM
from pullback.functional import num_samples, take, undisturbed
from pullback.functional.unwrap import unwrap
from pullback.monitor.probes.base import Measurement, Observation, Probe

NUM_SAMPLES = 64  # a pass forward and back for every layer


def measure(seen: Observation) -> Measurement:
    """By layer the ``change`` |g - g'| / |g| and ``cosine`` of g and g', as of ``measure.internal_covariate_shift``.

    The step is one of gradient descent at the optimiser's rate, or with Adam a first step of Adam. Batch norm uses the
    batch's own statistics; dropout is off. Nothing without an optimiser.
    """
    from pullback.measure import internal_covariate_shift  # loads SciPy with it

    if seen.optimizer is None:
        return Measurement({})
    rate = float(seen.optimizer.param_groups[0]["lr"])
    step = partial(torch.optim.Adam, lr=rate) if isinstance(seen.optimizer, ADAM) else rate
    part = slice(0, min(NUM_SAMPLES, num_samples(seen.x)))
    model = unwrap(seen.model)
    with undisturbed(model, training=False):
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        found = internal_covariate_shift(model, seen.loss_fn, take(seen.x, part), take(seen.y, part), step)
    rows = list(zip(found.layers, found.norm.tolist(), found.shift.tolist(), found.cosine.tolist(), strict=True))
    values: dict[str, Any] = {
        "change": {layer: shift / norm for layer, norm, shift, _ in rows if norm > 0},
        "cosine": {layer: cosine for layer, _, _, cosine in rows if not math.isnan(cosine)},
    }
    return Measurement(values)


PROBE = Probe("shift", measure, sparse=True)
