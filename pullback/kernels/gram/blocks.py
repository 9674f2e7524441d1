"""From captured factors to a kernel: the plan's forms run layer by layer, and their sums checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.kernels.gram.parts import Part, check_sums, mirror, new_block, parts
from pullback.kernels.plan.kernel_plan import KernelPlan


@dataclass
class Blocks:
    """A kernel being made: the total, and one block a layer if the plan keeps them."""

    total: Tensor | None
    layers: dict[str, Tensor]


@without_autocast()
def assemble(
    left: Captured, right: Captured | None, plan: KernelPlan, where: str, blocks: Blocks | None = None
) -> Blocks:
    """Run a plan over captured factors and check the sums; with ``blocks`` add to those of an earlier pass.

    Args:
        left: rows.
        right: columns, ``aligned`` with the rows; None for the symmetric kernel.
        plan: forms of all layers.
        where: the caller.
        blocks: of an earlier pass, over other layers.

    Returns:
        Blocks laid out as ``Products`` says, symmetric to the bit if ``right`` is None.
    """
    if right is not None and right.num_outputs != left.num_outputs:
        raise input_error(
            where,
            "as many outputs or positions of a sample in `x2` as in `x`",
            f"{right.num_outputs} and {left.num_outputs}",
            "Pad both to one length with ignored labels",
        )
    dtypes = [side.dtype for side in (left, right) if side is not None]
    checks = SumChecks(where, max(dtypes, key=lambda d: torch.finfo(d).eps))
    blocks = blocks or Blocks(None, {})
    if plan.keep_layers:
        _layer_by_layer(blocks, left, right, plan, checks)
    else:
        _all_at_once(blocks, left, right, plan, checks)
    checks.evaluate()
    return blocks


def _layer_by_layer(
    blocks: Blocks, left: Captured, right: Captured | None, plan: KernelPlan, checks: SumChecks
) -> None:
    """One block a layer, each checked on its own."""
    for part in parts(left, right, plan):
        block = new_block(left, right, plan.contract)
        totals = part.add_to(block, left.combination, add=False)
        if right is None:
            mirror(block)
        check_sums(checks, block, [(part, totals)], part.layer, left, right, plan)
        known = blocks.layers.get(part.layer)
        blocks.layers[part.layer] = block if known is None else known.add_(block)
        blocks.total = block.clone() if blocks.total is None else blocks.total.add_(block)


def _all_at_once(blocks: Blocks, left: Captured, right: Captured | None, plan: KernelPlan, checks: SumChecks) -> None:
    """All layers added up in one block, which is checked as a whole."""
    block = new_block(left, right, plan.contract)
    done: list[tuple[Part, list[dict[str, Tensor]]]] = []
    for part in parts(left, right, plan):
        done.append((part, part.add_to(block, left.combination, add=bool(done))))
    if right is None:
        mirror(block)
    check_sums(checks, block, done, "all layers", left, right, plan)
    blocks.total = block if blocks.total is None else blocks.total.add_(block)


@without_autocast()
def partial_block(left: Captured, right: Captured | None, plan: KernelPlan, names: Iterable[str]) -> Tensor:
    """The block of some parameters alone."""
    block = new_block(left, right, plan.contract)
    for place, part in enumerate(parts(left, right, plan, names)):
        part.add_to(block, left.combination, add=place > 0)
    if right is None:
        mirror(block)
    return block
