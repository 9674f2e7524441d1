"""Losses sample by sample: the loss of sample i is the loss of the batch that holds only sample i."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional.batch import Batch, copied, num_samples, quiet_vmap, take, without_inference
from pullback.functional.stand_in import stand_in
from pullback.functional.target_checks import are_indices, check_targets, logits_of

LossFunction = nn.Module | Callable[..., Tensor]

_NEVER_NEGATIVE = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.HuberLoss,
    nn.SmoothL1Loss, nn.CTCLoss, nn.SoftMarginLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)  # fmt: skip

_MODULES: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.kl_div: nn.KLDivLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
}


def per_sample_loss(loss_fn: LossFunction, outputs: Any, targets: Batch, where: str = "per_sample_loss") -> Tensor:
    """Loss of every sample, (N,), each as if its sample were the whole batch.

    Args:
        loss_fn: an ``nn.Module`` with a ``reduction`` ("mean" or "sum" then run over the sample's own
            positions and outputs, ``ignore_index`` respected), or a callable that returns one loss per sample.
        outputs: what the model returned, (N, ...); an object with ``logits`` stands for those.
        targets: as ``loss_fn`` takes them, (N, ...).
        where: the caller, for error messages.

    Returns:
        Tensor (N,) in the dtype of the loss, differentiable.

    Raises:
        InputError: a plain callable returned something else than (N,); a label is out of range.

    Example:
        >>> outputs, targets = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0])
        >>> losses = per_sample_loss(nn.CrossEntropyLoss(), outputs, targets)
        >>> bool(torch.isclose(losses.mean(), nn.CrossEntropyLoss()(outputs, targets)))
        True
    """
    check_targets(loss_fn, outputs, targets, where)
    return unchecked_loss(loss_fn, outputs, targets, where)


def unchecked_loss(loss_fn: LossFunction, outputs: Any, targets: Batch, where: str) -> Tensor:
    """``per_sample_loss`` without reading the labels, so that vmap and compilers can pass through."""
    if reduces(loss_fn):
        return _module_loss(loss_fn, logits_of(outputs), without_inference(targets), where)
    if not callable(loss_fn) or isinstance(loss_fn, type):
        expected = "`loss_fn`: a loss module, or a callable returning one loss per sample"
        raise input_error(where, expected, repr(loss_fn), "Pass nn.CrossEntropyLoss(), say")
    losses = apply_loss(loss_fn, outputs, targets)
    count = num_samples(targets, where, "targets")
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        got = "a scalar" if isinstance(losses, Tensor) and losses.dim() == 0 else got
        raise input_error(
            where,
            f"one loss per sample, shape ({count},), from the callable `loss_fn`",
            got,
            "Compute it with reduction='none' and reduce all axes but the first",
        )
    if not losses.is_floating_point():
        got, remedy = str(losses.dtype), "Return a loss that is differentiable, not a count"
        raise input_error(where, "losses of a floating dtype from the callable `loss_fn`", got, remedy)
    return losses


def reduces(loss_fn: Any) -> TypeGuard[nn.Module]:
    """Whether a loss is a module that says by its ``reduction`` how it sums up a batch."""
    return isinstance(loss_fn, nn.Module) and hasattr(loss_fn, "reduction")


def as_module(loss_fn: Any) -> Any:
    """The module that is the same loss as a function of ``torch.nn.functional``, or a partial one; all else as it is.

    Example:
        >>> from functools import partial
        >>> as_module(partial(F.cross_entropy, label_smoothing=0.1)).label_smoothing
        0.1
    """
    function, options = (loss_fn.func, loss_fn.keywords) if isinstance(loss_fn, partial) else (loss_fn, {})
    kind = _MODULES.get(function) if callable(function) and not getattr(loss_fn, "args", ()) else None
    known = kind is not None and options.keys() <= signature(kind).parameters.keys()
    return kind(**options) if known and kind is not None else loss_fn


def apply_loss(loss_fn: LossFunction, outputs: Any, targets: Batch) -> Any:
    """What a loss returns. A user's own may write to what it is given, and to its buffers: it sees copies."""
    if type(loss_fn).__module__ == nn.CrossEntropyLoss.__module__:
        return loss_fn(outputs, targets)
    if not isinstance(loss_fn, nn.Module):
        return loss_fn(copied(outputs), copied(targets))
    with stand_in(loss_fn, {name: buffer.clone() for name, buffer in loss_fn.named_buffers()}):
        return loss_fn(copied(outputs), copied(targets))


