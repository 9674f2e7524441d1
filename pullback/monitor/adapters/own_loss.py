"""The loss a model of the transformers package computes for itself, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import unsupported
from pullback.functional import num_samples, take, undisturbed
from pullback.functional.losses import logits_of
from pullback.functional.model_view import evaluate

IGNORED = -100  # the label of what is not to be predicted, throughout that package
COMPARED = 2  # samples on which a form must give the model's own loss
MOST_LOOKED_AT = 16  # samples tried for that; those without labels have no loss


class OwnLoss:
    """One of the forms below, whichever gives the model's own loss on single samples; none is taken on trust.

    A sample's loss is the mean over its own labels, 0 if it has none.

    Example:
        >>> loss = OwnLoss()
        >>> loss.form is None  # until ``settle`` has seen the model
        True
    """

    __name__ = "the model's own"
    least_loss = 0.0  # of every form

    def __init__(self) -> None:
        self.form: Callable[[Tensor, Tensor], Tensor] | None = None
        self.problem = "no sample with labels so far"

    def settle(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> None:
        """Find the form by which the model's loss follows from its logits and labels; costs a few samples' passes."""
        seen: list[tuple[Tensor, Tensor, float]] = []
        with undisturbed(model, training=False), torch.no_grad():
            for i in range(min(num_samples(inputs), MOST_LOOKED_AT)):
                outputs = evaluate(model, take(inputs, [i]))
                own = float(outputs.get("loss", math.nan)) if isinstance(outputs, Mapping) else math.nan
                if not math.isnan(own):
                    seen.append((logits_of(outputs), labels[[i]], own))
                if len(seen) == COMPARED:
                    break
        for form in FORMS:
            if seen and all(_gives(form, *each) for each in seen):
                self.form = form
                return
        if seen:
            self.problem = f"a loss of {seen[0][2]:.6g}, which follows in another way"

    def __call__(self, outputs: Any, labels: Tensor) -> Tensor:
        """Losses (N,)."""
        if self.form is None:
            raise unsupported(
                "TransformersCallback",
                "a model whose loss is the cross-entropy or the squared error of its `logits` and `labels`",
                self.problem,
                "Pass loss_fn=, a function of the model's outputs and the labels that returns one loss per sample",
            )
        return self.form(logits_of(outputs), labels)


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each position's logits, (N, T, C), with the next position's label, (N, T)."""
    if labels.dim() < 2:
        raise ValueError
    return classes(logits[:, :-1], labels[:, 1:])


def classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, ..., C) with labels (N, ...)."""
    if logits.shape[:-1] != labels.shape or labels.is_floating_point():
        raise ValueError
    each = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(len(labels), -1)
    counted = (labels != IGNORED).view(len(labels), -1).sum(1)
    return each.sum(1) / counted.clamp(min=1)


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of logits and labels of as many numbers."""
    return F.mse_loss(*_alike(logits, labels), reduction="none").mean(1)


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits and labels of as many numbers."""
    return F.binary_cross_entropy_with_logits(*_alike(logits, labels), reduction="none").mean(1)


FORMS = (next_token, classes, squared, binary)


def _alike(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.numel() != labels.numel() or not labels.is_floating_point():
        raise ValueError
    return logits.reshape(len(labels), -1), labels.reshape(len(labels), -1)


def _gives(form: Callable[[Tensor, Tensor], Tensor], logits: Any, labels: Tensor, own: float) -> bool:
    """Whether a form gives the model's own loss, to the rounding of its logits."""
    if not isinstance(logits, Tensor):
        return False
    try:
        found = float(form(logits, labels))
    except ValueError:  # not for tensors of these shapes
        return False
    tolerance = max(1e-5, 4 * torch.finfo(logits.dtype).eps)
    return abs(found - own) <= tolerance * max(1.0, abs(own))
