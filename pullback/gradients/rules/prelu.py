"""PReLU: ``y = max(x, 0) + w min(x, 0)``, so the rows are ``sum over positions of D * min(x, 0)``."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor
from pullback.gradients.rules.registry import Call, Rule, add_rule


def _prelu(call: Call) -> DenseFactor:
    weight: Tensor = call.arguments["weight"]
    below = full_precision(call.samples(call.arguments["input"])).clamp(max=0)  # (N, *shape for a batch of one)
    rows = full_precision(call.gradient) * below.unsqueeze(1)  # (N, C, *shape for a batch of one)
    # One slope for everything, or one a channel; channels are axis 1 of what the function is given.
    axes = [axis for axis in range(2, rows.dim()) if weight.numel() == 1 or axis != 3]
    return DenseFactor({call.names["weight"]: rows.sum(axes).reshape(*rows.shape[:2], *weight.shape)})


add_rule(torch.prelu, Rule("prelu", ("input", "weight"), ("weight",), "input", _prelu))
