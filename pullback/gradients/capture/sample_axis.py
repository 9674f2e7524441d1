"""Where the samples are in what a forward pass made: the axis that is N times as long as for one sample alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback.functional.agreement import tolerance
from pullback.gradients.capture.uses import Derived


def sample_axis(many: torch.Size, one: torch.Size, count: int) -> int | None:
    """The axis that is ``count`` times as long for ``count`` samples as for one; None if it is not that simple."""
    if len(many) != len(one):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(many, one, strict=True)) if a != b]
    if count == 1:
        return 0 if not grown else None
    return grown[0] if len(grown) == 1 and many[grown[0]] == count * one[grown[0]] else None


def sample_view(one: torch.Size, count: int) -> Callable[[Tensor], Tensor]:
    """Takes a tensor with ``count`` samples in some axis to (count, *one)."""

    def view(tensor: Tensor) -> Tensor:
        axis = sample_axis(tensor.shape, one, count)
        if axis is None:
            return tensor
        return tensor.unflatten(axis, (count, one[axis])).movedim(axis, 0)

    return view


def by_sample(gradients: list[Tensor | None], one: torch.Size, count: int) -> Tensor:
    """Gradients of every output as (N, C, *output shape for a batch of one), without a copy where they lie so."""
    known = next(g for g in gradients if g is not None)
    axis, base = sample_axis(known.shape, one, count), known._base
    if len(gradients) > 1 and axis == 0 and base is not None and base.shape[1] == len(gradients):
        return base.unflatten(0, (count, one[0])).movedim(2, 1)
    each = [sample_view(one, count)(torch.zeros_like(known) if g is None else g) for g in gradients]
    return each[0].unsqueeze(1) if len(each) == 1 else torch.stack(each, 1)


def shared_by_all(many: Derived, one: Derived, count: int) -> bool:
    """Whether a tensor taken to be computed from parameters alone is the same for all samples.

    Code that shows in no call (compiled by TorchScript) may have computed it from samples as well.
    """
    found, expected = (d.value.detach() if d.table is None else d.table[1] for d in (many, one))
    if found is expected or found.device.type == "meta":
        return True
    if found.shape != expected.shape:
        if sample_axis(found.shape, expected.shape, count) is None:
            return False
        found = sample_view(expected.shape, count)(found)
        found = found[:1] if found.stride(0) == 0 else found
    if not found.is_floating_point():
        return bool((found == expected).all())
    close, finite = tolerance(found.dtype), expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    allowed = close * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(found, expected.expand(found.shape), rtol=close, atol=allowed, equal_nan=True)
