"""Matrices J^T M J: the linearised readout J of a model on both sides of a matrix M on what is read out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pullback.functional.batch import Batch
from pullback.operators.curvature.base import CurvatureOperator, Directions
from pullback.operators.flat_derivatives import derivative
from pullback.operators.push import Push

Middle = Callable[[Sequence[Tensor | None], bool], Sequence[Tensor | None]]


@dataclass(frozen=True)
class Readout:
    """Values r(w) with their graph, products J v with their derivative, and the product with M."""

    values: list[Tensor]
    push: Push
    middle: Middle


class LinearisedOperator(CurvatureOperator):
    """J^T M J with M symmetric: per column a product J v, one with M, and one with J^T."""

    def _make_graph(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> Readout:
        read, middle = self._read(outputs, losses, y, index)
        values = [value for value in read if value.requires_grad]
        push = Push(values, list(self.view.parameters.values()), self._where)
        if values and not self._confirmed:
            push.confirm()
            self._confirmed = not push.by_rows
        return Readout(values, push, middle)

    def _graph_product(
        self, graph: Readout, directions: Directions, rows: tuple[str, ...], batched: bool
    ) -> Sequence[Tensor | None]:
        change = graph.push([directions.get(name) for name in self.view.parameters], batched)
        bent = graph.middle(change, batched)  # M J v
        return derivative(graph.values, [self.view.parameters[name] for name in rows], bent, batched)

    @abstractmethod
    def _read(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> tuple[list[Tensor], Middle]:
        """The values that are linearised, and the product with M / N on those of them that depend on parameters."""


def scaled(factor: float) -> Middle:
    """M a multiple of the identity."""
    return lambda change, batched: [None if c is None else factor * c for c in change]
