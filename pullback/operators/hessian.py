"""``Hessian``: the second derivative of the mean loss in the parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.functional.batch import Batch
from pullback.operators.curvature import CurvatureOperator


class Hessian(CurvatureOperator):
    """Hessian (P, P) of the mean per-sample loss over the data (Pearlmutter 1994).

    Cost: per batch one gradient with its graph, then one backward pass through that graph for every column. The
        graph of a lone batch is kept between products, that of several batches is made anew each time.
    Where the model has kinks (ReLU) the derivative of the kink itself counts as zero, as autograd has it.

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
        >>> x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        >>> H = Hessian(model, torch.nn.CrossEntropyLoss(), (x, y))
        >>> bool(torch.allclose(H.to_dense(), reference.dense_hessian(model, torch.nn.CrossEntropyLoss(), x, y)))
        True
    """

    def _make_graph(self, x: Batch, y: Batch) -> Tensor:
        """The gradient (P,), with its graph."""
        parameters = list(self.view.parameters.values())
        with torch.enable_grad():
            loss = self._losses(self.view(x), y).mean()
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            return torch.cat([g.reshape(-1) for g in gradient])

    def _graph_product(self, graph: Tensor, vector: Tensor) -> Tensor:
        if not graph.requires_grad:  # the loss is linear in every parameter
            return torch.zeros_like(vector)
        parameters = list(self.view.parameters.values())
        second = torch.autograd.grad(
            graph, parameters, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([s.reshape(-1) for s in second])
