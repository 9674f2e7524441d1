"""Rows that are sums of outer products over positions: linear layers, convolutions, and all that can be so written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from pullback.gradients.rows.combine import combine
from pullback.gradients.rows.contract import Contract, Form, Products, Tensors, Work
from pullback.gradients.rows.factor import DenseFactor, Factor, GramProduct, squares_of
from pullback.gradients.rows.pieces import Piece, dense_pieces, matched, share_of

_NUMBERS = 2**24  # images of the inputs formed at a time


@dataclass(frozen=True)
class OuterFactor(Factor):
    """``g_ic = sum_t D_ict (x) A_it``.

    Args:
        inputs: A, (N, T, g, d); the same for all outputs.
        gradients: D, the derivative of each output of a sample in the layer's outputs, (N, C, T, g, p).
        weight: name of the weight; a bias asked for without it has rows of its own, `DenseFactor`.
        bias: name of the bias, or None.
        weight_shape: shape of the weight; its numbers are ordered (g, p, d), or (d, p) if ``transposed``.
        unit: D is the identity, p = C and T = g = 1: the layer's outputs are the outputs asked for.
    """

    inputs: Tensor
    gradients: Tensor
    weight: str
    bias: str | None
    weight_shape: torch.Size
    transposed: bool = False
    unit: bool = False

    forms = ("ghost", "materialise")
    kept_by_autograd = ("inputs",)
    piece_bytes = 32 * 2**20

    def temporary_bytes(self, n: int, piece_bytes: int) -> int:
        T, _, d, _ = self.dims
        return piece_bytes * T // max(1, d)  # the output gradients of the piece, rearranged

    # A and D of some samples. Convolutions override `left`: they unfold only when asked.
    def left(self, index: slice) -> Tensor:
        """A for the samples in ``index``, (n, T, g, d)."""
        return self.inputs[index]

    def right(self, index: slice) -> Tensor:
        """D for the samples in ``index``, (n, C, T, g, p)."""
        return self.gradients[index]

    @property
    def like(self) -> Tensor:
        return self.gradients

    @cached_property  # this and the next are asked for dozens of times a call, and follow from what never changes
    def dims(self) -> tuple[int, int, int, int]:
        """T, g, d, p."""
        T, g, p = self.gradients.shape[2:]
        return T, g, self.weight_shape.numel() // (g * p), p

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        _, g, _, p = self.dims
        shapes = {self.weight: self.weight_shape, self.bias: torch.Size([g * p])}
        return {name: shape for name, shape in shapes.items() if name is not None}

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return self.gradients.shape[0]  # `len` of a tensor asks torch's tracer

    @property
    def num_outputs(self) -> int:
        return self.gradients.shape[1]

    def work(self, form: Form, asked: Products) -> Work:
        _, g, d, p = self.dims
        each, pairs = asked.flops * g * self.positions(form) ** 2, asked.pairs
        if form == "ghost":
            return Work(gemm=each * (d + 1 + (0 if self.unit else pairs * p)), stream=each / 2 * pairs)
        return Work(gemm=each * d * p * pairs, bmm=self.forward_flops(asked.n1 + (asked.n2 or 0)) * asked.num_outputs)

    def positions(self, form: Form) -> int:
        return 1 if form == "materialise" else self.dims[0]

    def held(self, n: int, num_outputs: int) -> int:
        T, g, _, p = self.dims
        return self.inputs.numel() // max(1, self.num_samples) * n + n * num_outputs * T * g * p

    def forward_flops(self, n: int) -> float:
        """Those of ``W_i = D_i^T A_i`` of one output are as many."""
        T, g, d, p = self.dims
        return 2.0 * n * T * g * d * p

    def product_flops(self, n: int, num_outputs: int) -> float:
        T, g, _, p = self.dims
        return self.forward_flops(n) + 2.0 * n * num_outputs * T * g * p

    def gram_product_flops(self, n: int, num_outputs: int) -> tuple[float, float]:
        if not self.by_inputs(n):
            return super().gram_product_flops(n, num_outputs)
        T, _, d, p = self.dims
        return 2.0 * (n * T) ** 2 * d, 2.0 * (n * T) ** 2 * p + 4.0 * n * num_outputs * T * p

    def check_flops(self) -> float:
        T, g, d, p = self.dims
        norms = self.forward_flops(1) if self._norms_by_rows else 2.0 * T * T * g * (d + p)
        return self.forward_flops(1) + norms

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        if form == "ghost":
            yield GhostPiece(self)
            return
        yield from self._weight_pieces(self.weight, max_numbers)
        if self.bias is not None:
            yield from dense_pieces(self.bias, 0, self.bias_rows(slice(None)))

    def _weight_pieces(self, name: str, max_numbers: int) -> Iterator[Piece]:
        """W_ic = D_ic^T A_i for all samples, in stretches of outputs that make at most ``max_numbers`` a sample."""
        return self._output_pieces(name, slice(0, self.dims[3]), max_numbers)

    def _output_pieces(self, name: str, outputs: slice, max_numbers: int, *, by_group: bool = False) -> Iterator[Piece]:
        _, g, d, p = self.dims
        step = max(1, max_numbers // (g * d * self.num_outputs))
        for start in range(outputs.start, outputs.stop, step):
            stretch = slice(start, min(start + step, outputs.stop))
            block = self.outer(slice(0, self.num_samples), stretch)  # (n, C, g, p', d)
            if g > 1 and (by_group or block.shape[3] < p):  # outputs of two groups do not meet in the weight
                for k in range(g):
                    yield from dense_pieces(name, (k * p + start) * d, block[:, :, k].flatten(2))
            else:
                yield from dense_pieces(name, start * d, block.flatten(2))

    def shared_pieces(
        self, others: Sequence[Self], max_numbers: int, rank: int, ranks: int
    ) -> Iterator[tuple[Piece, ...]]:
        """Rows of a stretch of outputs. A convolution's own pieces may be of inputs: they are not asked for here."""
        sides, own = (self, *others), share_of(self.dims[3], rank, ranks)
        yield from matched([side._output_pieces(self.weight, own, max_numbers, by_group=True) for side in sides])
        if self.bias is not None and rank == 0:
            yield from matched([dense_pieces(self.bias, 0, side.bias_rows(slice(None))) for side in sides])

    def from_shared_order(self, totals: Tensors) -> Tensors:
        _, g, d, p = self.dims
        weight = self.as_weight(totals[self.weight].view(1, 1, g, p, d))[0, 0]
        return totals | {self.weight: self.piece_order(self.weight, weight).reshape(-1)}

    def bias_rows(self, index: slice) -> Tensor:
        """Rows of the bias, (n, C, g p)."""
        return self.right(index).sum(2).flatten(2)

    def outer(self, index: slice, outputs: slice) -> Tensor:
        """``W_ic[outputs]``, (n, C, g, p', d), for the samples in ``index``."""
        d = self.right(index)[..., outputs]  # (n, C, T, g, p')
        n, C, _, g, p = d.shape
        result = d.new_empty(n, g, C * p, self.dims[2])
        start = range(self.num_samples)[index].start
        for part in self.blocks(n):
            a = self.left(slice(start + part.start, start + part.stop)).transpose(1, 2)  # (n', g, T, d)
            right = d[part].permute(0, 3, 1, 4, 2).reshape(len(a) * g, C * p, -1)  # (n' g, C p', T)
            torch.bmm(right, a.reshape(len(a) * g, *a.shape[2:]), out=result[part].flatten(0, 1))
        return result.view(n, g, C, p, -1).transpose(1, 2)

    def rows(self, index: slice) -> Tensors:
        rows = {self.weight: self.as_weight(self.outer(index, slice(None)))}
        if self.bias is not None:
            rows[self.bias] = self.bias_rows(index)
        return rows

    def as_weight(self, block: Tensor) -> Tensor:
        """(n, C, g, p, d) -> (n, C, *weight_shape)."""
        if self.transposed:
            block = block.squeeze(2).transpose(2, 3)
        return block.reshape(*block.shape[:2], *self.weight_shape)

    def from_weight(self, weight: Tensor) -> Tensor:
        """(*weight_shape) -> (g, p, d)."""
        _, g, d, p = self.dims
        return weight.T.reshape(g, p, d) if self.transposed else weight.reshape(g, p, d)

    def piece_order(self, name: str, value: Tensor) -> Tensor:
        return (self.from_weight(value) if name == self.weight else value).reshape(-1)

    def only(self, name: str) -> Factor:
        if name == self.bias:
            return DenseFactor({name: self.bias_rows(slice(None))})
        return replace(self, bias=None)

    def blocks(self, count: int) -> Iterator[slice]:
        """Stretches of ``count`` samples to work on at a time: all of them, where ``left`` forms nothing."""
        yield slice(0, count)

    def matvec(self, vectors: Tensors) -> Tensor:
        result = self.gradients.new_zeros(self.num_samples, self.num_outputs)
        v = self.from_weight(vectors[self.weight])
        for index in self.blocks(self.num_samples):
            image = torch.einsum("ntgd,gpd->ntgp", self.left(index), v)
            result[index] += (image.unsqueeze(1) * self.right(index)).sum((2, 3, 4))
        if self.bias is not None:
            result += self.bias_rows(slice(None)) @ vectors[self.bias].reshape(-1)
        return result

    def rmatvec(self, weights: Tensor) -> Tensors:
        combined = torch.einsum("nctgp,nc->ntgp", self.gradients, weights.to(self.gradients))
        return self._summed(combined)

    def _samples(self, numbers: int) -> Iterator[slice]:
        """Stretches of samples to work on at a time that bring at most ``_NUMBERS`` numbers."""
        step = max(1, _NUMBERS // max(1, numbers))
        for block in self.blocks(self.num_samples):
            for start in range(block.start, block.stop, step):
                yield slice(start, min(start + step, block.stop))

    def times(self, vectors: Tensors) -> Tensor:
        T, g, d, p = self.dims
        weight = torch.stack([self.from_weight(v) for v in vectors[self.weight]])  # (K, g, p, d)
        count = len(weight)
        shift = weight.new_zeros(()) if self.bias is None else vectors[self.bias].view(count, 1, g, p)
        result = self.like.new_zeros(self.num_samples, self.num_outputs, count)
        for index in self._samples(T * g * count * p):
            a = self.left(index)  # (n, T, g, d)
            if g == 1:
                image = (a.reshape(-1, d) @ weight.view(-1, d).T).view(len(a), T, count, 1, p).transpose(1, 2)
            else:
                image = torch.einsum("ntgd,kgpd->nktgp", a, weight)
            image = (image + shift).flatten(2)  # (n, K, T g p)
            result[index] = torch.bmm(self.right(index).flatten(2), image.mT)
        return result

    def transposed_times(self, weights: Tensor) -> Tensors:
        T, g, d, p = self.dims
        count = weights.shape[2]
        weight = self.like.new_zeros(count, g, p, d)
        bias = self.like.new_zeros(count, g * p)
        for index in self._samples(T * g * count * p):
            right = self.right(index).flatten(2)  # (n, C, T g p)
            combined = torch.bmm(weights[index].mT, right).view(-1, count, T, g, p)
            bias += combined.sum((0, 2)).flatten(1)
            a = self.left(index)
            if g == 1:
                both = combined.transpose(1, 2).reshape(-1, count * p)  # (n T, K p)
                weight.view(-1, d).addmm_(both.T, a.reshape(-1, d))
            else:
                weight += torch.einsum("nktgp,ntgd->kgpd", combined, a)
        products = {self.weight: self.as_weight(weight.unsqueeze(1)).squeeze(1)}
        if self.bias is not None:
            products[self.bias] = bias
        return products

    def gram_product(self) -> GramProduct:
        """D (A A^T + 1) D^T, unless inputs are unfolded a part at a time and the parameters are the cheaper way."""
        n, by_inputs = self.num_samples, self.by_inputs(self.num_samples)
        if self.dims[1] > 1 or not (by_inputs or len(list(self.blocks(n))) == 1):
            return super().gram_product()
        T, _, d, p = self.dims
        right = self.right(slice(None)).flatten(2).contiguous()  # (N, C, T p)
        a = torch.cat([self.left(index) for index in self.blocks(n)]).reshape(n * T, d)
        inner = a @ a.T + int(self.bias is not None) if by_inputs else None

        def product(weights: Tensor) -> Tensor:
            combined = torch.bmm(weights.mT, right).view(n, -1, T, p)  # (N, K, T, p)
            combined = combined.transpose(1, 2).reshape(n * T, -1)  # (N T, K p)
            if inner is not None:
                image = inner @ combined
            elif self.bias is not None:
                image = torch.addmm(combined.sum(0), a, a.T @ combined)
            else:
                image = a @ (a.T @ combined)
            image = image.view(n, T, -1, p).transpose(1, 2).reshape(n, -1, T * p)
            return torch.bmm(right, image.mT)

        return product

    def by_inputs(self, n: int) -> bool:
        """Whether ``gram_product`` of n samples goes through A A^T, formed once.

        With fewer samples (times positions) than twice the inputs a product then costs N^2 p operations, not 2 N d p.
        """
        T, g, d, _ = self.dims
        return g == 1 and n * T <= 2 * d

    def total(self, outputs: Tensor) -> Tensors:
        if self.num_outputs == 1:
            return self._summed(self.gradients[:, 0])
        return self._summed(torch.einsum("nctgp,c->ntgp", self.gradients, outputs.to(self.gradients)))

    def _summed(self, d: Tensor) -> Tensors:
        """``sum_i D_i^T A_i`` and ``sum_i D_i`` for D (N, T, g, p), one output a sample."""
        blocks = [self._sum(index, d[index]) for index in self.blocks(self.num_samples)]
        block = blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)
        result = {self.weight: self.as_weight(block[None, None])[0, 0]}
        if self.bias is not None:
            result[self.bias] = d.sum((0, 1)).flatten()
        return result

    def _sum(self, index: slice, d: Tensor) -> Tensor:
        """``sum_i D_i^T A_i`` over the samples in ``index``, (g, p, d)."""
        a = self.left(index)
        if a.shape[2] == 1:
            return (d.reshape(-1, d.shape[3]).T @ a.reshape(-1, a.shape[3])).unsqueeze(0)
        return torch.einsum("ntgp,ntgd->gpd", d, a)

    @property
    def _norms_by_rows(self) -> bool:
        """Whether rows are formed for their norms: with many positions that is cheaper."""
        T, _, d, p = self.dims
        return T * (d + p) >= 2 * d * p

    def total_and_squares(self, outputs: Tensor) -> tuple[Tensors, Tensor]:
        if not self._norms_by_rows:
            return super().total_and_squares(outputs)
        squares: list[Tensor] = []
        total: Tensors = {}
        for rows in self._few_rows():
            squares.append(squares_of(rows))
            sums = {name: torch.tensordot(outputs.to(g), g.sum(0), 1) for name, g in rows.items()}
            total = {name: total[name] + part if total else part for name, part in sums.items()}
        return total, torch.cat(squares)

    def squared_norms(self) -> Tensor:
        if self._norms_by_rows:
            return super().squared_norms()
        blocks = []
        for index in self.blocks(self.num_samples):  # |g|^2 = sum_ts (A A^T + 1)_ts (D D^T)_ts, summed over groups
            a, d_ = self.left(index).movedim(2, 1).unsqueeze(1), self.right(index).movedim(3, 2)
            inner = a @ a.transpose(-1, -2)  # (n, 1, g, T, T)
            blocks.append(((inner + (self.bias is not None)) * (d_ @ d_.transpose(-1, -2))).sum((2, 3, 4)))
        return torch.cat(blocks)


