"""Targets that fit the outputs and the loss: shapes, labels and weights of the losses whose targets are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional.batch import Batch, check_rows, num_samples

_SAME_SHAPE = (nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss)  # others would broadcast

_ONE_TARGET = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss)


def check_targets(loss_fn: Any, outputs: Any, targets: Batch, where: str) -> None:
    """Refuse labels out of range and targets of another shape, where the loss is one whose targets are known."""
    if type(loss_fn).__module__ != nn.CrossEntropyLoss.__module__:
        return
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor):
        raise input_error(
            where,
            f"outputs that are one tensor, or have `logits`, for {type(loss_fn).__name__}",
            type(outputs).__name__,
            "Pass a callable as `loss_fn` that picks the tensor and returns one loss per sample",
        )
    if isinstance(loss_fn, (*_ONE_TARGET, *_SAME_SHAPE)) and not isinstance(targets, Tensor):
        raise input_error(
            where,
            f"targets that are one tensor for {type(loss_fn).__name__}",
            type(targets).__name__,
            "Pass that tensor, or a callable as `loss_fn` that takes these targets and returns one loss per sample",
        )
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss | nn.MultiMarginLoss):
        _check_class_weights(loss_fn, outputs, where)
    probabilities = isinstance(loss_fn, nn.CrossEntropyLoss) and not are_indices(targets)
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) and not probabilities:
        _check_labels(loss_fn, outputs, targets, where)
    elif isinstance(loss_fn, nn.BCELoss | nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss):
        for name in ("weight", "pos_weight"):
            _check_weight(loss_fn, name, outputs, where)
    if (probabilities or isinstance(loss_fn, _SAME_SHAPE)) and outputs.shape != targets.shape:
        check_rows(where, outputs, num_samples(targets, where, "targets"))
        raise input_error(
            where,
            f"targets of the outputs' shape {tuple(outputs.shape)}",
            f"{tuple(targets.shape)}",
            "Reshape the targets; broadcasting would mix samples",
        )


def _check_weight(loss_fn: nn.Module, name: str, outputs: Tensor, where: str) -> None:
    """Refuse a weight for each sample of a batch: a loss of one sample does not know which of them is its own."""
    one, weight = (1, *outputs.shape[1:]), getattr(loss_fn, name, None)
    own = () if weight is None else tuple(weight.shape)
    if len(own) > len(one) or any(a not in (1, b) for a, b in zip(own[::-1], one[::-1], strict=False)):
        raise input_error(
            where,
            f"a `{name}` of {type(loss_fn).__name__} that broadcasts to one sample's outputs {one}",
            f"{own}",
            "Pass weights of samples with the targets, and a callable as `loss_fn` that multiplies by them"
            if name == "weight"
            else "Pass one number for each output",
        )


def _check_class_weights(loss_fn: nn.Module, outputs: Tensor, where: str) -> None:
    """Refuse weights that are not one for each class."""
    classes, weight = outputs.shape[1:2], loss_fn.weight
    if isinstance(weight, Tensor) and weight.shape != classes:
        raise input_error(
            where,
            f"a `weight` of {type(loss_fn).__name__} with one number for each class, {tuple(classes)}",
            f"{tuple(weight.shape)}",
            "Correct the weights or the number of outputs",
        )


def _check_labels(loss_fn: nn.CrossEntropyLoss | nn.NLLLoss, outputs: Tensor, targets: Tensor, where: str) -> None:
    classes = outputs.shape[1] if outputs.dim() > 1 else 0
    if targets.dim() and outputs.dim():
        check_rows(where, outputs, len(targets))
    expected = (outputs.shape[0], *outputs.shape[2:])
    if tuple(targets.shape) != expected:
        raise input_error(
            where,
            f"labels of shape {expected} for outputs {tuple(outputs.shape)}",
            f"{tuple(targets.shape)}",
            "Put the class axis second in the outputs, (N, C, ...)",
        )
    if targets.device.type == "meta":  # only shapes are known
        return
    bad = ((targets < 0) | (targets >= classes)) & (targets != loss_fn.ignore_index)
    if bad.any():
        first = bad.nonzero()[0]
        raise input_error(
            where,
            f"labels from 0 to {classes - 1}",
            f"{int(targets[tuple(first)])} for sample {int(first[0])}",
            "Correct the labels or the number of outputs",
        )


def are_indices(targets: Batch) -> bool:
    """Whether targets are whole numbers, as labels are."""
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def logits_of(outputs: Any) -> Any:
    """The tensor a module loss is applied to: the outputs, or their ``logits`` (Hugging Face models)."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return outputs if isinstance(outputs, Tensor) or logits is None else logits
