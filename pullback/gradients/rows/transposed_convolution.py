"""Rows of a transposed convolution: outer products whose weight has inputs and outputs in the other order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pullback.gradients.rows.outer import OuterFactor


@dataclass(frozen=True)
class TransposedConvFactor(OuterFactor):
    """Rows of a transposed convolution's weight, whose numbers are ordered (g, d, p); p runs over outputs and taps."""

    def as_weight(self, block: Tensor) -> Tensor:
        return block.transpose(-1, -2).reshape(*block.shape[:2], *self.weight_shape)

    def from_weight(self, weight: Tensor) -> Tensor:
        _, g, d, p = self.dims
        return weight.reshape(g, d, p).transpose(1, 2)
