"""Rows of an embedding table, by token join: ``K_ij = sum over tokens v in both samples of <R_iv, R_jv>``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Contract, Form, Products, Tensors, Work
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.pieces import Piece


@dataclass(frozen=True)
class TokenFactor(Factor):
    """Rows of an embedding table, one entry per (sample, distinct token), sorted by sample.

    Args:
        weight: name of the table.
        weight_shape: (V, p).
        owner: sample of each entry, (M,), ascending.
        token: token of each entry, (M,).
        values: summed output gradient of each entry, (M, C, p).
        num_samples: N.
    """

    weight: str
    weight_shape: torch.Size
    owner: Tensor
    token: Tensor
    values: Tensor
    num_samples: int

    forms = ("join",)

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return {self.weight: self.weight_shape}

    @property
    def like(self) -> Tensor:
        return self.values

    @property
    def num_outputs(self) -> int:
        return self.values.shape[1]

    def work(self, form: Form, asked: Products) -> Work:
        """Upper estimate from this factor's own tokens: every entry meets all samples."""
        return Work(gemm=asked.flops * self.entries_each * self.values.shape[2] * asked.pairs)

    @property
    def entries_each(self) -> float:
        """Entries of a sample, on average."""
        return len(self.token) / max(1, self.num_samples)

    def tensors(self) -> Tensors:
        return super().tensors() | {"count": torch.tensor(self.num_samples, device="cpu")}

    def with_tensors(self, tensors: Tensors) -> TokenFactor:
        rest = {name: t for name, t in tensors.items() if name != "count"}
        count = int(tensors["count"]) if "count" in tensors else self.num_samples
        return replace(super().with_tensors(rest), num_samples=count)

    def joined(self, others: Sequence[TokenFactor]) -> TokenFactor:
        starts = torch.tensor([0, *(f.num_samples for f in (self, *others))], device="cpu").cumsum(0).tolist()
        every = (self, *others)
        return replace(
            self,
            owner=torch.cat([f.owner + start for f, start in zip(every, starts, strict=False)]),
            token=torch.cat([f.token for f in every]),
            values=torch.cat([f.values for f in every]),
            num_samples=starts[-1],
        )

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        yield JoinPiece(self)

    def entries(self, index: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Owner (counted from the slice's start), token and value of the entries of some samples."""
        samples = range(self.num_samples)[index]
        bounds = torch.tensor([samples.start, samples.stop], device=self.owner.device)
        first, last = torch.searchsorted(self.owner, bounds).tolist()
        return self.owner[first:last] - samples.start, self.token[first:last], self.values[first:last]

    def rows(self, index: slice) -> Tensors:
        owner, token, values = self.entries(index)
        count = len(range(self.num_samples)[index])
        table = values.new_zeros(count, self.weight_shape[0], *values.shape[1:])  # (n, V, C, p)
        return {self.weight: table.index_put((owner, token), values).transpose(1, 2)}

    def only(self, name: str) -> Factor:
        return self

    def matvec(self, vectors: Tensors) -> Tensor:
        each = (self.values * vectors[self.weight][self.token].unsqueeze(1)).sum(2)  # (M, C)
        return each.new_zeros(self.num_samples, self.num_outputs).index_add(0, self.owner, each)

    def rmatvec(self, weights: Tensor) -> Tensors:
        table = self.values.new_zeros(self.weight_shape)
        each = torch.einsum("mcp,mc->mp", self.values, weights.to(self.values)[self.owner])
        return {self.weight: table.index_add(0, self.token, each)}

    def squared_norms(self) -> Tensor:
        each = self.values.square().sum(2)
        return each.new_zeros(self.num_samples, self.num_outputs).index_add(0, self.owner, each)


@dataclass(frozen=True)
class JoinPiece(Piece):
    """Tiles of an embedding's kernel."""

    factor: TokenFactor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, contract: Contract, *, add: bool) -> None:
        assert isinstance(other, JoinPiece)
        if not add:
            out.zero_()
        left, right = self.factor.entries(rows), other.factor.entries(columns)
        if contract == "diagonal":
            for c in range(len(out)):
                join(out[c], *((owner, token, values[:, c]) for owner, token, values in (left, right)))
        elif contract == "trace" or self.factor.num_outputs == 1:
            join(out, *((owner, token, values.flatten(1)) for owner, token, values in (left, right)))
        else:
            join(out, *(_by_output(*side) for side in (left, right)))

    def totals(self, outputs: Tensor) -> list[tuple[str, int, Tensor]]:
        return [(name, 0, value.reshape(-1)) for name, value in self.factor.total(outputs).items()]


Entries = tuple[Tensor, Tensor, Tensor]  # row of the tile (M,), token (M,), values (M, p)


def _by_output(owner: Tensor, token: Tensor, values: Tensor) -> Entries:
    """Entries (M, C, p) as M C entries of rows (sample, output)."""
    C = values.shape[1]
    rows = owner.unsqueeze(1) * C + torch.arange(C, device=owner.device)
    return rows.flatten(), token.repeat_interleave(C), values.flatten(0, 1)


def join(out: Tensor, left: Entries, right: Entries) -> None:
    """Add ``sum over tokens v of <R_iv, R_jv>`` to a tile (rows, columns)."""
    if not len(left[1]) or not len(right[1]):
        return
    tokens, left_code = torch.unique(left[1], return_inverse=True)
    place = torch.searchsorted(tokens, right[1]).clamp(max=len(tokens) - 1)
    known = tokens[place] == right[1]  # entries whose token also occurs on the left
    left_count = torch.bincount(left_code, minlength=len(tokens))
    right_code, right_owner, right_values = place[known], right[0][known], right[2][known]
    right_count = torch.bincount(right_code, minlength=len(tokens))
    a = _by_token(left_code, left[0], left[2])
    b = _by_token(right_code, right_owner, right_values)
    for group in _groups(left_count, right_count):
        (owner_a, values_a), (owner_b, values_b) = (
            _padded(side, count, group) for side, count in ((a, left_count), (b, right_count))
        )
        products = values_a @ values_b.transpose(1, 2)  # (tokens, m_a, m_b); padding adds zeros to sample 0
        index = owner_a.unsqueeze(2) * out.shape[1] + owner_b.unsqueeze(1)
        sums = products.new_zeros(out.numel()).index_add(0, index.reshape(-1), products.reshape(-1))
        out += sums.view_as(out)


def _by_token(code: Tensor, owner: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort(code, stable=True)
    return owner[order], values[order]


def _groups(left_count: Tensor, right_count: Tensor) -> Iterator[Tensor]:
    """Tokens that occur on both sides, by the power of two their counts round up to: each group is one GEMM."""
    both = (right_count > 0).nonzero().squeeze(1)

    def ceil_log(count: Tensor) -> Tensor:
        return torch.log2(count[both].double()).ceil().long()

    key = ceil_log(left_count) * 64 + ceil_log(right_count)
    for value in key.unique():
        yield both[key == value]


def _padded(side: tuple[Tensor, Tensor], count: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of each token of a group, padded with zeros to the same number: (tokens, m), (tokens, m, p)."""
    owner, values = side
    start = torch.cumsum(count, 0) - count
    offset = torch.arange(int(count[group].max()), device=count.device)
    inside = offset < count[group].unsqueeze(1)
    place = torch.where(inside, start[group].unsqueeze(1) + offset, 0)
    return torch.where(inside, owner[place], 0), values[place] * inside.unsqueeze(2)


def token_factor(
    name: str, shape: torch.Size, tokens: Tensor, gradient: Tensor, padding: int | None = None
) -> TokenFactor:
    """Entries of a table (V, p), from tokens (N, T) and output gradients (N, C, T, p); ``padding`` has no gradient."""
    (count, length), (vocabulary, p) = tokens.shape, shape
    C = gradient.shape[1]
    owner = torch.arange(count, device=tokens.device).unsqueeze(1).expand_as(tokens)
    values = gradient.transpose(1, 2).reshape(count * length, C, p)
    code = (owner * vocabulary + tokens).reshape(-1)
    if tokens.device.type == "meta":  # only shapes are known: every token may be another one
        return TokenFactor(name, shape, owner.reshape(-1), tokens.reshape(-1), values, count)
    if padding is not None:
        kept = tokens.reshape(-1) != padding % vocabulary
        code, values = code[kept], values[kept]
    codes, place = torch.unique(code, return_inverse=True)
    summed = values.new_zeros(len(codes), C, p).index_add(0, place, values)
    return TokenFactor(name, shape, codes // vocabulary, codes % vocabulary, summed, count)


def merged(factors: Sequence[TokenFactor]) -> TokenFactor:
    """Several uses of one table by the same samples: entries of the same sample and token are added."""
    if len(factors) == 1:
        return factors[0]
    vocabulary = factors[0].weight_shape[0]
    code = torch.cat([f.owner * vocabulary + f.token for f in factors])
    values = torch.cat([f.values for f in factors])
    if code.device.type == "meta":  # only shapes are known: every token may be another one
        return replace(factors[0], owner=code, token=code, values=values)
    codes, place = torch.unique(code, return_inverse=True)
    summed = values.new_zeros(len(codes), *values.shape[1:]).index_add(0, place, values)
    return replace(factors[0], owner=codes // vocabulary, token=codes % vocabulary, values=summed)
