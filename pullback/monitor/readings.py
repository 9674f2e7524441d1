"""The loss a loop computes for a whole batch, read as the losses of its samples.

By definition the loss of sample i is that of the batch that holds only sample i. Whether the loop's loss is made of
those is not taken on trust: it is computed for some samples of the batch at hand, and compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pullback._checks import InputError, PullbackError, input_error
from pullback._rng import make_generator
from pullback.functional import LossFunction, num_samples
from pullback.functional.agreement import tolerance
from pullback.functional.batch import Batch, filled, quiet_vmap, tensors
from pullback.functional.losses import apply_loss, check_finite, check_targets, logits_of, reduces

Reduction = Literal["mean", "sum", "weighted mean"]
Call = Callable[[Any, Batch], Any]  # outputs and targets, as the loop has them, to what the loss returns

PER_SAMPLE = "Pass a `loss_fn` that returns one loss per sample: reduction='none', and the mean over all later axes"


class BroadcastError(InputError):
    """Targets and outputs whose shapes are spread over each other, sample over sample.

    Attributes:
        shapes: of the ``outputs`` and of the ``targets``.
    """

    shapes: dict[str, list[int]]


@dataclass(frozen=True)
class Alone:
    """A loss of a batch as one loss per sample, (N,): that of each sample as a batch of one.

    Args:
        call: the loss, of outputs and targets shaped as the loop has them.
        merged: of every tensor of outputs and targets, whether the loop has a sample's positions as rows of their own,
            (N T, ...); here it is (N, T, ...).
    """

    call: Call
    merged: tuple[bool, ...]

    def __call__(self, outputs: Any, targets: Batch) -> Tensor:
        """Losses (N,), differentiable."""
        leaves, count = [*tensors(outputs), *tensors(targets)], num_samples(targets)
        own = [leaf.dim() > 0 and len(leaf) == count for leaf in leaves]

        def one(*rows: Tensor) -> Tensor:
            given = [_alone(*each) for each in zip(rows, own, self.merged, strict=True)]
            value = self._called(outputs, targets, given)
            return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value

        axes = tuple(0 if each else None for each in own)
        try:
            with quiet_vmap():
                return torch.func.vmap(one, axes)(*leaves)
        except RuntimeError:  # a loss that vmap cannot batch
            rows = ([leaf[i] if each else leaf for leaf, each in zip(leaves, own, strict=True)] for i in range(count))
            return torch.stack([one(*row) for row in rows])

    def whole(self, outputs: Any, targets: Batch) -> Any:
        """What the loop's loss returns for the batch."""
        leaves = [*tensors(outputs), *tensors(targets)]
        given = [leaf.flatten(0, 1) if merged else leaf for leaf, merged in zip(leaves, self.merged, strict=True)]
        return self._called(outputs, targets, given)

    def _called(self, outputs: Any, targets: Batch, given: list[Tensor]) -> Any:
        count = len(tensors(outputs))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a target size")  # the loop has heard it
            return self.call(filled(outputs, given[:count]), filled(targets, given[count:]))


def _alone(row: Tensor, own: bool, merged: bool) -> Tensor:
    if own:
        return row if merged else row.unsqueeze(0)
    return torch.full_like(row, torch.nan) if row.is_floating_point() else row  # the batch's own belongs to no sample


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
            value = _evaluated(alone.whole, outputs, targets)
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


def _evaluated(call: Call, outputs: Any, targets: Batch) -> tuple[Tensor, list[Tensor]]:
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
    whole: tuple[Tensor, list[Tensor]],
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
    check_finite(each[0], "Monitor")
    z, y = logits_of(outputs), targets
    if not changed and isinstance(z, Tensor) and isinstance(y, Tensor) and _spread(z, y):
        _refuse_broadcast(alone, loss_fn, z, y)
    found = _reduction(value, each[0]) or _weighted(whole, each)
    if found is None:
        raise input_error(
            "Monitor",
            "a loss of the batch that is the mean or the sum of its samples' own",
            f"{float(value):.6g} for {count} samples, whose own have the mean {float(each[0].mean()):.6g} and the sum "
            f"{float(each[0].sum()):.6g}",
            PER_SAMPLE,
        )
    return (loss_fn if given and reduces(loss_fn) and _takes(loss_fn, outputs, targets) else alone), found


