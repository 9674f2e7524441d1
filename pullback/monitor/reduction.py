"""How a loss of a batch is made of its samples' own: their mean, their sum, or a mean with weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pullback._checks import InputError
from pullback._rng import make_generator
from pullback.functional.agreement import tolerance
from pullback.monitor.per_sample_loss import Alone

Reduction = Literal["mean", "sum", "weighted mean"]
Evaluated = tuple[Tensor, list[Tensor]]  # a loss, and its gradient in every tensor of the outputs


class BroadcastError(InputError):
    """Targets and outputs whose shapes are spread over each other, sample over sample.

    Attributes:
        shapes: of the ``outputs`` and of the ``targets``.
    """

    shapes: dict[str, list[int]]


def mean_or_sum(value: Tensor, each: Tensor) -> Reduction | None:
    """Which of the two a loss is of its samples' own, (N,), as far as the dtype tells; the mean, where it is both."""
    each, allowed = each.double(), tolerance(value.dtype)
    if bool((value - each.mean()).abs() <= allowed * each.abs().mean()):
        return "mean"
    return "sum" if bool((value - each.sum()).abs() <= allowed * each.abs().sum()) else None


def weighted(whole: Evaluated, each: Evaluated) -> Reduction | None:
    """Whether the loss is a mean with weights that do not follow the outputs (of classes, of positions that count).

    Then its gradient in each sample's outputs is that sample's own, times its weight: none, where it has no loss.
    """
    count, allowed = len(each[0]), tolerance(whole[0].dtype)
    rows = [
        torch.cat([s.reshape(count, -1).double() for s in slopes if s.dim() and len(s) == count], 1)
        for slopes in (whole[1], each[1])
    ]
    without = (each[0] == 0) & (rows[1] == 0).all(1)
    weights = torch.where(without, 0, (rows[0] * rows[1]).sum(1) / rows[1].square().sum(1))
    parts = weights * each[0].double()
    alike = (rows[0] - weights.unsqueeze(1) * rows[1]).norm(dim=1) <= allowed * rows[0].norm(dim=1)
    sums = (weights.sum() - 1).abs() <= allowed and (parts.sum() - whole[0]).abs() <= allowed * parts.abs().sum()
    return "weighted mean" if bool(alike.all()) and bool((without | (weights > 0)).all()) and sums else None


def are_spread(z: Tensor, y: Tensor) -> bool:
    """Whether outputs and targets, as many numbers each, would become more when one is put against the other."""
    if z.numel() != y.numel() or z.shape == y.shape or len(z) < 2:
        return False
    try:
        return torch.broadcast_shapes(z.shape, y.shape).numel() > z.numel()
    except RuntimeError:
        return False


def refuse_broadcast(alone: Alone, shaped: Alone, z: Tensor, y: Tensor) -> None:
    """Refuse a loss of every output with every target, found with drawn targets: equal ones would not show it.

    Args:
        alone: the loss as the loop calls it.
        shaped: the same, with targets of the outputs' shape.
        z: outputs.
        y: targets.

    Raises:
        BroadcastError: each sample's own loss is what the batch's would be only after the targets are given that shape.
    """
    drawn = torch.rand(y.shape, generator=make_generator(0), device="cpu").to(y) if y.is_floating_point() else y
    value, own = alone.of_batch(z, drawn), alone(z, drawn)
    if mean_or_sum(value, own) is not None:
        return
    if mean_or_sum(shaped.of_batch(z, drawn), own) is not None:
        message = (
            f"Monitor: expected targets of the outputs' shape, {tuple(z.shape)}, got {tuple(y.shape)}: the loss "
            f"spreads them to {tuple(torch.broadcast_shapes(z.shape, y.shape))}, every output against every target. "
            f"Use `y.view({', '.join(map(str, (-1, *z.shape[1:])))})` in the loop's loss and in `monitor.step`."
        )
        error = BroadcastError(message)
        error.shapes = {"outputs": list(z.shape), "targets": list(y.shape)}
        raise error
