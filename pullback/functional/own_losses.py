"""Callables whose loss of a sample depends on others of its batch, or on nothing, are found before they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback._checks import unsupported
from pullback.functional.agreement import Tensors, disagreement, norms, row_norms, sample_weights
from pullback.functional.batch import Batch, take
from pullback.functional.losses import LossFunction, reduces, unchecked_loss


def check_own_losses(loss_fn: LossFunction, outputs: Tensor, targets: Batch, where: str) -> None:
    """Refuse a callable that mixes samples: its second derivatives sample by sample would be those of no loss.

    Three samples' losses and slopes are compared with those of the sample alone: the first, the last, and the one whose
    slope changes most when the others count otherwise. Loss modules are applied to batches of one, by definition.

    Args:
        loss_fn: the loss.
        outputs: of the model, (N, ...).
        targets: (N, ...).
        where: the caller.

    Cost: two backward passes of the loss, and three samples alone.
    """
    count = len(outputs)
    if count < 2 or reduces(loss_fn):
        return

    def values(z: Tensor, y: Batch, weights: Tensor | None = None) -> dict[str, Tensor]:
        leaf = z.detach().requires_grad_()
        losses = unchecked_loss(loss_fn, leaf, y, where)
        if not losses.requires_grad:
            return {"loss": losses, "slope of the loss": torch.zeros_like(z)}
        (slope,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses) if weights is None else weights.to(losses))
        return {"loss": losses.detach(), "slope of the loss": slope}

    with torch.enable_grad():
        together, weights = values(outputs, targets), sample_weights(count, outputs)
        if not all(bool(torch.isfinite(value).all()) for value in together.values()):
            return  # nothing can be compared with what is no number
        slope, weighted = together["slope of the loss"], values(outputs, targets, weights)["slope of the loss"]
        each = weights.view(-1, *[1] * (outputs.dim() - 1))
        between = int(row_norms(weighted / each - slope).nan_to_num(float("inf")).argmax())
        for i in dict.fromkeys((0, between, count - 1)):
            y = take(targets, [i])
            own = values(outputs[i : i + 1], y)
            errors = {name: norms([together[name][i : i + 1] - own[name]])[0] for name in own}

            def again(at: Tensors, y: Batch = y) -> Tensors:
                return values(at["outputs"], y)

            found = disagreement(errors, own, again, {"outputs": outputs[i : i + 1]}, outputs.dtype)
            if found is not None:
                name, error, size = found
                raise unsupported(
                    where,
                    "a loss that treats every sample on its own",
                    f"another {name} for sample {i} alone than in the batch, by {error:.2e} where its size is "
                    f"{size:.2e}",
                    "Rewrite what mixes samples (statistics over the batch, sums along it, division by its size)",
                )


def check_depends(losses: Tensor, where: str) -> None:
    """Refuse losses that have no derivative in the outputs they are computed from."""
    if not losses.requires_grad:
        got, remedy = "none that does", "Check for detach() and no_grad() in it"
        raise unsupported(where, "a loss that depends on the outputs", got, remedy)