def _takes(loss_fn: LossFunction, outputs: Any, targets: Batch) -> bool:
    """Whether the loss is one the package knows how to apply sample by sample to these."""
    try:
        check_targets(loss_fn, outputs, targets, "Monitor")
    except PullbackError:
        return False
    return True


def _reduction(value: Tensor, each: Tensor) -> Reduction | None:
    each, allowed = each.double(), tolerance(value.dtype)
    if bool((value - each.mean()).abs() <= allowed * each.abs().mean()):
        return "mean"
    return "sum" if bool((value - each.sum()).abs() <= allowed * each.abs().sum()) else None


def _weighted(whole: tuple[Tensor, list[Tensor]], each: tuple[Tensor, list[Tensor]]) -> Reduction | None:
    """Whether the loss is a mean with weights that do not follow the outputs (of classes, of positions that count).

    Then its gradient in each sample's outputs is that sample's own, times its weight.
    """
    count, allowed = len(each[0]), tolerance(whole[0].dtype)
    rows = [
        torch.cat([s.reshape(count, -1).double() for s in slopes if s.dim() and len(s) == count], 1)
        for slopes in (whole[1], each[1])
    ]
    weights = (rows[0] * rows[1]).sum(1) / rows[1].square().sum(1)
    parts = weights * each[0].double()
    alike = (rows[0] - weights.unsqueeze(1) * rows[1]).norm(dim=1) <= allowed * rows[0].norm(dim=1)
    sums = (weights.sum() - 1).abs() <= allowed and (parts.sum() - whole[0]).abs() <= allowed * parts.abs().sum()
    return "weighted mean" if bool(alike.all()) and bool((weights > 0).all()) and sums else None


def _spread(z: Tensor, y: Tensor) -> bool:
    """Whether outputs and targets, as many numbers each, would become more when one is put against the other."""
    if z.numel() != y.numel() or z.shape == y.shape or len(z) < 2:
        return False
    try:
        return torch.broadcast_shapes(z.shape, y.shape).numel() > z.numel()
    except RuntimeError:
        return False


def _refuse_broadcast(alone: Alone, loss_fn: LossFunction, z: Tensor, y: Tensor) -> None:
    """Refuse a loss of every output with every target, found with drawn targets: equal ones would not show it."""
    drawn = torch.rand(y.shape, generator=make_generator(0)).to(y) if y.is_floating_point() else y
    value, own = alone.whole(z, drawn), alone(z, drawn)
    if _reduction(value, own) is not None:
        return
    shaped = Alone(_call_of(loss_fn, _as_outputs), alone.merged)
    if _reduction(shaped.whole(z, drawn), own) is not None:
        message = (
            f"Monitor: expected targets of the outputs' shape, {tuple(z.shape)}, got {tuple(y.shape)}: the loss "
            f"spreads them to {tuple(torch.broadcast_shapes(z.shape, y.shape))}, every output against every target. "
            f"Use `y.view({', '.join(map(str, (-1, *z.shape[1:])))})` in the loop's loss and in `monitor.step`."
        )
        error = BroadcastError(message)
        error.shapes = {"outputs": list(z.shape), "targets": list(y.shape)}
        raise error


def _first_error(loss_fn: LossFunction, outputs: Any, targets: Batch, error: Exception) -> Exception:
    """What is wrong with outputs and targets as they are, in the package's words where it has some."""
    if isinstance(error, PullbackError):
        return error
    try:
        check_targets(loss_fn, outputs, targets, "Monitor")
    except PullbackError as known:
        return known
    except Exception:  # targets that are no tensor
        pass
    return input_error(
        "Monitor",
        "a loss of the model's outputs and of the targets that `step` is given",
        f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
        PER_SAMPLE,
    )
