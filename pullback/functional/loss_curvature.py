"""Second derivatives of a loss in the outputs, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback._checks import unsupported
from pullback.functional.batch import Batch
from pullback.functional.differentiable import differentiable
from pullback.functional.losses import LossFunction, unchecked_loss
from pullback.functional.own_losses import check_depends, check_own_losses
from pullback.functional.target_checks import are_indices


def output_hessian(loss_fn: LossFunction, outputs: Tensor, targets: Batch, where: str = "output_hessian") -> Tensor:
    """Second derivative of each sample's loss in its own outputs, (N, C, C), C all outputs of one sample.

    Closed form for cross-entropy on (N, C) class scores, binary cross-entropy with logits and squared error;
    any other loss is differentiated twice.

    Raises:
        UnsupportedError: a callable that mixes samples, or takes more than the logits of what a model returns.
    """
    count, flat = len(outputs), outputs.reshape(len(outputs), -1)
    num_outputs = flat.shape[1]
    family, scale = _family(loss_fn, outputs, targets, num_outputs)
    if family == "cross-entropy":
        pairs = flat.softmax(1).unsqueeze(2) * flat.softmax(1).unsqueeze(1)  # p_a p_b
        other = pairs.masked_fill(torch.eye(num_outputs, dtype=torch.bool, device=flat.device), 0.0)
        return torch.diag_embed(other.sum(2)) - other  # p_a - p_a^2 is the sum of the others, without cancellation
    if family == "binary":
        return torch.diag_embed(flat.sigmoid() * (-flat).sigmoid()) * scale
    if family == "squared":
        return (2 * scale * torch.eye(num_outputs, dtype=flat.dtype, device=flat.device)).repeat(count, 1, 1)
    with (
        differentiable(),
        torch.enable_grad(),
    ):  # samples do not mix: one derivative of all slopes in an output is that of each sample
        leaf = flat.detach().requires_grad_()
        try:
            losses = unchecked_loss(loss_fn, leaf.view(outputs.shape), targets, where)
        except (AttributeError, IndexError, KeyError, TypeError) as error:  # it takes all that the model returns
            expected, got = "a loss that takes one tensor, the model's `logits`", f"{type(error).__name__}: {error}"
            remedy = "Wrap the model to return its logits, and write the loss as a function of those"
            raise unsupported(where, expected, got, remedy) from error
        check_own_losses(loss_fn, outputs, targets, where)
        check_depends(losses, where)
        (slope,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
        if not slope.requires_grad:  # a loss linear in the outputs
            return flat.new_zeros(count, num_outputs, num_outputs)
        columns = [
            torch.autograd.grad(slope[:, c].sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            for c in range(num_outputs)
        ]
    return torch.stack(columns, dim=1)


def _family(loss_fn: LossFunction, outputs: Tensor, targets: Batch, num_outputs: int) -> tuple[str | None, float]:
    """Name of the exponential family a loss belongs to, and its factor per output (1, or 1/C under "mean")."""
    scale = 1.0 / num_outputs if getattr(loss_fn, "reduction", None) == "mean" else 1.0
    if type(loss_fn) is nn.CrossEntropyLoss and are_indices(targets) and outputs.dim() == 2:
        plain = loss_fn.weight is None and loss_fn.label_smoothing == 0 and bool((targets >= 0).all())
        return ("cross-entropy" if plain else None), 1.0
    if type(loss_fn) is nn.BCEWithLogitsLoss and loss_fn.weight is None and loss_fn.pos_weight is None:
        return "binary", scale
    return ("squared" if type(loss_fn) is nn.MSELoss else None), scale
