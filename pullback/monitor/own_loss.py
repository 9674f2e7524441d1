"""The loss a model computes for itself, as models of the transformers package do, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import unsupported
from pullback.functional import LossFunction, num_samples, take, undisturbed
from pullback.functional.batch import Batch, tensors
from pullback.functional.losses import apply_loss
from pullback.functional.target_checks import logits_of
from pullback.monitor.called import Calls
from pullback.monitor.reduction import Reduction

IGNORED = -100  # the label of what is not to be predicted, throughout that package
COMPARED = 2  # samples on which a form must give the model's own loss
LABELS = ("labels", "label", "targets", "target", "y")  # names of theirs among a model's inputs
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
        self._passes = 0.0
        self.problem = "no sample with labels so far"

    def settle(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> None:
        """Find the form by which the model's loss follows from its logits and labels; costs a few samples' passes."""
        seen: list[tuple[Tensor, Tensor, float]] = []
        call = Calls(model)
        with undisturbed(model, training=False):
            for i in range(min(num_samples(inputs), MOST_LOOKED_AT)):
                outputs = call(take(inputs, [i]))
                own = float(outputs.get("loss", math.nan)) if isinstance(outputs, Mapping) else math.nan
                if not math.isnan(own):
                    seen.append((logits_of(outputs), labels[[i]], own))
                if len(seen) == COMPARED:
                    break
        self._passes += call.passes
        for form in FORMS:
            if seen and all(_gives(form, *each) for each in seen):
                self.form = form
                return
        if seen:
            self.problem = f"a loss of {seen[0][2]:.6g}, which follows in another way"

    def taken(self) -> float:
        """Passes that were made to find it, since they were last asked for."""
        passes, self._passes = self._passes, 0.0
        return passes

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


def stated_loss(outputs: Any, targets: Batch = None) -> Any:
    """The loss among what a model returned: its ``loss``, the one number of several outputs, or all there is."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    stated = getattr(outputs, "loss", None)
    numbers = [each for each in outputs if isinstance(each, Tensor) and not each.dim()] if _is_tuple(outputs) else []
    return numbers[0] if stated is None and len(numbers) == 1 else stated


def own_loss(
    call: Calls, loss_fn: LossFunction, inputs: Batch, outputs: Any, labels: Iterable[tuple[Any, Batch]]
) -> tuple[LossFunction, Reduction, Any] | None:
    """The form of a loss that the model returned beside its outputs, and how the batch's is made of it.

    Args:
        call: the model, in eval mode.
        loss_fn: picks the loss out of the outputs.
        inputs: of some samples.
        outputs: for those.
        labels: what may be the labels, each with its name.

    Returns:
        The loss per sample, the reduction and the name of the labels it takes; None where no form gives the loss.
    """
    value, logits = stated_loss(outputs), _scores(outputs)
    if not isinstance(value, Tensor) or value.dim() or logits is None:
        return None
    for name, given in labels:
        try:
            value = float(apply_loss(loss_fn, outputs, given))
            own = _own(call, loss_fn, inputs, given)
        except (TypeError, ValueError, RuntimeError, IndexError):  # no loss of these labels
            continue
        for form in FORMS:
            if (
                own
                and all(_gives(form, *each) for each in own)
                and (reduction := _reduction(form, logits, given, value))
            ):
                return _of_scores(form), reduction, name
    return None


@torch.no_grad()
def _own(call: Calls, loss_fn: LossFunction, inputs: Batch, labels: Batch) -> list[tuple[Any, Batch, float]]:
    """Scores, labels and the model's own loss of a few samples that have one."""
    answers: list[tuple[Any, Batch, float]] = []
    for i in range(min(num_samples(inputs), MOST_LOOKED_AT)):
        outputs, own = call(take(inputs, [i])), take(labels, [i])
        loss = float(apply_loss(loss_fn, outputs, own))
        answers += [] if math.isnan(loss) else [(_scores(outputs), own, loss)]
        if len(answers) == COMPARED:
            break
    return answers


def _of_scores(form: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    return lambda outputs, targets: form(_scores(outputs), targets)


def _reduction(
    form: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, value: float
) -> Reduction | None:
    each = form(logits, labels).double()
    shown = labels[:, 1:] if form is next_token else labels
    counts = (shown != IGNORED).reshape(len(labels), -1).sum(1).double()
    allowed = max(1e-5, 4 * torch.finfo(logits.dtype).eps) * max(1.0, abs(value))
    made: dict[Reduction, Tensor] = {
        "mean": each.mean(),
        "sum": each.sum(),
        "weighted mean": each @ counts / counts.sum(),
    }
    return next((name for name, found in made.items() if abs(float(found) - value) <= allowed), None)


def _scores(outputs: Any) -> Any:
    """The tensor a model's own loss is of: its ``logits``, or the first of its outputs that has axes for more."""
    logits = logits_of(outputs)
    leaves = [leaf for leaf in tensors(outputs) if leaf.dim() > 1 and leaf.is_floating_point()]
    return logits if isinstance(logits, Tensor) and logits.dim() else next(iter(leaves), None)


def _is_tuple(outputs: Any) -> bool:
    return isinstance(outputs, tuple | list)


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each position's logits, (N, T, C), with the next position's label, (N, T)."""
    if labels.dim() < 2:
        raise ValueError
    return classes(logits[:, :-1], labels[:, 1:])


def classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, ..., C) with labels (N, ...)."""
    if logits.shape[:-1] != labels.shape or labels.is_floating_point():
        raise ValueError
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none").view(
        len(labels), -1
    )
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
        given = float(form(logits, labels))
    except ValueError:  # not for tensors of these shapes
        return False
    tolerance = max(1e-5, 4 * torch.finfo(logits.dtype).eps)
    return abs(given - own) <= tolerance * max(1.0, abs(own))
