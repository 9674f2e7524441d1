"""One layer's part of a kernel: how it runs in the form its plan gives it, tile by tile, and what proves its sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pullback.functional.model_view import layer_of
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.gradients.rows.contract import Contract, Form, Products, Tensors
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.pieces import Piece, matched
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import tile_rows

Place = tuple[slice, slice]  # rows and columns, in samples


@dataclass(frozen=True)
class Part:
    """Rows of one layer (or of the part of it that is in one factor), of both sides, and how their block is made.

    Attributes:
        layer: its name.
        left: rows of n1 samples.
        right: rows of the same parameters for n2 other samples; None for the symmetric kernel.
        form: of the products.
        contract: of the output axes.
        piece_bytes: bound on rows formed at a time.
        rows_each: rows of the block a sample.
    """

    layer: str
    left: Factor
    right: Factor | None
    form: Form
    contract: Contract
    piece_bytes: int
    rows_each: int

    @property
    def sides(self) -> list[Factor]:
        """One, or two."""
        return [self.left] if self.right is None else [self.left, self.right]

    @property
    def formed(self) -> bool:
        """Whether gradient rows are formed: what is made of them is made whole, as they are not formed twice."""
        return self.form == "materialise"

    @property
    def numbers(self) -> int:
        """Of a row that may be formed at a time, for all samples of both sides."""
        most = min(self.piece_bytes, self.left.piece_bytes)
        return most // (self.left.element_size * sum(side.num_samples for side in self.sides))

    def tile(self, *, triangle: bool = True) -> int:
        """Samples along the side of a tile."""
        return tile_rows(self.left, self.form, self.rows_each, triangle=triangle)

    def pieces(self, numbers: int) -> Iterator[tuple[Piece, ...]]:
        """Pieces of the left side, and their matches of the right one."""
        each = [side.pieces(self.form, numbers) for side in self.sides]
        return zip(each[0]) if self.right is None else matched(each)

    def unformed(self, outputs: Tensor) -> tuple[list[tuple[Piece, ...]], list[Tensors]]:
        """All pieces of a part whose rows are not formed, and the sums of its rows as ``add_to`` returns them."""
        pieces, sums = list(self.pieces(0)), []
        for side in self.sides:
            rows = side.total(outputs)
            sums.append({name: side.piece_order(name, row) for name, row in rows.items()})
        return pieces, sums

    def add_to(self, block: Tensor, outputs: Tensor, *, add: bool) -> list[Tensors]:
        """Write or add all tiles; of a symmetric block the lower triangle, which is the caller's to mirror.

        Args:
            block: laid out as ``Products`` says.
            outputs: combination of the outputs for the summed rows, (C,).
            add: add to what is there.

        Returns:
            For each side parameter -> ``sum_ic outputs_c g_ic`` in piece order, flat.
        """
        sums = [Sums() for _ in self.sides]
        n1, n2 = self.left.num_samples, self.sides[-1].num_samples
        places = list(tiles(n1, n2, self.tile(), symmetric=self.right is None))
        for pieces in self.pieces(self.numbers):
            for side, piece in zip(sums, pieces, strict=True):
                side.add(piece.totals(outputs))
            fill(block, pieces, places, self.contract, rows_each=self.rows_each, add=add)
            add = True
        if not add:
            block.zero_()
        return [side.by_parameter() for side in sums]


@dataclass
class Sums:
    """Sum of the rows of one side, collected from the pieces: parameter -> parts (offset, values)."""

    parts: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)

    def add(self, totals: list[tuple[str, int, Tensor]]) -> None:
        """Collect one piece's."""
        for name, offset, value in totals:
            self.parts.setdefault(name, []).append((offset, value))

    def by_parameter(self) -> Tensors:
        """Parameter -> sum of its rows in piece order, flat."""
        ordered = {name: sorted(parts, key=lambda part: part[0]) for name, parts in self.parts.items()}
        return {n: p[0][1] if len(p) == 1 else torch.cat([value for _, value in p]) for n, p in ordered.items()}


def new_block(left: Captured, right: Captured | None, contract: Contract) -> Tensor:
    """An empty block of the kernel."""
    block = Products.of(left.num_samples, None if right is None else right.num_samples, left.num_outputs, contract)
    return left.factors[0].like.new_empty(block.shape)


def parts(
    left: Captured, right: Captured | None, plan: KernelPlan | None, only: Iterable[str] | None = None
) -> Iterator[Part]:
    """All parts; factors are split where they span layers (the fallback and unused ones do).

    Args:
        left: rows.
        right: columns, ``aligned`` with the rows; None for the symmetric kernel.
        plan: forms of all layers; None for the first form each has, over all outputs.
        only: names of parameters, to which layers are cut down.
    """
    others: list[Factor | None] = [None] * len(left.factors) if right is None else list(right.factors)
    wanted = None if only is None else set(only)
    for factor, other in zip(left.factors, others, strict=True):
        names = [n for n in factor.shapes if wanted is None or n in wanted]
        if len(names) == len(factor.shapes) and len({layer_of(n) for n in names}) == 1:
            yield _planned(factor, other, plan, left.num_outputs)
        else:
            for name in names:
                yield _planned(factor.only(name), other and other.only(name), plan, left.num_outputs)


def _planned(left: Factor, right: Factor | None, plan: KernelPlan | None, num_outputs: int) -> Part:
    layer = layer_of(next(iter(left.shapes)))
    if plan is None:
        return Part(layer, left, right, left.forms[0], "full", 0, num_outputs)
    planned = next(each.form for each in plan.layers if not left.shapes.keys().isdisjoint(each.parameters))
    form = planned if planned in left.forms else left.forms[0]
    rows_each = num_outputs if plan.contract == "full" else 1
    return Part(layer, left, right, form, plan.contract, plan.piece_bytes, rows_each)


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
        here, there = _moved(rows, -corner[0]), _moved(columns, -corner[1])
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
