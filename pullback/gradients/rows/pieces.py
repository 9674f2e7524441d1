"""Parts of gradient rows from which tiles of a kernel are made, and the parts of two sides brought together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Contract

_CACHED_BYTES = 4 * 2**20
_STRETCH, _FEW_ROWS = 4096, 128  # numbers of a short product; rows up to which one product uses one core (measured)


class Piece(ABC):
    """A part of a layer's gradient rows from which tiles of its kernel are made without any further copy.

    A tile is (n1 C, n2 C) under "full", rows sample-major; (n1, n2) under "trace"; (C, n1, n2) under "diagonal".
    """

    @abstractmethod
    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, contract: Contract, *, add: bool) -> None:
        """Write (or add) the tile of samples ``rows`` here and ``columns`` of ``other`` to ``out``."""

    @abstractmethod
    def totals(self, outputs: Tensor) -> list[tuple[str, int, Tensor]]:
        """``sum_ic outputs_c g_ic``: (parameter, offset into its flattened form, values)."""


def _add_product(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """``out (+)= left right^T``. Few rows of many numbers go as many short products: a processor shares those out."""
    numbers = left.shape[1]
    if left.device.type != "cpu" or max(left.shape[0], right.shape[0]) > _FEW_ROWS or numbers < _STRETCH:
        out.addmm_(left, right.T, beta=int(add))
        return
    count = max(2, round(numbers / _STRETCH))
    whole = numbers - numbers % count
    a, b = (side[:, :whole].unflatten(1, (count, -1)).transpose(0, 1) for side in (left, right))
    total = torch.bmm(a, b.mT).sum(0)
    if whole < numbers:
        total.addmm_(left[:, whole:], right[:, whole:].T)
    torch.add(out, total, out=out) if add else out.copy_(total)


@dataclass(frozen=True)
class DensePiece(Piece):
    """Rows themselves, (n, C, m), a stretch of parameter ``name`` from ``offset`` on."""

    name: str
    offset: int
    matrix: Tensor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, contract: Contract, *, add: bool) -> None:
        assert isinstance(other, DensePiece)
        left, right = self.matrix[rows], other.matrix[columns]
        if contract == "diagonal":
            out.baddbmm_(left.transpose(0, 1), right.permute(1, 2, 0), beta=int(add))
        elif contract == "trace":
            _add_product(out, left.flatten(1), right.flatten(1), add=add)
        else:
            _add_product(out, left.flatten(0, 1), right.flatten(0, 1), add=add)

    def totals(self, outputs: Tensor) -> list[tuple[str, int, Tensor]]:
        n, C, m = self.matrix.shape
        signs = outputs.to(self.matrix).repeat(n)
        total = self.matrix.sum((0, 1)) if C == 1 else signs @ self.matrix.reshape(n * C, m)
        return [(self.name, self.offset, total)]


def dense_pieces(name: str, offset: int, matrix: Tensor) -> Iterator[DensePiece]:
    """Rows (n, C, m) in stretches of numbers that stay in the caches while all tiles are made from them."""
    rows, numbers = matrix.shape[0] * matrix.shape[1], matrix.shape[2]
    step = max(256, _CACHED_BYTES // (rows * matrix.element_size()))
    for start in range(0, numbers, step):
        yield DensePiece(name, offset + start, matrix[:, :, start : start + step])


def share_of(count: int, rank: int, ranks: int) -> slice:
    """Consecutive ones of ``count`` that are one rank's; may be empty."""
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def matched(sides: Sequence[Iterator[Piece]]) -> Iterator[tuple[Piece, ...]]:
    """Pieces of one side or two that cover the same numbers: stretches end where either side's does."""
    if len(sides) == 1:
        yield from ((piece,) for piece in sides[0])
        return
    left, right = sides
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        if not isinstance(a, DensePiece) or not isinstance(b, DensePiece):
            yield a, b
            a, b = next(left, None), next(right, None)
            continue
        size = min(a.matrix.shape[2], b.matrix.shape[2])
        assert (a.name, a.offset) == (b.name, b.offset), "pieces of two sides in another order"
        yield _first(a, size), _first(b, size)
        a, b = _rest(a, size) or next(left, None), _rest(b, size) or next(right, None)
    assert a is None
    assert b is None


def _first(piece: DensePiece, size: int) -> DensePiece:
    return replace(piece, matrix=piece.matrix[:, :, :size])


def _rest(piece: DensePiece, size: int) -> DensePiece | None:
    if piece.matrix.shape[2] == size:
        return None
    return replace(piece, offset=piece.offset + size, matrix=piece.matrix[:, :, size:])
