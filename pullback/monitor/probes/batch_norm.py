"""How many values batch norm's statistics are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.functional import ModelView, num_samples, take
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work


def measure(observed: Observation) -> Measurement:
    """``batch_size`` and, for every batch norm that uses the batch's own statistics, the ``smallest_count`` of values.

    A channel's statistics over a batch of B are made of B values a position. Nothing for models without batch norm.
    """
    view = ModelView.of(observed.model, where="batch_norm")
    norms = {name: m for name, m in view.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not norms:
        return Measurement({})
    batch = num_samples(observed.x) if observed.batch_size is None else observed.batch_size
    counts: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        count = batch * (x[0].numel() // x.shape[1])
        counts[name] = min(count, counts.get(name, count))

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: note(name, args[0]))
        for name, module in norms.items()
    ]
    try:
        with torch.no_grad():
            view(take(observed.x, slice(0, 1)))  # shapes are all that is wanted
    finally:
        for hook in hooks:
            hook.remove()
    values: dict[str, Any] = {"batch_size": batch, "smallest_count": counts}
    return Measurement(values)


PROBE = Probe("batch_norm", measure, sparse=True, work=Work(fixed=0.5))
