"""``GaussNewton``: the Hessian with the model replaced by its linearisation, ``J^T H_z J``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pullback.functional.batch import Batch
from pullback.operators.curvature import CurvatureOperator


class GaussNewton(CurvatureOperator):
    """Generalised Gauss-Newton matrix (P, P) of the mean per-sample loss over the data (Schraudolph 2002).

    J is the derivative of the outputs in the parameters and H_z that of the mean loss in the outputs, twice.
    Positive semi-definite for losses convex in the outputs; equal to the Hessian where the residuals vanish.

    Cost: per batch a forward and two backward passes, then for every column a pass through the graph of the
        first backward pass (J v, by differentiating J^T u in u), one through the loss and one backward pass.

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
        >>> x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        >>> A = GaussNewton(model, torch.nn.CrossEntropyLoss(), (x, y))
        >>> dense = reference.dense_gauss_newton(model, torch.nn.CrossEntropyLoss(), x, y)
        >>> bool(torch.allclose(A.to_dense(), dense))
        True
    """

    def _make_graph(self, x: Batch, y: Batch) -> _Graph:
        parameters = list(self.view.parameters.values())
        with torch.enable_grad():
            leaves, structure = tree_flatten(self.view(x))
            outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
            # J^T u as a function of a dummy u, whose own derivative along v is J v
            dummies = [torch.zeros_like(leaf, requires_grad=True) for leaf in outputs]
            pulled = torch.autograd.grad(
                outputs, parameters, dummies, create_graph=True, allow_unused=True, materialize_grads=True
            )
            cut = [leaf.detach().requires_grad_() for leaf in outputs]
            stand_ins = iter(cut)
            whole = [next(stand_ins) if any(leaf is o for o in outputs) else leaf for leaf in leaves]
            loss = self._losses(tree_unflatten(whole, structure), y).mean()
            slope = torch.autograd.grad(loss, cut, create_graph=True, allow_unused=True, materialize_grads=True)
        return _Graph(outputs, dummies, list(pulled), cut, list(slope))

    def _graph_product(self, graph: _Graph, vector: Tensor) -> Tensor:
        parameters = list(self.view.parameters.values())
        direction = list(self.view.unflatten(vector).values())
        change = _derivative(graph.pulled, graph.dummies, direction)  # J v
        bent = _derivative(graph.slope, graph.cut, change)  # H_z J v
        return torch.cat([g.reshape(-1) for g in _derivative(graph.outputs, parameters, bent)])  # J^T H_z J v


@dataclass(frozen=True)
class _Graph:
    """Outputs z(w); J^T u as a function of u; the loss's slope as a function of z cut off from w."""

    outputs: list[Tensor]
    dummies: list[Tensor]
    pulled: list[Tensor]
    cut: list[Tensor]
    slope: list[Tensor]


def _derivative(values: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Transposed derivative of ``values`` in ``inputs`` times ``vectors``; constants contribute nothing."""
    moving = [(value, vector) for value, vector in zip(values, vectors, strict=True) if value.requires_grad]
    if not moving:
        return [torch.zeros_like(i) for i in inputs]
    found = torch.autograd.grad(
        [value for value, _ in moving],
        inputs,
        [vector for _, vector in moving],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)
