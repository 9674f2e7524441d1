"""The mean loss of a batch and its gradient at given parameters, the model in the modes it is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pullback.functional import LossFunction, ModelView, per_sample_loss
from pullback.functional.agreement import agree
from pullback.functional.batch import Batch
from pullback.functional.losses import check_finite
from pullback.functional.repeatable import changed_answer


def loss_and_gradient(
    view: ModelView,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    at: Mapping[str, Tensor],
    names: Iterable[str],
    where: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean per-sample loss at the parameters ``at``, and its gradient in those of ``names``; within ``undisturbed``.

    Samples may depend on each other (batch norm in train mode): the gradient is that of the whole batch.
    """
    wanted = list(names)
    leaves = {name: value.detach() for name, value in at.items()}
    for name in wanted:
        leaves[name].requires_grad_()
    with torch.enable_grad():
        losses = per_sample_loss(loss_fn, view(x, leaves), y, where)
        check_finite(losses, where)
        loss, inputs = losses.mean(), [leaves[n] for n in wanted]
        if not loss.requires_grad:  # the model uses none of them
            return loss, {name: torch.zeros_like(leaves[name]) for name in wanted}
        slopes = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return losses.detach().mean(), dict(zip(wanted, slopes, strict=True))


def mean_loss(
    view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, at: Mapping[str, Tensor], where: str
) -> Tensor:
    """Mean per-sample loss at the parameters ``at``; within ``undisturbed``."""
    with torch.no_grad():
        losses = per_sample_loss(loss_fn, view(x, at), y, where)
        check_finite(losses, where)
        return losses.mean()


def check_repeats(
    view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, loss: Tensor, at: Mapping[str, Tensor], where: str
) -> None:
    """Refuse a model whose loss on the same batch is another one the second time."""
    if not agree(loss, mean_loss(view, loss_fn, x, y, at, where)):
        raise changed_answer(where, 0)
