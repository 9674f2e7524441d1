"""The loss a loop computes for a whole batch, read as the losses of its samples.

By definition the loss of sample i is that of the batch that holds only sample i. Whether the loop's loss is made of
those is not taken on trust: it is computed for some samples of the batch at hand, and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback._checks import PullbackError, input_error
from pullback.functional import LossFunction, num_samples
from pullback.functional.batch import Batch, filled, tensors
from pullback.functional.losses import apply_loss, check_finite, reduces, unchecked_loss
from pullback.functional.target_checks import check_targets, logits_of
from pullback.monitor.per_sample_loss import Alone, Call
from pullback.monitor.reduction import Evaluated, Reduction, are_spread, mean_or_sum, refuse_broadcast, weighted

PER_SAMPLE = "Pass a `loss_fn` that returns one loss per sample: reduction='none', and the mean over all later axes"


def read(
    loss_fn: LossFunction, outputs: Any, targets: Batch, merged: tuple[bool, ...]
) -> tuple[LossFunction, Reduction]:
    """A loss per sample, and how the loop's loss is made of them.

    Where the loss cannot be called with outputs and targets as they are, the loop has changed them before: flattened,
    cast or reshaped, of which the first that can be called is taken.

    Raises:
        InputError: there is no such loss.
    """
    first: Exception | None = None
    for change in (_as_they_are, _as_classes, _as_outputs):
        alone = Alone(_call_of(loss_fn, change), merged)
        try:
            value = _evaluated(alone.of_batch, outputs, targets)
        except Exception as error:
            first = first or _first_error(loss_fn, outputs, targets, error)
            if isinstance(error, IndexError):  # a label that is none: changed, it might pass for something else
                break
            continue
        return _formed(loss_fn, alone, value, outputs, targets, changed=change is not _as_they_are)
    assert first is not None
    raise first


def _call_of(loss_fn: LossFunction, change: Callable[[Any, Batch], tuple[Any, Batch]]) -> Call:
    of_logits = reduces(loss_fn)

    def call(outputs: Any, targets: Batch) -> Any:
        return apply_loss(loss_fn, *change(logits_of(outputs) if of_logits else outputs, targets))

    return call


def _as_they_are(outputs: Any, targets: Batch) -> tuple[Any, Batch]:
    return outputs, targets


def _as_classes(outputs: Any, targets: Batch) -> tuple[Any, Batch]:
    """Every position a row: scores (M, C), labels (M,)."""
    outputs = logits_of(outputs)
    if outputs.dim() < 2 or outputs[..., 0].numel() != targets.numel() or outputs.shape[-1] == 1:
        raise ValueError
    labels = targets if _is_functional(targets) else _as_labels(targets)
    return outputs.flatten(0, -2), labels.flatten().long()


def _as_labels(targets: Tensor) -> Tensor:
    if targets.is_floating_point() and not torch.equal(targets, targets.round()):
        raise ValueError
    return targets


def _as_outputs(outputs: Any, targets: Batch) -> tuple[Any, Batch]:
    """Targets of the outputs' shape and kind of number."""
    outputs = logits_of(outputs)
    if outputs.numel() != targets.numel():
        raise ValueError
    return outputs, targets.reshape(outputs.shape).to(outputs.dtype)


def _is_functional(tensor: Tensor) -> bool:
    return torch._C._functorch.is_batchedtensor(tensor)  # no data can be read then


def _evaluated(call: Call, outputs: Any, targets: Batch) -> Evaluated:
    """A loss, and its gradient in the outputs; a loss that has none is not the loop's."""
    leaves = [leaf.detach() for leaf in tensors(outputs)]
    leaves = [leaf.requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
    with torch.enable_grad():
        value = call(filled(outputs, leaves), targets)
        if not isinstance(value, Tensor):
            raise input_error("Monitor", "a loss that is a tensor", type(value).__name__, PER_SAMPLE)
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        slopes = torch.autograd.grad(value.sum(), inputs, materialize_grads=True)
    return value.detach(), list(slopes)


def _formed(
    loss_fn: LossFunction,
    alone: Alone,
    whole: Evaluated,
    outputs: Any,
    targets: Batch,
    *,
    changed: bool,
) -> tuple[LossFunction, Reduction]:
    """The loss per sample of one way to call it, if the batch's is made of those."""
    count, value = num_samples(targets), whole[0]
    given = not changed and not any(alone.merged)
    if value.dim() and given and (reduces(loss_fn) or value.shape == (count,)):
        return loss_fn, "mean"  # one loss per sample, as it is asked for
    each = _evaluated(alone, outputs, targets)
    if each[0].shape != (count,):
        raise input_error(
            "Monitor", f"a scalar or one loss per sample, shape ({count},)", f"{tuple(value.shape)}", PER_SAMPLE
        )
    if value.dim():
        return alone, "mean"
    known = given and reduces(loss_fn) and _takes(loss_fn, outputs, targets)
    finite = bool(value.isfinite())
    if finite and known and not bool(each[0].isfinite().all()):  # samples none of whose labels count have the loss 0
        each = _evaluated(partial(unchecked_loss, loss_fn, where="Monitor"), outputs, targets)
    mixes = finite and not bool(each[0].isfinite().all())  # alone a sample has no number, here it has
    if not mixes:
        check_finite(each[0], "Monitor")
    z, y = logits_of(outputs), targets
    if not changed and isinstance(z, Tensor) and isinstance(y, Tensor) and are_spread(z, y):
        refuse_broadcast(alone, Alone(_call_of(loss_fn, _as_outputs), alone.merged), z, y)
    reduction = None if mixes else mean_or_sum(value, each[0]) or weighted(whole, each)
    if reduction is None:
        raise input_error(
            "Monitor",
            "a loss of the batch that is the mean or the sum of its samples' own",
            f"{float(value):.6g} for {count} samples, {_own(each[0])}",
            PER_SAMPLE,
        )
    return (loss_fn if known else alone), reduction


def _own(each: Tensor) -> str:
    """What the samples' own losses are, in words."""
    if not bool(each.isfinite().all()):
        first = int((~each.isfinite()).nonzero()[0])
        return f"of which sample {first} alone has {float(each[first]):.6g}, as one without a label that counts has"
    return f"whose own have the mean {float(each.mean()):.6g} and the sum {float(each.sum()):.6g}"


def _takes(loss_fn: LossFunction, outputs: Any, targets: Batch) -> bool:
    """Whether the loss is one the package knows how to apply sample by sample to these."""
    try:
        check_targets(loss_fn, outputs, targets, "Monitor")
    except PullbackError:
        return False
    return True


def _first_error(loss_fn: LossFunction, outputs: Any, targets: Batch, error: Exception) -> Exception:
    """What is wrong with outputs and targets as they are, in the package's words where it has some."""
    if isinstance(error, PullbackError):
        return error
    if isinstance(targets, Tensor):
        try:
            check_targets(loss_fn, outputs, targets, "Monitor")
        except PullbackError as known:
            return known
    return input_error(
        "Monitor",
        "a loss of the model's outputs and of the targets that `step` is given",
        f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
        PER_SAMPLE,
    )
