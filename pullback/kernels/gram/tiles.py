"""Runs a form: tiles of one triangle, mirrored at the end so that symmetry is exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Contract, Form
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.pieces import matched


@dataclass
class Sums:
    """Sum of the rows of one side, collected from the pieces: parameter -> parts (offset, values)."""

    parts: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)

    def add(self, totals: list[tuple[str, int, Tensor]]) -> None:
        """Collect one piece's."""
        for name, offset, value in totals:
            self.parts.setdefault(name, []).append((offset, value))

    def whole(self) -> dict[str, Tensor]:
        """Parameter -> sum of its rows in piece order, flat."""
        ordered = {name: sorted(parts, key=lambda part: part[0]) for name, parts in self.parts.items()}
        return {n: p[0][1] if len(p) == 1 else torch.cat([value for _, value in p]) for n, p in ordered.items()}


def add_gram(
    out: Tensor,
    left: Factor,
    right: Factor | None,
    form: Form,
    contract: Contract,
    max_bytes: int,
    tile: int,
    outputs: Tensor,
    *,
    add: bool,
) -> list[dict[str, Tensor]]:
    """Write or add the block of one factor with itself (``right`` None) or with another; mirror is the caller's.

    Args:
        out: the block, laid out as ``block_shape`` says; of a symmetric one only the lower triangle of tiles is made.
        left: gradient rows of n1 samples.
        right: rows of the same parameters for n2 other samples; None for the symmetric kernel.
        form: which of the factor's forms to use.
        contract: of the output axes.
        max_bytes: bound on rows formed at a time.
        tile: samples along the side of a tile.
        outputs: combination of the outputs for the summed rows, (C,).
        add: add to what is there.

    Returns:
        For each side parameter -> ``sum_ic outputs_c g_ic`` in piece order, flat.
    """
    sides = [left] if right is None else [left, right]
    sums = [Sums() for _ in sides]
    max_numbers = max_bytes // (left.element_size * sum(side.num_samples for side in sides))
    rows_each = left.num_outputs if contract == "full" else 1
    each = [side.pieces(form, max_numbers) for side in sides]
    for pieces in zip(each[0]) if right is None else matched(each):
        for side, piece in zip(sums, pieces, strict=True):
            side.add(piece.totals(outputs))
        for rows, columns in tiles(left.num_samples, sides[-1].num_samples, tile, symmetric=right is None):
            part = out[..., scaled(rows, rows_each), scaled(columns, rows_each)]
            pieces[0].tile(part, rows, pieces[-1], columns, contract, add=add)
        add = True
    if not add:
        out.zero_()
    return [side.whole() for side in sums]


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
