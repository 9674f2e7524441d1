"""Where the samples are in what a forward pass made, and which of them looks as if it depended on the others.

The axis of the samples is the one that is N times as long as for one sample alone.

Row i of a recorded call's gradient is what arrives at sample i's place from all losses together: sum_j d f_j / d use_i.
It is sample i's own gradient if the terms with j != i are zero, which one backward pass from sum_j w_j f_j shows for
all samples at once: with weights that are all different, row i is then w_i times what it was. The pass leads to the
first recorded calls alone, behind which all that mixes samples must lie. The sample it points at is compared with
itself alone, which decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pullback._rng import make_generator
from pullback.functional.agreement import row_norms, sample_weights, tolerance
from pullback.functional.readout import combination
from pullback.gradients.capture.uses import Derived, Use
from pullback.gradients.rows.contract import full_precision

Projections = dict[int, dict[int, Tensor]]  # place of a use -> axis of its output -> numbers along that axis


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
    value, expected = (d.value.detach() if d.table is None else d.table[1] for d in (many, one))
    if value is expected or value.device.type == "meta":
        return True
    if value.shape != expected.shape:
        if sample_axis(value.shape, expected.shape, count) is None:
            return False
        value = sample_view(expected.shape, count)(value)
        value = value[:1] if value.stride(0) == 0 else value
    if not value.is_floating_point():
        return bool((value == expected).all())
    close, finite = tolerance(value.dtype), expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    allowed = close * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(value, expected.expand(value.shape), rtol=close, atol=allowed, equal_nan=True)


def weighted_pass(uses: list[Use], values: Tensor) -> Projections:
    """Gradients of ``sum_ic w_i u_c f_ic`` in the first recorded calls, in short; the graph is kept.

    Which axis holds the samples is not known yet: there are numbers for each that may.
    """
    count = len(values)
    front = {place: use for place, use in enumerate(uses) if use.front}
    if count == 1 or not front:
        return {}
    total = (sample_weights(count, values).unsqueeze(1) * values * combination(values.shape[1], values)).sum()
    edges: Any = [use.edge for use in front.values()]
    gradients = torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True)
    return {
        place: {axis: _along(axis, [g]) for axis, size in enumerate(g.shape) if size % count == 0}
        for place, g in zip(front, gradients, strict=True)
        if g is not None
    }


def most_dependent(
    projections: Projections,
    uses: list[Use],
    gradients: list[list[Tensor | None]],
    alone: list[Use],
    values: Tensor,
    dtype: torch.dtype,
) -> int:
    """The sample between first and last whose weighted gradient is least its own; the middle one if all are.

    Args:
        projections: of the weighted pass.
        uses: all recorded calls.
        gradients: of ``sum_i f_ic`` in each of them, for every c.
        alone: the calls for one sample alone, which show in which axis the samples are.
        values: the readout, (N, C).
        dtype: what the passes computed in, at its loosest.
    """
    count, shares = len(values), []
    if not projections or count < 3:
        return count // 2
    signs = combination(values.shape[1], values).tolist()
    weights = sample_weights(count, values).double().unsqueeze(1)
    for place, projected in projections.items():
        known = [sign * g for sign, g in zip(signs, gradients[place], strict=True) if g is not None]
        axis = sample_axis(uses[place].output_shape, alone[place].output_shape, count) if place < len(alone) else None
        if not known or axis is None or axis not in projected:
            continue
        plain, weighted = (t.unflatten(0, (count, -1)) for t in (_along(axis, known), projected[axis]))
        allowed = tolerance(dtype) * row_norms(plain) + torch.finfo(torch.float64).tiny
        shares.append(row_norms(weighted / weights - plain) / allowed)
    if not shares:
        return count // 2
    share = torch.stack(shares).amax(0).nan_to_num(nan=torch.inf)[1:-1]
    return 1 + int(share.argmax()) if float(share.max()) > 1 else count // 2


def _along(axis: int, parts: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors with fixed signs over all axes but one, in float64."""
    total: Tensor | float = 0.0
    for part in parts:
        flat = full_precision(part.movedim(axis, 0).flatten(1) if part.dim() > 1 else part.unsqueeze(1))
        signs = torch.randint(2, (flat.shape[1],), generator=make_generator(flat.shape[1]), device="cpu") * 2 - 1
        total = total + (flat @ signs.to(flat)).double()
    assert isinstance(total, Tensor)
    return total
