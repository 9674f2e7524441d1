"""Matrices J^T M J: the linearised readout J of a model on both sides of a matrix M on what is read out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.functional.batch import Batch
from pullback.operators.curvature import CurvatureOperator, Directions
from pullback.operators.passes import derivative

Middle = Callable[[Sequence[Tensor | None], bool], Sequence[Tensor | None]]


@dataclass(frozen=True)
class Readout:
    """Values r(w) with their graph, J^T u as a function of a dummy u, and the product with M."""

    values: list[Tensor]
    dummies: list[Tensor]
    pulled: dict[str, Tensor]
    middle: Middle


class LinearisedOperator(CurvatureOperator):
    """J^T M J with M symmetric: per column a product J v, one with M, and one with J^T.

    J v is the derivative along v of J^T u, which is linear in u (the double backward pass).
    """

    def _make_graph(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> Readout:
        read, middle = self._read(outputs, losses, y, index)
        values = [value for value in read if value.requires_grad]
        names, parameters = list(self.view.parameters), list(self.view.parameters.values())
        dummies = [torch.zeros_like(value, requires_grad=True) for value in values]
        pulled: Sequence[Tensor | None] = [None] * len(names)
        if values:
            pulled = torch.autograd.grad(values, parameters, dummies, create_graph=True, allow_unused=True)
        kept = {name: p for name, p in zip(names, pulled, strict=True) if p is not None}
        return Readout(values, dummies, kept, middle)

    def _graph_product(
        self, graph: Readout, directions: Directions, rows: tuple[str, ...], batched: bool
    ) -> Sequence[Tensor | None]:
        moving = {name: d for name, d in directions.items() if name in graph.pulled}
        change = derivative([graph.pulled[name] for name in moving], graph.dummies, list(moving.values()), batched)
        bent = graph.middle(change, batched)  # M J v
        return derivative(graph.values, [self.view.parameters[name] for name in rows], bent, batched)

    @abstractmethod
    def _read(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> tuple[list[Tensor], Middle]:
        """The values that are linearised, and the product with M / N on those of them that depend on parameters."""


def scaled(factor: float) -> Middle:
    """M a multiple of the identity."""
    return lambda change, batched: [None if c is None else factor * c for c in change]
