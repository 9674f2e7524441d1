"""Internal covariate shift: how far a step of the layers before turns a layer's own gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pullback.diagnostics.step_sizes import ADAM, Optimizers, step_groups
from pullback.functional import ModelView, num_samples, take, undisturbed
from pullback.functional.unwrap import unwrap
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work

NUM_SAMPLES = 64  # a pass forward and back for every layer


def measure(observed: Observation) -> Measurement:
    """By layer the ``change`` |g - g'| / |g| and ``cosine`` of g and g', as of ``measure.internal_covariate_shift``.

    The step is one of gradient descent at the optimiser's rates, or with Adam a first step of Adam, every parameter at
    the rate of its group. Batch norm uses the batch's own statistics; dropout is off. Nothing without an optimiser, or
    where a rate is no number.
    """
    from pullback.measure import internal_covariate_shift  # loads SciPy with it

    step = None if observed.optimizer is None else _step(observed.model, observed.optimizer, observed.scale)
    if step is None:
        return Measurement({})
    part = slice(0, min(NUM_SAMPLES, num_samples(observed.x)))
    model = unwrap(observed.model)
    with undisturbed(model, training=False):
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        found = internal_covariate_shift(model, observed.loss_fn, take(observed.x, part), take(observed.y, part), step)
    rows = list(zip(found.layers, found.norm.tolist(), found.shift.tolist(), found.cosine.tolist(), strict=True))
    values: dict[str, Any] = {
        "change": {layer: shift / norm for layer, norm, shift, _ in rows if norm > 0},
        "cosine": {layer: cosine for layer, _, _, cosine in rows if not math.isnan(cosine)},
    }
    return Measurement(values)


def _step(
    model: nn.Module, optimizer: Optimizers, scale: float
) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None:
    """Every parameter at its own rate, 0 for what no group holds; None where one is not known.

    The loss descended is ``scale`` times the mean: plain steps are so much longer, Adam's first one is the same.
    """
    params = ModelView.of(model, where="shift").parameters
    groups = step_groups(optimizer, params.values())
    rate_of = {id(p): group.rate for group in groups for p in group.params}
    rates = [rate_of.get(id(p), 0.0) for p in params.values()]
    if any(map(math.isnan, rates)):
        return None
    adam = {id(p) for group in groups for p in group.params if isinstance(group.optimizer, ADAM)}
    kinds = [torch.optim.Adam if id(p) in adam else torch.optim.SGD for p in params.values()]
    rates = [rate * (scale if kind is torch.optim.SGD else 1) for kind, rate in zip(kinds, rates, strict=True)]
    return lambda moved: Together([k([p], lr=rate) for k, p, rate in zip(kinds, moved, rates, strict=True)])


class Together(torch.optim.Optimizer):
    """The steps of several optimisers as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.parts = parts

    def step(self, closure: Any = None) -> Any:
        """Of each."""
        for part in self.parts:
            part.step()


def work(observed: Observation) -> Work:
    """A pass for every layer and one for all, and what it takes to see in which order they run."""
    return Work(len(ModelView.of(observed.model, where="shift").layers) + 3.0, most=NUM_SAMPLES)


PROBE = Probe("shift", measure, sparse=True, work=work)
