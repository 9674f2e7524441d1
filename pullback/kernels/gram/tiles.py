"""Ranges of tiles, the one place where they are filled, and the mirror that makes symmetry exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from pullback.gradients.rows.contract import Contract
from pullback.gradients.rows.pieces import Piece

Place = tuple[slice, slice]  # rows and columns, in samples


def fill(
    out: Tensor,
    pieces: tuple[Piece, ...],
    places: Iterable[Place],
    contract: Contract,
    *,
    corner: tuple[int, int] = (0, 0),
    rows_each: int = 1,
    add: bool,
) -> None:
    """Write tiles of a block, or add to them, as products of the rows of one piece and of its match.

    Args:
        out: the block, or a part of it.
        pieces: of the left side, and of the right side if it is another.
        places: the tiles, counted from the first sample of each side.
        contract: of the output axes.
        corner: the samples ``out`` begins with.
        rows_each: rows of the block a sample.
        add: add to what is there.
    """
    for rows, columns in places:
        here, there = (_moved(part, -start) for part, start in zip((rows, columns), corner, strict=True))
        part = out[..., scaled(here, rows_each), scaled(there, rows_each)]
        pieces[0].tile(part, rows, pieces[-1], columns, contract, add=add)


def within(place: Place, tile: int) -> Iterator[Place]:
    """The tiles of a part of a block."""
    rows, columns = place
    for i, j in tiles(rows.stop - rows.start, columns.stop - columns.start, tile, symmetric=False):
        yield _moved(i, rows.start), _moved(j, columns.start)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def scaled(part: slice, factor: int) -> slice:
    """A range of samples as one of rows, ``factor`` each."""
    return slice(part.start * factor, part.stop * factor)


def tiles(n1: int, n2: int, tile: int, *, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges that cover the matrix, or its lower triangle of tiles."""
    for i in range(0, n1, tile):
        for j in range(0, min(i + tile, n1) if symmetric else n2, tile):
            yield slice(i, min(i + tile, n1)), slice(j, min(j + tile, n2))


def mirror(block: Tensor, tile: int = 256) -> None:
    """Make the last two axes symmetric to the bit, in place: what is below the diagonal is copied above it."""
    size = block.shape[-1]
    for rows, columns in tiles(size, size, tile, symmetric=True):
        part = block[..., rows, columns]
        if rows == columns:
            part.copy_(part.tril() + part.tril(-1).mT)
        else:
            block[..., columns, rows] = part.mT
