"""The Gram matrix of captured rows without the blocks of single layers, in small squares that stay in cache.

Every processor makes squares of its own: all layers are added up in one of them before it is written once, and once
more above the diagonal. Layers whose gradient rows are formed are added whole before, as rows formed again for every
square would cost more than the products.
"""

from __future__ import annotations

from torch import Tensor

from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.gradients.rows.pieces import Piece
from pullback.kernels.gram.kernel_sums import check_sums
from pullback.kernels.gram.parts import fill, mirror, new_block, parts, scaled, tiles, within
from pullback.kernels.gram.squares import SMALLEST_SQUARE, Squares
from pullback.kernels.plan.forms import TILE_ROWS
from pullback.kernels.plan.kernel_plan import KernelPlan

SQUARES = 6  # along a side at least, so that processors end together and little is made twice on the diagonal


def total_gram(captured: Captured, plan: KernelPlan, where: str) -> Tensor:
    """G G^T of all rows, (N C, N C), symmetric to the bit, its sums checked as a whole.

    Args:
        captured: rows of N samples with C values.
        plan: the forms of the layers; contract "full".
        where: the caller.

    Raises:
        SelfCheckError: the sums contradict the ordinary gradient.
    """
    n, C = captured.num_samples, captured.num_outputs
    checks = SumChecks(where, captured.dtype)
    out = new_block(captured, None, plan.contract)
    pieces: list[tuple[tuple[Piece, ...], int]] = []
    done, add = [], False
    for part in parts(captured, None, plan):
        if part.formed:
            done.append((part, part.add_to(out, captured.combination, add=add)))
            add = True
            continue
        tile = part.tile(triangle=False)
        pieces += [(each, tile) for each in part.pieces(0)]
        rows = part.left.total(captured.combination)
        done.append((part, [{name: part.left.piece_order(name, row) for name, row in rows.items()}]))
    side = max(1, min(TILE_ROWS, max(SMALLEST_SQUARE, -(-n * C // SQUARES))) // C)

    def square(place: tuple[slice, slice]) -> None:
        i, j = place
        shape = (i.stop - i.start) * C, (j.stop - j.start) * C
        work = squares.workspace(out, shape[0] * shape[1]).view(shape)
        target = out[scaled(i, C), scaled(j, C)]
        begun = add
        if begun:
            work.copy_(target)
        for each, tile in pieces:
            fill(work, each, within(place, tile), "full", corner=(i.start, j.start), rows_each=C, add=begun)
            begun = True
        if not begun:
            work.zero_()
        if i == j:
            mirror(work)
        else:
            out[scaled(j, C), scaled(i, C)] = work.T
        target.copy_(work)

    places = list(tiles(n, n, side, symmetric=True))
    with Squares(out.device) as squares:
        squares.run(square, places)
    check_sums(checks, out, done, "all layers", captured, None, plan)
    checks.evaluate()
    return out
