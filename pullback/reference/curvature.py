"""Dense curvature matrices of the mean loss over a batch, column by column."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pullback.functional import LossFunction, ModelView, per_sample_loss
from pullback.functional.batch import Batch
from pullback.reference.gradients import gradient_matrix


def dense_hessian(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Tensor:
    """Hessian (P, P) of the mean per-sample loss: the derivative of each entry of the gradient in turn."""
    view = ModelView.of(model)
    params = list(view.parameters.values())
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        loss = per_sample_loss(loss_fn, view(x), y).mean()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = []
    for entry in gradient:
        row = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if r is None else r).reshape(-1) for p, r in zip(params, row, strict=True)])
        )
    return torch.stack(rows)


def dense_gauss_newton(model: nn.Module, loss_fn: LossFunction, x: Tensor, y: Batch) -> Tensor:
    """Gauss-Newton matrix (P, P): the Hessian of the mean loss with the model replaced by its linearisation."""
    view = ModelView.of(model)
    base = {name: p.detach() for name, p in view.parameters.items()}
    flat = view.flatten(base)

    def outputs(vector: Tensor) -> Tensor:
        return view(x, view.unflatten(vector))

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
        value, jacobian = outputs(flat), torch.func.jacrev(outputs)(flat)

    def linearised_loss(step: Tensor) -> Tensor:
        return per_sample_loss(loss_fn, value + jacobian @ step, y).mean()

    return torch.func.jacrev(torch.func.jacrev(linearised_loss))(torch.zeros_like(flat))


def dense_empirical_fisher(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Tensor:
    """Empirical Fisher (P, P): the mean of g_i g_i^T. It is not the Hessian (Kunstner et al. 2019)."""
    g = gradient_matrix(model, loss_fn, x, y)
    return sum(torch.outer(row, row) for row in g) / len(g)  # type: ignore[return-value]
