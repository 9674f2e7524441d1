"""Dense curvature matrices of the mean loss over a batch, by loops over entries, samples, outputs and targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.functional import LossFunction, ModelView, num_samples, per_sample_loss, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.differentiable import differentiable
from pullback.functional.target_checks import logits_of
from pullback.reference.gradients import gradient_matrix, output_gradients


def dense_hessian(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Tensor:
    """Hessian (P, P) of the mean per-sample loss: the derivative of each entry of the gradient in turn."""
    view = ModelView.of(model)
    params = list(view.parameters.values())
    with undisturbed(view.model), differentiable():
        loss = per_sample_loss(loss_fn, view(x), y).mean()
    first = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    rows = []
    for entry in torch.cat([g.reshape(-1) for g in first]):
        if not entry.requires_grad:
            rows.append(entry.new_zeros(view.num_params))
            continue
        row = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([r.reshape(-1) for r in row]))
    return torch.stack(rows)


def dense_gauss_newton(
    model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch, *, classical: bool = False
) -> Tensor:
    """Gauss-Newton matrix (P, P): the Hessian of the mean loss with the model replaced by its linearisation.

    The Jacobian comes from one backward pass per sample and output. ``classical``: J^T J / N.
    """
    view = ModelView.of(model)
    with undisturbed(view.model):
        z = logits_of(view(x)).detach()
    jacobian = output_gradients(model, x)  # (N, C, P)
    if classical:
        return torch.einsum("icp,icq->pq", jacobian, jacobian) / len(z)

    def linearised_loss(step: Tensor) -> Tensor:
        return per_sample_loss(loss_fn, z + (jacobian @ step).view(z.shape), y).mean()

    with differentiable():
        return torch.func.jacrev(torch.func.jacrev(linearised_loss))(torch.zeros_like(jacobian[0, 0]))


def dense_empirical_fisher(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Tensor:
    """Empirical Fisher (P, P): the mean of g_i g_i^T. It is not the Hessian (Kunstner et al. 2019)."""
    g = gradient_matrix(model, loss_fn, x, y)
    return sum(torch.outer(row, row) for row in g) / len(g)  # type: ignore[return-value]


def dense_fisher(
    model: nn.Module, loss_fn: nn.Module, x: Batch, y: Batch, *, per: Literal["sample", "token"] = "sample"
) -> Tensor:
    """True Fisher (P, P): the sum over samples, terms and possible targets of probability times g g^T, over N.

    A term is one label, bit or number of a sample's loss; terms are drawn independently, and each one's gradient has
    mean zero, so that cross terms vanish. ``per="token"``: N counts the terms, and a term's loss has no other factor.
    """
    view = ModelView.of(model)
    params = list(view.parameters.values())
    total, counted = torch.zeros(view.num_params, view.num_params, dtype=params[0].dtype), 0
    for i in range(num_samples(y)):
        with undisturbed(view.model):
            z, target = logits_of(view(take(x, [i]))), take(y, [i])
        terms = list(_terms(loss_fn, z, target))
        counted += len(terms) if per == "token" else 1
        factor = 1 / len(terms) if loss_fn.reduction == "mean" and per == "sample" else 1.0
        for term in terms:
            for probability, loss in _outcomes(loss_fn, term, factor):
                g = torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True)
                flat = torch.cat([part.reshape(-1) for part in g])
                total += probability * torch.outer(flat, flat)
    return total / counted


def _terms(loss_fn: nn.Module, z: Tensor, y: Tensor) -> Iterator[Tensor]:
    """The outputs each term of one sample's loss depends on: class scores of a position (1, C), or a number (1,)."""
    if not isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss):
        yield from z.reshape(-1, 1)
        return
    positions = z.movedim(1, -1).reshape(-1, 1, z.shape[1])
    labels = y.reshape(-1) if not y.is_floating_point() else torch.zeros(len(positions))
    for scores, label in zip(positions, labels, strict=True):
        if label != loss_fn.ignore_index:
            yield scores


def _outcomes(loss_fn: nn.Module, z: Tensor, factor: float) -> Iterator[tuple[Tensor | float, Tensor]]:
    """Probability and loss of every possible target of one term."""
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss):
        log_p = z[0].log_softmax(0) if isinstance(loss_fn, nn.CrossEntropyLoss) else z[0]
        for log_probability in log_p:
            yield log_probability.detach().exp(), -factor * log_probability
    elif isinstance(loss_fn, nn.BCEWithLogitsLoss):
        for bit in (0.0, 1.0):
            loss = F.binary_cross_entropy_with_logits(z, torch.full_like(z, bit), reduction="sum")
            yield (-loss).detach().exp(), factor * loss
    elif isinstance(loss_fn, nn.MSELoss):  # two points have the second moment of the normal distribution
        deviation = (0.5 / factor) ** 0.5
        for sign in (-1.0, 1.0):
            yield 0.5, factor * (z - (z.detach() + sign * deviation)).square().sum()
    elif isinstance(loss_fn, nn.PoissonNLLLoss):
        for count in range(100):
            loss = F.poisson_nll_loss(z, torch.full_like(z, count), log_input=True, reduction="sum")
            probability = (-loss.detach() - torch.lgamma(torch.tensor(count + 1.0, dtype=z.dtype))).exp()
            yield probability, factor * loss
    else:
        raise NotImplementedError(type(loss_fn).__name__)
