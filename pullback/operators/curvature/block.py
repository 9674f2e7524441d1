"""``Block``: the part of a curvature matrix between two groups of parameters."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pullback.functional import ModelView
from pullback.operators.operator import Operator


class HasBlocks(Protocol):
    """A matrix over the parameters of a model that can make products of its blocks."""

    view: ModelView
    dtype: torch.dtype
    device: torch.device

    def product(self, matrix: Tensor, rows: tuple[str, ...], columns: tuple[str, ...]) -> Tensor:
        """Product of one block with a matrix."""


class Block(Operator):
    """Rows and columns of a symmetric matrix that belong to some parameters; made by ``H.block(rows, columns)``.

    Attributes:
        rows: names of the parameters of the rows, in the model's order.
        columns: those of the columns.
    """

    def __init__(self, whole: HasBlocks, rows: tuple[str, ...], columns: tuple[str, ...]) -> None:
        sizes = [sum(whole.view.parameters[name].numel() for name in names) for names in (rows, columns)]
        super().__init__((sizes[0], sizes[1]), whole.dtype, whole.device)
        self.whole, self.rows, self.columns = whole, rows, columns
        self.symmetric = rows == columns

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.whole.product(matrix, self.rows, self.columns)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.whole.product(matrix, self.columns, self.rows)
