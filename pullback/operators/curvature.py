"""What the curvature operators share: batches weighted by their true counts, and products in flat coordinates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pullback.functional import LossFunction, ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.losses import check_finite, check_targets, unchecked_loss
from pullback.operators.base import Operator

Data = tuple[Batch, Batch] | Iterable[tuple[Batch, Batch]]


class CurvatureOperator(Operator):
    """A symmetric (P, P) matrix of the mean per-sample loss over data; columns in the model's parameter order.

    Args:
        model: any module; it is evaluated as it stands, so call ``model.eval()`` first.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: one pair ``(x, y)``, or an iterable of such pairs that can be walked through again for each product.
        params: names of parameters or modules; None for all trainable ones.
    """

    symmetric = True

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, data: Data, *, params: Iterable[str] | None = None
    ) -> None:
        where = type(self).__name__
        self.view = ModelView.of(model, params, where)
        self.loss_fn = loss_fn
        self._kept: tuple[list[int], Any] | None = None
        self._batches = [data] if isinstance(data, tuple) else list(data)
        self._counts = [check_batch(where, x, y) for x, y in self._batches]
        with undisturbed(model), torch.no_grad():
            for x, y in self._batches:
                outputs = self.view(x)
                check_targets(loss_fn, outputs, y, where)
                check_finite(unchecked_loss(loss_fn, outputs, y, where), where)
        first = next(iter(self.view.parameters.values()))
        super().__init__((self.view.num_params, self.view.num_params), first.dtype, first.device)

    def _matmat(self, matrix: Tensor) -> Tensor:
        result = torch.zeros_like(matrix)
        with (
            undisturbed(self.view.model),
            sdpa_kernel(SDPBackend.MATH),
        ):  # fused attention has no second derivative
            for (x, y), count in zip(self._batches, self._counts, strict=True):
                graph = self._graph(x, y)
                columns = [self._graph_product(graph, vector) for vector in matrix.T]
                result += torch.stack(columns, dim=1) * (count / sum(self._counts))
        return result

    def _graph(self, x: Batch, y: Batch) -> Any:
        """The batch's graph; that of a lone batch is kept for as long as the weights stay as they are."""
        if len(self._batches) > 1:
            return self._make_graph(x, y)
        versions = [p._version for p in self.view.parameters.values()]
        if self._kept is None or self._kept[0] != versions:
            self._kept = versions, self._make_graph(x, y)
        return self._kept[1]

    @abstractmethod
    def _make_graph(self, x: Batch, y: Batch) -> Any:
        """What all products on one batch share."""

    @abstractmethod
    def _graph_product(self, graph: Any, vector: Tensor) -> Tensor:
        """Product (P,) of the matrix of one batch's mean loss with a vector (P,)."""

    def _losses(self, outputs: Any, y: Batch) -> Tensor:
        return unchecked_loss(self.loss_fn, outputs, y, type(self).__name__)
