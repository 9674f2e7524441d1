"""Blocks of a kernel made by several ranks: which tiles and which gradient rows are whose, and how they come together.

The tiles of a layer go round the ranks, and are exchanged. Where gradient rows must be formed, every rank forms those
of a stretch of the weight instead, for all samples, and from them its part of all tiles; parts are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Form, Tensors
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.pieces import Piece
from pullback.kernels.gram.parts import Part, fill, new_block, parts, scaled, tiles
from pullback.kernels.group.team import Team
from pullback.kernels.plan.kernel_plan import KernelPlan


@dataclass
class SharedBlock:
    """A block (a layer's, or that of all layers): this rank's part of it first, then the whole.

    Args:
        block: laid out as ``Products`` says; of a symmetric one the lower triangle is made.
        pairs: what goes into it: rows of all samples, and of this rank's.
        places: rank -> rows and columns, in samples, of the tiles it makes.
        rows_each: rows of the block a sample.
        summed: some gradient rows are formed, a stretch by each rank, so that every entry is a sum over ranks. Else
            every tile is made by one rank alone.
        totals: of every pair this rank's part of the summed rows of each side, then the whole.
    """

    block: Tensor
    pairs: list[tuple[Part, Part]]
    places: list[list[tuple[slice, slice]]]
    rows_each: int
    summed: bool
    totals: list[list[Tensors]] = field(default_factory=list)

    def tile(self, place: tuple[slice, slice]) -> Tensor:
        """A part of the block; rows and columns in samples."""
        rows, columns = place
        return self.block[..., scaled(rows, self.rows_each), scaled(columns, self.rows_each)]

    def run(self, team: Team, outputs: Tensor) -> None:
        """Make this rank's part."""
        add = self.summed
        if add:
            self.block.zero_()
        for part, own in self.pairs:
            totals = [_zeros(side) for side in part.sides] if part.formed else _own_sums(own, part.form, outputs)
            places = [place for of_rank in self.places for place in of_rank] if part.formed else self.places[team.rank]
            for pieces in _own_pieces(part, team):
                for total, piece in zip(totals, pieces, strict=True):
                    for name, offset, value in piece.totals(outputs) if part.formed else ():
                        total[name][offset : offset + len(value)] += value
                fill(self.block, pieces, places, part.contract, rows_each=self.rows_each, add=add)
                add = True
            ordered = zip(part.sides, totals, strict=True)
            self.totals.append([side.from_shared_order(total) for side, total in ordered] if part.formed else totals)
        if not add:  # parameters nothing depends on
            self.block.zero_()

    def complete(self, team: Team) -> None:
        """Exchange the parts of the block and of the summed rows; nothing above the diagonal of a symmetric one."""
        views = [self.tile(place) for of_rank in self.places for place in of_rank] if self.summed else []
        rows = [totals for sides in self.totals for totals in sides]
        sums = iter(team.sums([*views, *(value for totals in rows for value in totals.values())]))
        for view in views:
            view.copy_(next(sums))
        for totals in rows:
            totals.update({name: next(sums) for name in totals})
        if not self.summed:
            self._exchange(team)

    def _exchange(self, team: Team) -> None:
        """Every tile from the rank that made it."""
        views = [[self.tile(place) for place in of_rank] for of_rank in self.places]
        sizes = [[view.numel() for view in of_rank] for of_rank in views]
        own = [view.reshape(-1) for view in views[team.rank]]
        exchanged = team.exchanged(torch.cat(own) if own else self.block.new_empty(0), [sum(each) for each in sizes])
        for rank in (rank for rank in range(team.count) if rank != team.rank):
            for view, part in zip(views[rank], exchanged[rank].split(sizes[rank]), strict=True):
                view.copy_(part.view_as(view))


def shared_blocks(team: Team, whole: list[Captured], own: list[Captured], plan: KernelPlan) -> dict[str, SharedBlock]:
    """Layer -> block, or one block of all layers: nothing of them is made yet."""
    left, right = whole[0], whole[1] if len(whole) > 1 else None
    mine = parts(own[0], own[1] if right is not None else None, plan)
    groups: dict[str, list[tuple[Part, Part]]] = {}
    for pair in zip(parts(left, right, plan), mine, strict=True):
        groups.setdefault(pair[0].layer if plan.keep_layers else "all layers", []).append(pair)
    blocks: dict[str, SharedBlock] = {}
    turn = 0
    for name, pairs in groups.items():
        side = min(part.tile() for part, _ in pairs)
        places = list(tiles(left.num_samples, (right or left).num_samples, side, symmetric=right is None))
        shared = [places[(rank - turn) % team.count :: team.count] for rank in range(team.count)]
        turn += len(places)
        summed = any(part.formed for part, _ in pairs)
        block = new_block(left, right, plan.contract)
        blocks[name] = SharedBlock(block, pairs, shared, pairs[0][0].rows_each, summed)
    return blocks


def _own_pieces(part: Part, team: Team) -> Iterator[tuple[Piece, ...]]:
    """Pieces to work on here: all of them where tiles are shared out; of rows that are formed this rank's."""
    if part.formed:
        return part.left.shared_pieces(part.sides[1:], part.numbers, team.rank, team.count)
    return part.pieces(part.numbers)


def _zeros(factor: Factor) -> Tensors:
    return {name: factor.like.new_zeros(shape.numel()) for name, shape in factor.shapes.items()}


def _own_sums(part: Part, form: Form, outputs: Tensor) -> list[Tensors]:
    """Summed rows of this rank's samples, flat, in the order of pieces; none where there are no pieces."""
    sums = []
    for side in part.sides:
        total = {} if form == "unused" else _zeros(side)
        if total and side.num_samples:
            totals = side.total(outputs)
            total = {name: side.piece_order(name, value).reshape(-1).to(total[name]) for name, value in totals.items()}
        sums.append(total)
    return sums
