"""From captured factors to a kernel: the plan's forms run layer by layer, and their sums checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional.model_view import layer_of
from pullback.kernels.captured import UNSEEN, Captured
from pullback.kernels.checks import SumChecks, corner_entries, quadratic
from pullback.kernels.factors import DenseFactor, Factor
from pullback.kernels.forms import tile_rows
from pullback.kernels.gram import add_gram, block_shape, mirror
from pullback.kernels.plan import KernelPlan, form_of


@dataclass(frozen=True)
class Part:
    """Rows of one layer (or the part of it that is in one factor), of both sides."""

    layer: str
    left: Factor
    right: Factor | None


@dataclass
class Blocks:
    """A kernel being made: the total, and one block a layer if the plan keeps them."""

    total: Tensor | None
    layers: dict[str, Tensor]


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
        Blocks laid out as ``block_shape`` says, symmetric to the bit if ``right`` is None.
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
    for part in parts(left, right):
        block = new_block(left, right, plan)
        totals = run_part(block, part, plan, left.combination, add=False)
        if right is None:
            mirror(block)
        check_sums(checks, block, [(part, totals)], part.layer, left, right, plan)
        known = blocks.layers.get(part.layer)
        blocks.layers[part.layer] = block if known is None else known.add_(block)
        blocks.total = block.clone() if blocks.total is None else blocks.total.add_(block)


def _all_at_once(blocks: Blocks, left: Captured, right: Captured | None, plan: KernelPlan, checks: SumChecks) -> None:
    """All layers added up in one block, which is checked as a whole."""
    block = new_block(left, right, plan)
    done: list[tuple[Part, list[dict[str, Tensor]]]] = []
    for part in parts(left, right):
        done.append((part, run_part(block, part, plan, left.combination, add=bool(done))))
    if right is None:
        mirror(block)
    check_sums(checks, block, done, "all layers", left, right, plan)
    blocks.total = block if blocks.total is None else blocks.total.add_(block)


def new_block(left: Captured, right: Captured | None, plan: KernelPlan) -> Tensor:
    """An empty block of the kernel."""
    n1, n2 = left.num_samples, (right or left).num_samples
    return left.factors[0].like.new_empty(block_shape(n1, n2, left.num_outputs, plan.contract))


def run_part(block: Tensor, part: Part, plan: KernelPlan, outputs: Tensor, *, add: bool) -> list[dict[str, Tensor]]:
    """One layer's tiles; of a symmetric block the lower triangle."""
    form = form_of(plan, part.left)
    tile = tile_rows(part.left, form, plan.contract)
    most = min(plan.piece_bytes, part.left.piece_bytes)
    return add_gram(block, part.left, part.right, form, plan.contract, most, tile, outputs, add=add)


def parts(left: Captured, right: Captured | None, only: Iterable[str] | None = None) -> Iterator[Part]:
    """Factors split where they span layers (the fallback and unused ones do), or down to the parameters ``only``."""
    others: list[Factor | None] = [None] * len(left.factors) if right is None else list(right.factors)
    wanted = None if only is None else set(only)
    for factor, other in zip(left.factors, others, strict=True):
        names = [n for n in factor.shapes if wanted is None or n in wanted]
        if len(names) == len(factor.shapes) and len({layer_of(n) for n in names}) == 1:
            yield Part(layer_of(names[0]), factor, other)
        else:
            for name in names:
                yield Part(layer_of(name), factor.only(name), other and other.only(name))


def partial_block(left: Captured, right: Captured | None, plan: KernelPlan, names: Iterable[str]) -> Tensor:
    """The block of some parameters alone."""
    block = new_block(left, right, plan)
    add = False
    for part in parts(left, right, names):
        run_part(block, part, plan, left.combination, add=add)
        add = True
    if right is None:
        mirror(block)
    return block


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
    checks.parts += [(part.layer, part.left) for part, _ in done]
    for part, totals in done:
        for side, factor, total, bound in zip(sides, (part.left, part.right), totals, bounds, strict=False):
            assert factor is not None
            checks.add_totals(factor, side, total, bound)
    if plan.contract == "full":
        pairs = [(totals[0][name], totals[-1][name]) for _, totals in done for name in totals[0]]
        mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        checks.add_kernel(layer, quadratic(block, left.combination), mine, theirs, bounds[0] * bounds[-1])
        return
    expected = torch.stack([corner_entries(p.left, p.right or p.left, plan.contract) for p, _ in done]).sum(0)
    last = [0, block.shape[-2] - 1], [0, block.shape[-1] - 1]
    found = torch.stack([block[..., i, j] for i in last[0] for j in last[1]])
    checks.add_entries(layer, found, expected, bounds[0] * bounds[-1] / (counts[0] * counts[-1]) ** 0.5, block)


def aligned(*sides: Captured) -> list[Captured]:
    """Captures of one model with their factors in the same order and of the same kinds.

    Parameters whose gradients were written down differently (another path through the model, a batch of one) become
    plain rows on all sides.
    """
    first = sides[0]
    keys = [[(rule, *f.shapes) for f, rule in zip(side.factors, side.rules, strict=True)] for side in sides]
    common = [key for key in keys[0] if all(key in other for other in keys[1:])]
    named = {name for key in common for name in key[1:]}
    rest = [name for name in first.view.parameters if name not in named]
    made = []
    for place, side in enumerate(sides):
        by_key = dict(zip(keys[place], side.factors, strict=True))
        rows = [_rows_of(side, name) for name in rest]
        factors = (*(by_key[key] for key in common), *rows)
        made.append(replace(side, factors=factors, rules=(*(str(key[0]) for key in common), *["rows"] * len(rows))))
    return made


def _rows_of(side: Captured, name: str) -> Factor:
    factor = next(f for f in side.factors if name in f.shapes)
    return DenseFactor({name: factor.rows(slice(0, factor.num_samples))[name]})


def forward_order(captured: Captured) -> list[str]:
    """Layers in the order of first use; those whose use was not seen follow their predecessor in the model."""
    named = [
        (layer_of(n), r in UNSEEN) for f, r in zip(captured.factors, captured.rules, strict=True) for n in f.shapes
    ]
    order = list(dict.fromkeys(layer for layer, unseen in named if not unseen))
    defined = list(captured.view.layers)
    for place, layer in enumerate(defined):
        if layer not in order:
            order.insert(order.index(defined[place - 1]) + 1 if place else 0, layer)
    return order
