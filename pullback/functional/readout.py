"""Readouts: the C scalars of every sample whose gradients are asked for (its loss, its tokens' losses, its outputs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import input_error, unsupported
from pullback.functional.batch import Batch, num_samples, without_inference
from pullback.functional.losses import LossFunction, apply_loss, check_finite, label_weights, unchecked_loss
from pullback.functional.target_checks import are_indices, check_targets, logits_of


@dataclass(frozen=True)
class Readout:
    """From what a model returned to (N, C).

    Args:
        values: (outputs, targets, caller) to (N, C), differentiable, reading no data (so that vmap can pass).
        check: refuses outputs and targets that do not fit; called on whole batches only.
        what: a value, for error messages.
    """

    values: Callable[[Any, Batch, str], Tensor]
    check: Callable[[Any, Batch, str], None]
    what: str = "loss"

    def __call__(self, outputs: Any, targets: Batch, where: str) -> Tensor:
        """Values of a batch, (N, C), after the checks; finite or refused."""
        self.check(outputs, targets, where)
        values = self.values(outputs, targets, where)
        if values.device.type != "meta":
            check_finite(values, where, self.what)
        return values


def loss_readout(loss_fn: LossFunction) -> Readout:
    """Each sample's own loss, C = 1."""

    def values(outputs: Any, targets: Batch, where: str) -> Tensor:
        return unchecked_loss(loss_fn, outputs, targets, where).unsqueeze(1)

    return Readout(values, lambda outputs, targets, where: check_targets(loss_fn, outputs, targets, where))


def token_readout(loss_fn: LossFunction) -> Readout:
    """The loss of every position on its own, C = T; positions at ``ignore_index`` have loss and gradient zero."""

    def values(outputs: Any, targets: Batch, where: str) -> Tensor:
        targets = without_inference(targets)
        if type(loss_fn) is nn.CrossEntropyLoss:
            each = F.cross_entropy(
                logits_of(outputs),
                targets.long() if are_indices(targets) else targets,
                weight=loss_fn.weight,
                ignore_index=loss_fn.ignore_index,
                reduction="none",
                label_smoothing=loss_fn.label_smoothing,
            )
            if loss_fn.reduction == "mean" and loss_fn.weight is not None and not targets.is_floating_point():
                own = label_weights(loss_fn.weight, targets, loss_fn.ignore_index)
                # a mean over one position divides by its label's weight
                each = each / own.where(targets != loss_fn.ignore_index, 1.0).to(each.dtype)
        elif isinstance(loss_fn, nn.Module):
            raise unsupported(
                where,
                "`per='token'` with nn.CrossEntropyLoss or a callable that returns (N, T)",
                type(loss_fn).__name__,
                "Pass a callable that returns the loss of every position",
            )
        else:
            each = apply_loss(loss_fn, outputs, targets)
        count = num_samples(targets, where, "targets")
        if not isinstance(each, Tensor) or each.dim() < 2 or len(each) != count:
            got = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            raise input_error(where, f"one loss per position, shape ({count}, T)", got, "Use per='sample', or keep T")
        return each.flatten(1)

    return Readout(values, lambda outputs, targets, where: check_targets(loss_fn, outputs, targets, where))


def output_readout(*, summed: bool = False) -> Readout:
    """The model's outputs themselves, flattened, C of them; or their sum, C = 1."""

    def values(outputs: Any, targets: Batch, where: str) -> Tensor:
        flat = logits_of(outputs).flatten(1) if logits_of(outputs).dim() > 1 else logits_of(outputs).unsqueeze(1)
        return flat.sum(1, keepdim=True) if summed else flat

    def check(outputs: Any, targets: Batch, where: str) -> None:
        logits = logits_of(outputs)
        if not isinstance(logits, Tensor) or logits.dim() == 0 or not logits.is_floating_point():
            got = (
                f"shape {tuple(logits.shape)}, {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
            )
            raise input_error(where, "a model that returns real outputs (N, ...)", got, "Wrap it to return one tensor")

    return Readout(values, check, "output")


def combination(num_outputs: int, like: Tensor) -> Tensor:
    """Fixed signs u, (C,): the gradient of sum_c u_c f_c checks all outputs in one backward pass. One output: u = 1."""
    return torch.tensor(_signs(num_outputs), dtype=like.dtype, device=like.device)


@lru_cache(maxsize=64)
def _signs(num_outputs: int) -> list[int]:
    """Drawn once for a number of outputs, and no tensor, which would be of the modes it was made in."""
    make = torch.Generator().manual_seed(num_outputs)
    signs = torch.randint(2, (num_outputs,), generator=make, device="cpu") * 2 - 1
    return (signs.abs() if num_outputs == 1 else signs).tolist()
