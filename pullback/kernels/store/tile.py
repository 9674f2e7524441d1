"""One tile of the total kernel from two blocks of captured factors, and the summaries of its layers on the way.

No layer's tile is ever whole in memory. The tile is made in small squares: the square of every layer goes to a
workspace that stays in cache, is added to the total, and meets the squares of the other layers in one product that
gives all their inner products and sums. Only layers whose gradient rows are formed (``materialise``) are made whole
first, because forming rows again for every square would cost more than the products.

Every processor makes squares of its own. The small products of a square are not worth sharing out: processors would
wait for each other at the end of each. So a square has the same bytes whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.functional.model_view import layer_of
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.joined import aligned
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.kernels.gram.parts import inner_product, mirror, parts, tiles
from pullback.kernels.gram.squares import Squares, Summed, side_of_square
from pullback.kernels.plan.kernel_plan import KernelPlan


@dataclass(frozen=True)
class Block:
    """A block of samples as tiles need it.

    Args:
        captured: gradient factors and losses.
        sums: summed gradients, parameter -> shape; of sketched layers those of the sketched rows.
        squared_norms: sum over the samples of the squared gradient norm of each layer, (L,) in float64.
        memory: the bytes the tensors were read into.
        aligned: whether the factors are written down as those of the other blocks are.
    """

    captured: Captured
    sums: dict[str, Tensor]
    squared_norms: Tensor
    memory: Tensor
    aligned: bool = True


@dataclass(frozen=True)
class TileResult:
    """A tile.

    Args:
        total: (n1, n2).
        diagonals: of every layer, (L, n); None off the diagonal.
        inner: inner products of the layers' tiles, (L, L) in float64.
        sums: of the entries of every layer's tile, (L,) in float64.
    """

    total: Tensor
    diagonals: Tensor | None
    inner: Tensor
    sums: Tensor


@without_autocast()
def check_block(captured: Captured, layers: list[str], where: str) -> tuple[dict[str, Tensor], Tensor]:
    """Summed gradients of a block, compared with the ordinary ones, and its squared gradient norms by layer."""
    checks = SumChecks(where, captured.dtype)
    sums: dict[str, Tensor] = {}
    norms = torch.zeros(len(layers), dtype=torch.float64, device="cpu")
    for part in parts(captured, None, None):
        square = part.left.squared_norms().sum(dtype=torch.float64)
        norms[layers.index(part.layer)] += square.cpu()
        rows = part.left.total(captured.combination)
        checks.add_rows(part.left, captured, rows, (captured.num_samples * square.clamp(min=0)).sqrt())
        sums |= rows
    checks.evaluate()
    return sums, norms


@without_autocast()
def make_tile(
    left: Block,
    right: Block | None,
    plan: KernelPlan,
    layers: list[str],
    where: str,
    squares: Squares,
    memory: Tensor,
) -> TileResult:
    """The tile of two blocks, or of one with itself (``right`` None), its sums checked layer by layer.

    It is written to ``memory``, bytes on the CPU, if the factors are there too.
    """
    rows, columns = left.captured, None if right is None else right.captured
    if columns is not None and right is not None and left.aligned != right.aligned:
        rows, columns = aligned(rows, columns)
    made = _layers(rows, columns, plan, layers)
    like = rows.factors[0].like
    n1, n2, count = rows.num_samples, (columns or rows).num_samples, len(layers)
    size = n1 * n2 * like.element_size()
    on_cpu = like.device.type == "cpu"
    total = memory[:size].view(like.dtype).view(n1, n2) if on_cpu else like.new_empty(n1, n2)
    diagonals = like.new_empty(count, n1) if columns is None else None

    def square(place: tuple[slice, slice]) -> Tensor:
        i, j = place
        shape = (count + 1, i.stop - i.start, j.stop - j.start)
        work = squares.workspace(like, shape[0] * shape[1] * shape[2]).view(shape)
        for out, layer in zip(work, made, strict=False):
            layer.write(out, place)
        work[count] = 1  # its products with the layers are the sums of their entries
        if diagonals is not None and i == j:
            mirror(work[:count])
            diagonals[:, i] = work[:count].diagonal(dim1=1, dim2=2)
        torch.sum(work[:count], 0, out=total[i, j])
        flat = work.view(count + 1, -1)
        products = (flat @ flat.T).double()
        if diagonals is not None and i != j:
            total[j, i] = total[i, j].T
            products *= 2
        return products

    side = side_of_square(plan, count, like.element_size(), like.device)
    places = list(tiles(n1, n2, side, symmetric=columns is None))
    products = torch.stack(squares.run(square, places)).sum(0).cpu()
    _check_sums(products[count, :count], left, right, layers, where)
    return TileResult(total, diagonals, products[:count, :count], products[count, :count])


def _layers(left: Captured, right: Captured | None, plan: KernelPlan, names: list[str]) -> list[Summed]:
    """For every layer its pieces, or its block if making it in squares would form rows again and again."""
    made = {name: Summed() for name in names}
    for part in parts(left, right, plan):
        layer = made[part.layer]
        if not part.formed:
            layer.pieces += [(each, part.tile(triangle=False)) for each in part.pieces(0)]
            continue
        add = layer.block is not None
        if layer.block is None:
            layer.block = part.left.like.new_empty(left.num_samples, (right or left).num_samples)
        part.add_to(layer.block, left.combination, add=add)
    return list(made.values())


def _check_sums(totals: Tensor, left: Block, right: Block | None, layers: list[str], where: str) -> None:
    """Per layer the sum of the tile's entries against the inner product of the blocks' summed gradients."""
    right = right or left
    checks = SumChecks(where, max(left.captured.dtype, right.captured.dtype, key=lambda d: torch.finfo(d).eps))
    counts = left.captured.num_samples * right.captured.num_samples
    bounds = (counts * (left.squared_norms * right.squared_norms).clamp(min=0)).sqrt()
    names = {layer: [name for name in left.sums if layer_of(name) == layer] for layer in layers}
    for place, layer in enumerate(layers):
        pairs = ((left.sums[name].cpu(), right.sums[name].cpu()) for name in names[layer])
        checks.add_kernel(layer, totals[place], inner_product(pairs, totals[place]), bounds[place])
    checks.evaluate()
