"""``Captured``: the gradient factors of a set of samples, which all that follows is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.functional import ModelView
from pullback.functional.model_view import layer_of
from pullback.functional.readout import combination
from pullback.gradients.capture.passes import Capture
from pullback.gradients.rows.factor import Factor

UNSEEN = ("vmap fallback", "unused")  # names of the rules whose parameters no recorded call holds


@dataclass(frozen=True)
class Captured:
    """Gradient factors of all parameters, each parameter in exactly one, and how they came about.

    Args:
        view: the parameters.
        factors: in the order of first use in the forward pass; unused and fallback parameters come last.
        rules: name of the rule of each factor.
        ordinary: gradient of the combination ``sum_ic u_c f_ic``, parameter -> shape, where it is not zero.
        probes: what is missing there, see ``Capture``.
        values: the readout, (N, C).
        outputs: what the model returned.
        first: capture of one sample alone.
        dtype: what the forward pass computed in, at its loosest; tolerances follow from it.
    """

    view: ModelView
    factors: tuple[Factor, ...]
    rules: tuple[str, ...]
    ordinary: dict[str, Tensor]
    probes: dict[str, Tensor]
    values: Tensor
    outputs: Any
    first: Capture
    dtype: torch.dtype

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.values)

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.values.shape[1]

    @property
    def combination(self) -> Tensor:
        """Weights u of the outputs in ``ordinary``, (C,)."""
        return combination(self.num_outputs, self.values)

    def forward_order(self) -> list[str]:
        """Layers in the order of first use; those whose use was not seen follow their predecessor in the model."""
        named = [(layer_of(n), r in UNSEEN) for f, r in zip(self.factors, self.rules, strict=True) for n in f.shapes]
        order = list(dict.fromkeys(layer for layer, unseen in named if not unseen))
        defined = list(self.view.layers)
        for place, layer in enumerate(defined):
            if layer not in order:
                order.insert(order.index(defined[place - 1]) + 1 if place else 0, layer)
        return order
