"""Jacobians of models in their inputs, and derivatives of plain functions, entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pullback.functional import num_samples, take, undisturbed
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import evaluate
from pullback.functional.target_checks import logits_of


@torch.inference_mode(False)
def input_gradients(model: nn.Module, x: Batch) -> Tensor:
    """Derivative of every output of every sample in its floating inputs, (N, C, D), all flattened."""
    rows = []
    for i in range(num_samples(x)):
        one = take(x, [i])
        inputs = [t.requires_grad_() for t in tensors(one) if t.is_floating_point()]
        with undisturbed(model):
            outputs = logits_of(evaluate(model, one)).reshape(-1)
        each = [torch.autograd.grad(z, inputs, retain_graph=True, materialize_grads=True) for z in outputs]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in gradients]) for gradients in each]))
    return torch.stack(rows)


def dense_jacobian(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Jacobian (outputs, inputs) of a function of a vector: the gradient of each output in turn."""
    w = w.detach().requires_grad_()
    return torch.stack([torch.autograd.grad(z, w, retain_graph=True)[0] for z in f(w).reshape(-1)])


def dense_second_derivative(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Second derivatives (outputs, inputs, inputs): the Hessian of each output in turn."""
    return torch.stack(
        [torch.autograd.functional.hessian(lambda v, c=c: f(v).reshape(-1)[c], w) for c in range(f(w).numel())]
    )


def taylor_polynomial(f: Callable[[Tensor], Tensor], w0: Tensor, w: Tensor, order: int) -> Tensor:
    """f(w0) + J dw + dw^T H dw / 2, up to the order, from the dense derivatives; flattened outputs."""
    value, change = f(w0).reshape(-1), w - w0
    if order > 0:
        value = value + dense_jacobian(f, w0) @ change
    if order > 1:
        value = value + torch.einsum("cij,i,j->c", dense_second_derivative(f, w0), change, change) / 2
    return value.detach()
