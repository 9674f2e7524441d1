"""Several uses of a parameter; a table that is also a head: token rows, outer products, and their cross terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Contract, Form, Products, Tensors, Work
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.outer import GhostPiece, OuterFactor
from pullback.gradients.rows.pieces import Piece, dense_pieces
from pullback.gradients.rows.tokens import JoinPiece, TokenFactor, merged


@dataclass(frozen=True)
class TiedFactor(Factor):
    """Rows ``R_i + W_i``: R_i sparse, one vector a token; W_i = sum_t D_it (x) A_it.

    Args:
        table: the uses as an embedding.
        head: the uses as a linear layer, weight (V, p) not transposed, one group.
    """

    table: TokenFactor
    head: OuterFactor

    forms = ("ghost", "materialise")
    kept_by_autograd = ("head/inputs",)

    @property
    def like(self) -> Tensor:
        return self.head.like

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return self.table.shapes

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return self.head.num_samples

    @property
    def num_outputs(self) -> int:
        return self.head.num_outputs

    def work(self, form: Form, asked: Products) -> Work:
        C = self.num_outputs
        if asked.num_outputs != C:  # of outputs that are not captured an estimate: every pair as those that are
            captured = self.work(form, Products.of(asked.n1, asked.n2, C, asked.contract))
            return Work(gemm=captured.flops * (asked.num_outputs / C) ** 2)
        head = self.head.work(form, asked)
        if form != "ghost":
            return head
        T, _, d, _ = self.head.dims
        join = self.table.work("join", asked).gemm
        cross = 2 * join * T * d / max(1, self.table.values.shape[2])  # every token entry against every position
        return replace(head, gemm=head.gemm + join + cross)

    def positions(self, form: Form) -> int:
        return self.head.positions(form)

    def check_flops(self) -> float:
        return self.head.check_flops()

    def temporary_bytes(self, n: int, piece_bytes: int) -> int:
        return self.head.temporary_bytes(n, piece_bytes)

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        if form == "ghost":
            yield TiedPiece(self)
            return
        ((name, (V, d)),) = self.shapes.items()
        step = max(1, min(V, max_numbers // (d * self.num_outputs)))
        for start in range(0, V, step):
            block = self.head.outer(slice(0, self.num_samples), slice(start, start + step)).squeeze(2)  # (n, C, v, d)
            here = (self.table.token >= start) & (self.table.token < start + step)
            place = (self.table.owner[here], self.table.token[here] - start)  # every (sample, token) once
            block.transpose(1, 2)[place] += self.table.values[here]
            yield from dense_pieces(name, start * d, block.flatten(2))

    def rows(self, index: slice) -> Tensors:
        ((name, _),) = self.shapes.items()
        return {name: self.table.rows(index)[name] + self.head.rows(index)[name]}

    def only(self, name: str) -> Factor:
        return self

    def matvec(self, vectors: Tensors) -> Tensor:
        return self.table.matvec(vectors) + self.head.matvec(vectors)

    def rmatvec(self, weights: Tensor) -> Tensors:
        ((name, _),) = self.shapes.items()
        return {name: self.table.rmatvec(weights)[name] + self.head.rmatvec(weights)[name]}

    def joined(self, others: list[TiedFactor]) -> TiedFactor:  # type: ignore[override]
        return TiedFactor(self.table.joined([o.table for o in others]), self.head.joined([o.head for o in others]))


@dataclass(frozen=True)
class TiedPiece(Piece):
    """Tiles: token join, ghost products of the head, and for each token entry the head's row of that token."""

    factor: TiedFactor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, contract: Contract, *, add: bool) -> None:
        assert isinstance(other, TiedPiece)
        mine, theirs = self.factor, other.factor
        GhostPiece(mine.head).tile(out, rows, GhostPiece(theirs.head), columns, contract, add=add)
        JoinPiece(mine.table).tile(out, rows, JoinPiece(theirs.table), columns, contract, add=True)
        _cross(out, mine.table, rows, theirs.head, columns, contract)
        _cross(out.transpose(-1, -2), theirs.table, columns, mine.head, rows, contract)

    def totals(self, outputs: Tensor) -> list[tuple[str, int, Tensor]]:
        return [(name, 0, value.reshape(-1)) for name, value in self.factor.total(outputs).items()]


def _cross(out: Tensor, table: TokenFactor, rows: slice, head: OuterFactor, columns: slice, contract: Contract) -> None:
    """Add ``sum_v <R_icv, W_jev> = sum_(v, s) (R_icv . A_js) D_jes[v]`` to a tile."""
    owner, token, values = table.entries(rows)  # values (M, C, p)
    if not len(token):
        return
    a, d = head.left(columns)[:, :, 0], head.right(columns)[:, :, :, 0]  # (n, S, p), (n, C, S, V)
    (n, S), C = a.shape[:2], d.shape[1]
    image = (values.flatten(0, 1) @ a.flatten(0, 1).T).view(-1, C, n, S)  # (M, C, n, S)
    for c in range(C):
        for e in range(C) if contract == "full" else (c,):
            picked = d[:, e][:, :, token].permute(2, 0, 1)  # (M, n, S)
            each = (image[:, c] * picked).sum(2)  # (M, n)
            if contract == "diagonal":
                out[c].index_add_(0, owner, each)
            elif contract == "trace":
                out.index_add_(0, owner, each)
            else:
                out.unflatten(1, (n, C))[:, :, e].index_add_(0, owner * C + c, each)


def one_of(factors: list[Factor]) -> Factor:
    """One factor for several uses of a parameter.

    Uses in linear layers are further positions, uses as a table further tokens; both together are a tied table and
    head. Rows of any others are summed.
    """
    if len(factors) == 1:
        return factors[0]
    outers = [f for f in factors if type(f) is OuterFactor]
    tables = [f for f in factors if isinstance(f, TokenFactor)]
    alike = len({(f.dims[1:], f.transposed) for f in outers}) <= 1
    if alike and len(outers) + len(tables) == len(factors):
        if not tables:
            return _more_positions(outers)
        table = merged(tables)
        if not outers:
            return table
        if not outers[0].transposed and outers[0].dims[1] == 1:
            return TiedFactor(table, _more_positions(outers))
    first, *rest = (f.rows(slice(0, f.num_samples)) for f in factors)
    return DenseFactor({name: sum((row[name] for row in rest), start=value) for name, value in first.items()})


def _more_positions(outers: list[OuterFactor]) -> OuterFactor:
    if len(outers) == 1:
        return outers[0]
    inputs = torch.cat([f.inputs for f in outers], 1)
    gradients = torch.cat([f.gradients for f in outers], 2)
    return replace(outers[0], inputs=inputs, gradients=gradients, bias=None, unit=False)
