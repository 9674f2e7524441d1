"""Per-sample gradients by a loop of batches of one, and the dense matrices made from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pullback.functional import LossFunction, ModelView, num_samples, per_sample_loss, take, undisturbed
from pullback.functional.batch import Batch


def per_sample_gradients(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> dict[str, Tensor]:
    """Gradient of each sample's own loss, parameter name -> (N, *shape); one backward pass per sample."""
    view = ModelView.of(model)
    rows: dict[str, list[Tensor]] = {name: [] for name in view.parameters}
    for i in range(num_samples(x)):
        with undisturbed(view.model):
            loss = per_sample_loss(loss_fn, view(take(x, [i])), take(y, [i]))[0]
            gradients = torch.autograd.grad(loss, list(view.parameters.values()), allow_unused=True)
        for (name, p), g in zip(view.parameters.items(), gradients, strict=True):
            rows[name].append(torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g)
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


def gradient_matrix(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Tensor:
    """G, (N, P): row i is g_i, all parameters in the model's order."""
    return _rows(per_sample_gradients(model, loss_fn, x, y).values())


def layer_gradient_matrices(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> dict[str, Tensor]:
    """G^(l), layer name -> (N, P_l)."""
    gradients = per_sample_gradients(model, loss_fn, x, y)
    layers = ModelView.of(model).layers
    return {layer: _rows(gradients[n] for n in names) for layer, names in layers.items()}


def total_kernel(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Tensor:
    """K = G G^T, (N, N)."""
    g = gradient_matrix(model, loss_fn, x, y)
    return g @ g.T


def layer_kernels(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> dict[str, Tensor]:
    """K^(l) = G^(l) G^(l)^T, layer name -> (N, N)."""
    return {layer: g @ g.T for layer, g in layer_gradient_matrices(model, loss_fn, x, y).items()}


def tangent_kernel(model: nn.Module, x: Batch, x2: Batch | None = None) -> Tensor:
    """Theta[i, j, c, e] = <grad f_c(x_i), grad f_e(x_j)>, (N1, N2, C, C); one backward pass per sample and output."""
    left = output_gradients(model, x)
    right = left if x2 is None else output_gradients(model, x2)
    return torch.einsum("icp,jep->ijce", left, right)


def output_gradients(model: nn.Module, x: Batch) -> Tensor:
    """Gradient of every output of every sample, (N, C, P), outputs flattened."""
    view = ModelView.of(model)
    parameters = list(view.parameters.values())
    rows = []
    for i in range(num_samples(x)):
        with undisturbed(view.model):
            outputs = view(take(x, [i])).reshape(-1)
            each = [torch.autograd.grad(f, parameters, retain_graph=True, allow_unused=True) for f in outputs]
        rows.append(torch.stack([_flat(parameters, g) for g in each]))
    return torch.stack(rows)


def _flat(parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]) -> Tensor:
    pairs = zip(parameters, gradients, strict=True)
    dense = [torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for p, g in pairs]
    return torch.cat([g.reshape(-1) for g in dense])


def _rows(gradients: Iterable[Tensor]) -> Tensor:
    """Gradients (N, *shape) of several parameters side by side, (N, numbers)."""
    return torch.cat([g.reshape(len(g), g[0].numel()) for g in gradients], dim=1)
