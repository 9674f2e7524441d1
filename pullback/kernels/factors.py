"""Gradient rows in factored form: G^(l), (N, P_l), from the inputs and output gradients of a layer.

Every class here stands for the rows ``g_i`` of one or two parameters. Letters, as in all of ``kernels``:
``n`` samples, ``T`` positions, ``g`` groups, ``d`` inputs and ``p`` outputs per group, ``m`` numbers of a parameter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Form = Literal["ghost", "materialise", "dense", "join", "fallback", "unused"]

Tensors = dict[str, Tensor]


class Piece(ABC):
    """A part of a layer's gradient rows from which tiles of its kernel are made without any further copy."""

    @abstractmethod
    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, *, add: bool) -> None:
        """Write (or add) ``<g_i, g_j>`` of this part, i in ``rows`` here, j in ``columns`` of ``other``, to ``out``."""

    @abstractmethod
    def totals(self) -> list[tuple[str, int, Tensor]]:
        """Sum of the rows: (parameter, offset into its flattened form, values)."""


class Factor(ABC):
    """Gradient rows of the parameters in ``shapes`` (name -> shape), for ``num_samples`` samples."""

    shapes: dict[str, torch.Size]
    num_samples: int

    like: Tensor  # any tensor of the rows' dtype and device

    @property
    def element_size(self) -> int:
        """Bytes a number."""
        return self.like.element_size()

    @property
    def num_params(self) -> int:
        """How many numbers the covered parameters hold."""
        return sum(shape.numel() for shape in self.shapes.values())

    @abstractmethod
    def forms(self) -> tuple[Form, ...]:
        """Ways this factor's kernel can be computed, all exact."""

    @abstractmethod
    def flops(self, form: Form, n1: int, n2: int | None) -> float:
        """Operations (an add and a multiply are two) for an n1 x n1 (n2 None) or n1 x n2 kernel."""

    @abstractmethod
    def held_bytes(self, n: int) -> int:
        """Bytes this factor keeps for ``n`` samples."""

    @abstractmethod
    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        """Parts whose tiles sum to the kernel; a part forms at most ``max_numbers`` a sample, where possible."""

    @abstractmethod
    def rows(self, index: slice) -> Tensors:
        """The gradients themselves: parameter -> (n, *shape) for the samples in ``index``."""

    @abstractmethod
    def only(self, name: str) -> Factor:
        """The same rows restricted to one of the parameters."""

    def piece_order(self, name: str, value: Tensor) -> Tensor:
        """A tensor shaped like parameter ``name``, flattened in the order of the pieces."""
        return value.reshape(-1)

    @abstractmethod
    def matvec(self, vectors: Tensors) -> Tensor:
        """``G v``: parameter -> (*shape) to (N,)."""

    @abstractmethod
    def rmatvec(self, weights: Tensor) -> Tensors:
        """``G^T u``: (N,) to parameter -> (*shape)."""

    def total(self) -> Tensors:
        """``G^T 1``: parameter -> (*shape), the sum of the rows."""
        return self.rmatvec(self.like.new_ones(self.num_samples))

    def squared_norms(self) -> Tensor:
        """``|g_i|^2``, (N,)."""
        step = max(1, 2**24 // max(1, self.num_params))
        blocks = []
        for start in range(0, self.num_samples, step):
            rows = self.rows(slice(start, min(start + step, self.num_samples)))
            blocks.append(sum(g.flatten(1).square().sum(1) for g in rows.values()))
        return torch.cat(blocks)  # type: ignore[arg-type]


def gram_flops(n1: int, n2: int | None) -> float:
    """Pairs an n1 x n2 product computes, counted twice for add and multiply; a symmetric one needs half."""
    return float(n1) * n1 if n2 is None else 2.0 * n1 * n2


@dataclass(frozen=True)
class DensePiece(Piece):
    """Rows themselves, (n, m), a stretch of parameter ``name`` from ``offset`` on."""

    name: str
    offset: int
    matrix: Tensor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, *, add: bool) -> None:
        assert isinstance(other, DensePiece)
        out.addmm_(self.matrix[rows], other.matrix[columns].T, beta=int(add))

    def totals(self) -> list[tuple[str, int, Tensor]]:
        return [(self.name, self.offset, self.matrix.sum(0))]


@dataclass(frozen=True)
class DenseFactor(Factor):
    """Rows held as they are: parameter -> (N, *shape). Norm layers, biases, the fallback."""

    gradients: Tensors
    form: Form = "dense"

    @property
    def like(self) -> Tensor:  # type: ignore[override]
        return next(iter(self.gradients.values()))

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return {name: g.shape[1:] for name, g in self.gradients.items()}

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return len(next(iter(self.gradients.values())))

    def forms(self) -> tuple[Form, ...]:
        return (self.form,)

    def flops(self, form: Form, n1: int, n2: int | None) -> float:
        return gram_flops(n1, n2) * self.num_params

    def held_bytes(self, n: int) -> int:
        return sum(n * g[0].numel() * g.element_size() for g in self.gradients.values())

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        for name, g in self.gradients.items():
            yield DensePiece(name, 0, g.flatten(1))

    def rows(self, index: slice) -> Tensors:
        return {name: g[index] for name, g in self.gradients.items()}

    def only(self, name: str) -> Factor:
        return DenseFactor({name: self.gradients[name]}, self.form)

    def matvec(self, vectors: Tensors) -> Tensor:
        return torch.stack([g.flatten(1) @ vectors[name].reshape(-1) for name, g in self.gradients.items()]).sum(0)

    def rmatvec(self, weights: Tensor) -> Tensors:
        return {n: (weights @ g.flatten(1)).view(g.shape[1:]) for n, g in self.gradients.items()}


