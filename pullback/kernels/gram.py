"""Runs a plan: tiles of one triangle, layer by layer, mirrored at the end so that symmetry is exact."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pullback.kernels.factors import Factor, Form


def gram(
    left: Factor, right: Factor | None, form: Form, max_bytes: int, tile: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Kernel block of one factor with itself (``right`` None) or with another, and the summed rows.

    Args:
        left: gradient rows of n1 samples.
        right: rows of the same parameters for n2 other samples; None for the symmetric kernel.
        form: which of the factor's forms to use.
        max_bytes: bound on rows formed at a time.
        tile: samples along the side of a tile.

    Returns:
        The block, (n1, n2), and for each side parameter -> sum of the rows in piece order, flat.
    """
    symmetric = right is None
    n1, n2 = left.num_samples, left.num_samples if right is None else right.num_samples
    sides = [left] if right is None else [left, right]
    block: Tensor | None = None
    sums: list[dict[str, list[tuple[int, Tensor]]]] = [{} for _ in sides]
    max_numbers = max_bytes // (left.element_size * sum(side.num_samples for side in sides))
    for pieces in zip(*(side.pieces(form, max_numbers) for side in sides), strict=True):
        for side, piece in zip(sums, pieces, strict=True):
            for name, offset, value in piece.totals():
                side.setdefault(name, []).append((offset, value))
        add = block is not None
        if block is None:
            block = left.like.new_empty(n1, n2)
        for rows, columns in tiles(n1, n2, tile, symmetric=symmetric):
            pieces[0].tile(block[rows, columns], rows, pieces[-1], columns, add=add)
    if block is None:
        block = left.like.new_zeros(n1, n2)
    if symmetric:
        mirror(block, tile)
    totals = [
        {name: torch.cat([value for _, value in sorted(parts, key=_offset)]) for name, parts in side.items()}
        for side in sums
    ]
    return block, totals


def _offset(part: tuple[int, Tensor]) -> int:
    return part[0]


def tiles(n1: int, n2: int, tile: int, *, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges that cover the matrix, or its lower triangle of tiles."""
    for i in range(0, n1, tile):
        for j in range(0, min(i + tile, n1) if symmetric else n2, tile):
            yield slice(i, min(i + tile, n1)), slice(j, min(j + tile, n2))


def mirror(block: Tensor, tile: int) -> None:
    """Make the block symmetric to the bit, in place: tiles below the diagonal are copied above it."""
    for rows, columns in tiles(len(block), len(block), tile, symmetric=True):
        part = block[rows, columns]
        if rows == columns:  # the mean of an entry and its mirror image is the same from both sides
            part.copy_((part + part.T).mul_(0.5))
        else:
            block[columns, rows] = part.T
