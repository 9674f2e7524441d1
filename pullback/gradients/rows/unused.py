"""Rows of parameters that the values asked for do not depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Form, Products, Tensors, Work
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.pieces import Piece


@dataclass(frozen=True)
class UnusedFactor(Factor):
    """Parameters the readout does not depend on: their gradients are zero."""

    shapes: dict[str, torch.Size]
    values: Tensor  # (N, C), any

    forms = ("unused",)
    is_zero = True

    @property
    def like(self) -> Tensor:
        return self.values

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return len(self.values)

    @property
    def num_outputs(self) -> int:
        return self.values.shape[1]

    def work(self, form: Form, asked: Products) -> Work:
        return Work()

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        return iter(())

    def rows(self, index: slice) -> Tensors:
        count = len(range(self.num_samples)[index])
        return {name: self.like.new_zeros(count, self.num_outputs, *shape) for name, shape in self.shapes.items()}

    def only(self, name: str) -> Factor:
        return UnusedFactor({name: self.shapes[name]}, self.values)

    def matvec(self, vectors: Tensors) -> Tensor:
        return torch.zeros_like(self.values)

    def rmatvec(self, weights: Tensor) -> Tensors:
        return {name: self.like.new_zeros(shape) for name, shape in self.shapes.items()}
