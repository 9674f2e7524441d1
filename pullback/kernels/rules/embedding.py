"""Embedding tables by token join: ``K_ij = sum over tokens v in both samples of <R_iv, R_jv>``.

R_iv is the summed output gradient of sample i at the positions that hold token v. Only tokens that occur are
touched; the table's other rows are zero in every gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.kernels.factors import Factor, Form, Piece, Tensors, gram_flops
from pullback.kernels.rules.registry import Arguments, Call, Rule, add_rule, full_precision


@dataclass(frozen=True)
class TokenFactor(Factor):
    """Rows of an embedding table, one entry per (sample, distinct token), sorted by sample.

    Args:
        weight: name of the table.
        weight_shape: (V, p).
        owner: sample of each entry, (M,), ascending.
        token: token of each entry, (M,).
        values: summed output gradient of each entry, (M, p).
        num_samples: N.
    """

    weight: str
    weight_shape: torch.Size
    owner: Tensor
    token: Tensor
    values: Tensor
    num_samples: int

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return {self.weight: self.weight_shape}

    @property
    def like(self) -> Tensor:  # type: ignore[override]
        return self.values

    def forms(self) -> tuple[Form, ...]:
        return ("join",)

    def flops(self, form: Form, n1: int, n2: int | None) -> float:
        """Upper estimate from this factor's own tokens: every entry meets all samples."""
        entries = len(self.token) / max(1, self.num_samples)
        return gram_flops(n1, n2) * entries * self.values.shape[1]

    def held_bytes(self, n: int) -> int:
        entries = len(self.token) / max(1, self.num_samples)
        return int(n * entries * (self.values.shape[1] * self.element_size + 16))

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
        table = values.new_zeros(count, *self.weight_shape)
        return {self.weight: table.index_put((owner, token), values)}

    def only(self, name: str) -> Factor:
        return self

    def matvec(self, vectors: Tensors) -> Tensor:
        each = (self.values * vectors[self.weight][self.token]).sum(1)
        return each.new_zeros(self.num_samples).index_add(0, self.owner, each)

    def rmatvec(self, weights: Tensor) -> Tensors:
        table = self.values.new_zeros(self.weight_shape)
        return {self.weight: table.index_add(0, self.token, self.values * weights[self.owner, None])}

    def squared_norms(self) -> Tensor:
        each = self.values.square().sum(1)
        return each.new_zeros(self.num_samples).index_add(0, self.owner, each)


@dataclass(frozen=True)
class JoinPiece(Piece):
    """Tiles of an embedding's kernel."""

    factor: TokenFactor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, *, add: bool) -> None:
        assert isinstance(other, JoinPiece)
        if not add:
            out.zero_()
        left, right = self.factor.entries(rows), other.factor.entries(columns)
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

    def totals(self) -> list[tuple[str, int, Tensor]]:
        return [(name, 0, value.reshape(-1)) for name, value in self.factor.total().items()]


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


def _embedding(call: Call) -> TokenFactor:
    arguments = call.arguments
    tokens = call.samples(arguments["input"])
    count = len(tokens)
    tokens = tokens.reshape(count, -1)
    gradient = full_precision(call.gradient).reshape(*tokens.shape, -1)
    vocabulary, p = arguments["weight"].shape
    padding = arguments.get("padding_idx")
    owner = torch.arange(count, device=tokens.device).unsqueeze(1).expand_as(tokens)
    code = (owner * vocabulary + tokens).reshape(-1)
    values = gradient.reshape(-1, p)
    if padding is not None:
        kept = tokens.reshape(-1) != padding % vocabulary
        code, values = code[kept], values[kept]
    codes, place = torch.unique(code, return_inverse=True)
    summed = values.new_zeros(len(codes), p).index_add(0, place, values)
    return TokenFactor(
        weight=call.names["weight"],
        weight_shape=arguments["weight"].shape,
        owner=codes // vocabulary,
        token=codes % vocabulary,
        values=summed,
        num_samples=count,
    )


def _plain(arguments: Arguments) -> bool:
    """Tables rescaled by frequency or by a maximal norm have no gradient that belongs to one sample."""
    return not arguments.get("scale_grad_by_freq") and arguments.get("max_norm") is None


add_rule(
    F.embedding,
    Rule(
        "embedding",
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        ("weight",),
        "input",
        _embedding,
        _plain,
    ),
)