@dataclass(frozen=True)
class GhostPiece(Piece):
    """Tiles from Gram matrices of inputs and output gradients: ``K = sum_ts (A A^T + 1)_ts (D D^T)_ts``.

    A A^T is computed once for all pairs of outputs.
    """

    factor: OuterFactor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, contract: Contract, *, add: bool) -> None:
        assert isinstance(other, GhostPiece)
        a1, a2 = self.factor.left(rows), other.factor.left(columns)
        d1, d2 = self.factor.right(rows), other.factor.right(columns)
        for k in range(a1.shape[2]):
            inner = self.inner(a1[:, :, k], a2[:, :, k])  # (n1, T, n2, S)
            plus = self.factor.bias is not None
            combine(
                out, inner, (d1[:, :, :, k], d2[:, :, :, k]), contract, plus, unit=self.factor.unit, add=add or k > 0
            )

    def inner(self, a1: Tensor, a2: Tensor) -> Tensor:
        """A A^T of one group, (n1, T, d) and (n2, S, d) to (n1, T, n2, S)."""
        return (a1.flatten(0, 1) @ a2.flatten(0, 1).T).view(*a1.shape[:2], *a2.shape[:2])

    def totals(self, outputs: Tensor) -> list[tuple[str, int, Tensor]]:
        return [(name, 0, self.factor.piece_order(name, value)) for name, value in self.factor.total(outputs).items()]