def least_loss(loss_fn: LossFunction) -> float | None:
    """The smallest value a loss can have, where that is known: 0 of cross-entropy, squared error and their like.

    Of a loss that is not among them its own attribute ``least_loss``, if it has one. Densities have no such value, and
    a callable may add what it likes.

    Example:
        >>> least_loss(nn.MSELoss()), least_loss(nn.GaussianNLLLoss()) is None
        (0.0, True)
    """
    if type(loss_fn) in _NEVER_NEGATIVE:
        return 0.0
    own = getattr(loss_fn, "least_loss", None)
    return float(own) if isinstance(own, int | float) and math.isfinite(own) else None


def check_finite(values: Tensor, where: str, what: str = "loss") -> None:
    """Refuse losses (N,) or readouts (N, C) that are NaN or infinite, naming the first such sample."""
    finite = torch.isfinite(values.detach())
    if not finite.all():
        bad = (~finite).nonzero()[0]
        raise input_error(
            where,
            f"a finite {what} for every sample",
            f"{values[tuple(bad)].item()} for sample {int(bad[0])}",
            "Check that sample, its label, and whether the weights have diverged",
        )


def _module_loss(loss_fn: nn.Module, outputs: Any, targets: Batch, where: str) -> Tensor:
    reduction = loss_fn.reduction
    if type(loss_fn) is nn.CrossEntropyLoss and are_indices(targets):
        return _cross_entropy(loss_fn, outputs, targets)
    plain_bce = type(loss_fn) is nn.BCEWithLogitsLoss and loss_fn.weight is None
    if plain_bce or type(loss_fn) is nn.MSELoss:
        if plain_bce:
            each = F.binary_cross_entropy_with_logits(
                outputs,
                targets,
                reduction="none",
                pos_weight=loss_fn.pos_weight,  # type: ignore[arg-type]
            )
        else:
            each = F.mse_loss(outputs, targets, reduction="none")
        each = each.flatten(1) if each.dim() > 1 else each.unsqueeze(1)
        if reduction == "none" and each.shape[1] > 1:
            raise _ambiguous_reduction(where, each)
        return each.mean(1) if reduction == "mean" else each.sum(1)
    return _batches_of_one(loss_fn, outputs, targets, where)


def _ambiguous_reduction(where: str, each: Tensor) -> Exception:
    return input_error(
        where,
        "`reduction` 'mean' or 'sum' for a loss with several terms per sample",
        f"'none' with shape {tuple(each.shape)}",
        "Choose how the terms of one sample are reduced",
    )


def _cross_entropy(loss_fn: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with class indices, outputs (N, C, ...), targets (N, ...), whole numbers of any dtype."""
    targets = targets.long()
    each = F.cross_entropy(
        outputs,
        targets,
        weight=loss_fn.weight,
        ignore_index=loss_fn.ignore_index,
        reduction="none",
        label_smoothing=loss_fn.label_smoothing,
    )
    if each.dim() == 1 and (loss_fn.reduction != "mean" or loss_fn.weight is None):
        return each
    total = each.flatten(1).sum(1) if each.dim() > 1 else each
    if loss_fn.reduction != "mean":
        return total
    counted = (targets != loss_fn.ignore_index).to(each.dtype)
    if loss_fn.weight is not None:  # torch divides by the summed class weights of the counted positions
        counted = label_weights(loss_fn.weight, targets, loss_fn.ignore_index).to(each.dtype)
    return total / (counted.flatten(1).sum(1) if counted.dim() > 1 else counted)


def label_weights(weight: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """The class weight of every label, 0 where it is ignored, whatever number stands for that."""
    kept = targets != ignored
    return weight[targets.where(kept, 0).long()] * kept


def _batches_of_one(loss_fn: nn.Module, outputs: Any, targets: Batch, where: str) -> Tensor:
    """Any other module loss, by definition: applied to each sample as a batch of one."""

    def one(output: Any, target: Batch) -> Tensor:
        return apply_loss(loss_fn, take(output, None), take(target, None))

    try:
        with quiet_vmap():
            losses = torch.func.vmap(one)(outputs, targets)
    except RuntimeError:  # a loss that vmap cannot batch (CTC, custom code)
        count = num_samples(targets, where, "targets")
        losses = torch.stack([apply_loss(loss_fn, take(outputs, [i]), take(targets, [i])) for i in range(count)])
    if losses.dim() == 2 and losses.shape[1] == 1:
        losses = losses.squeeze(1)
    if losses.dim() != 1:
        raise _ambiguous_reduction(where, losses)
    return losses
