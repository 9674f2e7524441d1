"""Checks of a kernel: its sums against the sums of its rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.gradients.rows.contract import Contract
from pullback.gradients.rows.factor import Factor
from pullback.kernels.gram.parts import Part
from pullback.kernels.plan.kernel_plan import KernelPlan


def quadratic(block: Tensor, outputs: Tensor) -> Tensor:
    """``u^T K u`` of a block (N1 C, N2 C) whose rows are (sample, output), u = ``outputs`` for every sample."""
    signs = outputs.to(block)
    left, right = (signs.repeat(size // len(outputs)) for size in block.shape)
    return ((left @ block).double() @ right.double()).sum()


def inner_product(pairs: Iterable[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Of two sums of gradients, from those of each parameter, in float64."""
    return sum(((a * b).sum(dtype=torch.float64) for a, b in pairs), start=like.new_zeros(()))


def corner_entries(left: Factor, right: Factor, contract: Contract) -> Tensor:
    """Inner products of the rows of the first and the last sample on both sides, contracted over outputs."""
    a = [left.rows(slice(i, i + 1)) for i in (0, left.num_samples - 1)]
    b = [right.rows(slice(j, j + 1)) for j in (0, right.num_samples - 1)]
    pattern = "cm,cm->c" if contract == "diagonal" else "cm,cm->"
    each = [
        sum(torch.einsum(pattern, r[n][0].reshape(len(r[n][0]), -1), s[n][0].reshape(len(s[n][0]), -1)) for n in r)
        for r in a
        for s in b
    ]
    return torch.stack(each)  # type: ignore[arg-type]


def check_sums(
    checks: SumChecks,
    block: Tensor,
    done: list[tuple[Part, list[dict[str, Tensor]]]],
    layer: str,
    left: Captured,
    right: Captured | None,
    plan: KernelPlan,
) -> None:
    """Sums of the rows, and sums or entries of the block, against the ordinary gradients of both sides."""
    sides = [left] if right is None else [left, right]
    if right is None:
        squares = [block.diagonal(dim1=-2, dim2=-1).sum(dtype=torch.float64)]
    else:
        factors = ([part.left for part, _ in done], [part.right for part, _ in done])
        squares = [torch.stack([f.squared_norms().sum() for f in side if f is not None]).sum() for side in factors]
    counts = [side.num_samples * side.num_outputs for side in sides]
    bounds = [(count * square.clamp(min=0)).sqrt() for count, square in zip(counts, squares, strict=True)]
    if plan.contract == "full":
        found = quadratic(block, left.combination)
        inner = inner_product(((totals[0][name], totals[-1][name]) for _, totals in done for name in totals[0]), found)
    checks.parts += [(part.layer, part.left) for part, _ in done]
    for part, totals in done:
        for side, factor, total, bound in zip(sides, (part.left, part.right), totals, bounds, strict=False):
            assert factor is not None
            checks.add_totals(factor, side, total, bound)
    if plan.contract == "full":
        checks.add_kernel(layer, found, inner, bounds[0] * bounds[-1])
        return
    expected = torch.stack([corner_entries(p.left, p.right or p.left, plan.contract) for p, _ in done]).sum(0)
    last = [0, block.shape[-2] - 1], [0, block.shape[-1] - 1]
    found = torch.stack([block[..., i, j] for i in last[0] for j in last[1]])
    checks.add_entries(layer, found, expected, bounds[0] * bounds[-1] / (counts[0] * counts[-1]) ** 0.5, block)