@dataclass(frozen=True)
class UnusedFactor(Factor):
    """Parameters the loss does not depend on: their gradients are zero."""

    shapes: dict[str, torch.Size]
    num_samples: int
    like: Tensor

    def forms(self) -> tuple[Form, ...]:
        return ("unused",)

    def flops(self, form: Form, n1: int, n2: int | None) -> float:
        return 0.0

    def held_bytes(self, n: int) -> int:
        return 0

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        return iter(())

    def rows(self, index: slice) -> Tensors:
        count = len(range(self.num_samples)[index])
        return {name: self.like.new_zeros(count, *shape) for name, shape in self.shapes.items()}

    def only(self, name: str) -> Factor:
        return UnusedFactor({name: self.shapes[name]}, self.num_samples, self.like)

    def matvec(self, vectors: Tensors) -> Tensor:
        return self.like.new_zeros(self.num_samples)

    def rmatvec(self, weights: Tensor) -> Tensors:
        return {name: self.like.new_zeros(shape) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class OuterFactor(Factor):
    """Sums of outer products, ``g_i = sum_t D_it (x) A_it``: linear layers, and all that can be written as one.

    Args:
        inputs: A, (N, T, g, d).
        gradients: D, the derivative of each sample's loss in the layer's outputs, (N, T, g, p).
        weight: name of the weight, or None if it is not asked for.
        bias: name of the bias, or None.
        weight_shape: shape of the weight; its numbers are ordered (g, p, d), or (d, p) if ``transposed``.
    """

    inputs: Tensor
    gradients: Tensor
    weight: str | None
    bias: str | None
    weight_shape: torch.Size
    transposed: bool = False

    # A and D of some samples. Convolutions override `left`: they unfold only when asked.
    def left(self, index: slice) -> Tensor:
        """A for the samples in ``index``, (n, T, g, d)."""
        return self.inputs[index]

    def right(self, index: slice) -> Tensor:
        """D for the samples in ``index``, (n, T, g, p)."""
        return self.gradients[index]

    @property
    def like(self) -> Tensor:  # type: ignore[override]
        return self.gradients

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """T, g, d, p."""
        _, T, g, p = self.gradients.shape
        return T, g, self.weight_shape.numel() // (g * p), p

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        _, g, _, p = self.dims
        shapes = {self.weight: self.weight_shape, self.bias: torch.Size([g * p])}
        return {name: shape for name, shape in shapes.items() if name is not None}

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return len(self.gradients)

    def forms(self) -> tuple[Form, ...]:
        return ("ghost", "materialise") if self.weight is not None else ("materialise",)

    def flops(self, form: Form, n1: int, n2: int | None) -> float:
        T, g, d, p = self.dims
        if form == "ghost":
            return gram_flops(n1, n2) * g * T * T * (d + p + 1)
        samples = n1 + (n2 or 0)
        return g * (2.0 * samples * T * d * p + gram_flops(n1, n2) * d * p)

    def held_bytes(self, n: int) -> int:
        per_sample = self.inputs[0].numel() + self.gradients[0].numel()
        return n * per_sample * self.element_size

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        if form == "ghost":
            yield GhostPiece(self)
            return
        if self.weight is not None:
            yield from self._weight_pieces(self.weight, max_numbers)
        if self.bias is not None:
            yield DensePiece(self.bias, 0, self.gradients.sum(1).flatten(1))

    def _weight_pieces(self, name: str, max_numbers: int) -> Iterator[Piece]:
        """W_i = D_i^T A_i for all samples, in stretches of outputs that make at most ``max_numbers`` a sample."""
        _, g, d, p = self.dims
        step = max(1, min(p, max_numbers // (g * d)))
        for start in range(0, p, step):
            block = self.outer(slice(0, self.num_samples), slice(start, start + step))  # (n, g, p', d)
            if g > 1 and block.shape[2] < p:  # a stretch of outputs is not contiguous in the weight: one piece a group
                for k in range(g):
                    yield DensePiece(name, (k * p + start) * d, block[:, k].flatten(1))
            else:
                yield DensePiece(name, start * d, block.flatten(1))

    def outer(self, index: slice, outputs: slice) -> Tensor:
        """``W_i[outputs]``, (n, g, p', d), for the samples in ``index``."""
        a, d = self.left(index), self.right(index)[..., outputs]
        if a.shape[2] == 1:
            return (d[:, :, 0].transpose(1, 2) @ a[:, :, 0]).unsqueeze(1)
        return torch.einsum("ntgp,ntgd->ngpd", d, a)

    def rows(self, index: slice) -> Tensors:
        rows = {}
        if self.weight is not None:
            rows[self.weight] = self._as_weight(self.outer(index, slice(None)))
        if self.bias is not None:
            rows[self.bias] = self.right(index).sum(1).flatten(1)
        return rows

    def _as_weight(self, block: Tensor) -> Tensor:
        """(n, g, p, d) -> (n, *weight_shape)."""
        if self.transposed:
            block = block.squeeze(1).transpose(1, 2)
        return block.reshape(len(block), *self.weight_shape)

    def _from_weight(self, weight: Tensor) -> Tensor:
        """(*weight_shape) -> (g, p, d)."""
        _, g, d, p = self.dims
        return weight.T.reshape(g, p, d) if self.transposed else weight.reshape(g, p, d)

    def piece_order(self, name: str, value: Tensor) -> Tensor:
        return (self._from_weight(value) if name == self.weight else value).reshape(-1)

    def only(self, name: str) -> Factor:
        if name == self.bias:
            return DenseFactor({name: self.gradients.sum(1).flatten(1)})
        return replace(self, bias=None)

    def _blocks(self) -> Iterator[slice]:
        """Stretches of samples whose unfolded inputs stay near 64 MB."""
        T, g, d, _ = self.dims
        step = max(1, 2**24 // max(1, T * g * d))
        for start in range(0, self.num_samples, step):
            yield slice(start, min(start + step, self.num_samples))

    def matvec(self, vectors: Tensors) -> Tensor:
        result = self.gradients.new_zeros(self.num_samples)
        if self.weight is not None:
            v = self._from_weight(vectors[self.weight])
            for index in self._blocks():
                image = torch.einsum("ntgd,gpd->ntgp", self.left(index), v)
                result[index] += (image * self.right(index)).sum((1, 2, 3))
        if self.bias is not None:
            result += self.gradients.sum(1).flatten(1) @ vectors[self.bias].reshape(-1)
        return result

    def rmatvec(self, weights: Tensor) -> Tensors:
        return replace(self, gradients=self.gradients * weights.view(-1, 1, 1, 1)).total()

    def total(self) -> Tensors:
        result = {}
        if self.weight is not None:
            blocks = [self._sum(index) for index in self._blocks()]
            block = blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)
            result[self.weight] = self._as_weight(block.unsqueeze(0))[0]
        if self.bias is not None:
            result[self.bias] = self.gradients.sum((0, 1)).flatten()
        return result

    def _sum(self, index: slice) -> Tensor:
        """``sum_i D_i^T A_i`` over the samples in ``index``, (g, p, d)."""
        d, a = self.right(index), self.left(index)
        if a.shape[2] == 1:
            return (d.reshape(-1, d.shape[3]).T @ a.reshape(-1, a.shape[3])).unsqueeze(0)
        return torch.einsum("ntgp,ntgd->gpd", d, a)

    def squared_norms(self) -> Tensor:
        T, _, d, p = self.dims
        if self.weight is None or T * (d + p) >= 2 * d * p:
            return super().squared_norms()
        blocks = []
        for index in self._blocks():  # |g_i|^2 = sum_ts (A A^T + 1)_ts (D D^T)_ts, summed over groups
            a, d_ = self.left(index).movedim(2, 1), self.right(index).movedim(2, 1)
            inner = a @ a.transpose(-1, -2)
            blocks.append(((inner + (self.bias is not None)) * (d_ @ d_.transpose(-1, -2))).sum((1, 2, 3)))
        return torch.cat(blocks)


@dataclass(frozen=True)
class GhostPiece(Piece):
    """Tiles from the Gram matrices of inputs and output gradients: ``K_ij = sum_ts (A A^T + 1)_ts (D D^T)_ts``."""

    factor: OuterFactor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, *, add: bool) -> None:
        assert isinstance(other, GhostPiece)
        a1, d1 = self.factor.left(rows), self.factor.right(rows)  # (n1, T, g, d), (n1, T, g, p)
        same = other is self and rows == columns
        a2, d2 = (a1, d1) if same else (other.factor.left(columns), other.factor.right(columns))
        (n1, T), (n2, S) = a1.shape[:2], a2.shape[:2]
        for k in range(a1.shape[2]):
            inner = a1[:, :, k].reshape(n1 * T, -1) @ a2[:, :, k].reshape(n2 * S, -1).T
            if self.factor.bias is not None:
                inner += 1
            outer = d1[:, :, k].reshape(n1 * T, -1) @ d2[:, :, k].reshape(n2 * S, -1).T
            if T == S == 1 and not (add or k):
                torch.mul(inner, outer, out=out)
            else:
                part = inner.mul_(outer).view(n1, T, n2, S).sum((1, 3))
                torch.add(out, part, out=out) if add or k else out.copy_(part)

    def totals(self) -> list[tuple[str, int, Tensor]]:
        return [(name, 0, self.factor.piece_order(name, value)) for name, value in self.factor.total().items()]
