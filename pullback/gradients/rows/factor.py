"""Gradient rows in factored form: G^(l), from what a layer saw and what came back to it.

Every class here stands for the rows ``g_ic`` (sample i, output c) of one or more parameters. Letters, as in all of
``kernels``: ``n`` samples, ``C`` outputs, ``T`` positions, ``g`` groups, ``d`` inputs and ``p`` outputs of a layer
per group, ``m`` numbers of a parameter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Form, Products, Tensors, Work
from pullback.gradients.rows.pieces import Piece, dense_pieces, matched

GramProduct = Callable[[Tensor], Tensor]


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


class Factor(ABC):
    """Gradient rows of the parameters in ``shapes`` (name -> shape), for N samples with C outputs each."""

    shapes: dict[str, torch.Size]  # this and the next: a field in some kinds, in others a property that mypy is told of
    num_samples: int
    forms: tuple[Form, ...]  # ways its kernel can be computed, all exact
    held_apart = False  # rows of every parameter are held by themselves
    is_zero = False  # nothing depends on the parameters
    piece_bytes = 16 * 2**20  # rows formed at a time, unless memory is short: near the caches, and memory is reused

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """C."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """Any tensor of the rows' dtype and device."""

    @property
    def element_size(self) -> int:
        """Bytes a number."""
        return self.like.element_size()

    @property
    def num_params(self) -> int:
        """How many numbers the covered parameters hold."""
        return sum(shape.numel() for shape in self.shapes.values())

    @abstractmethod
    def work(self, form: Form, asked: Products) -> Work:
        """What a block of the kernel costs, with C outputs or another number of them."""

    def positions(self, form: Form) -> int:
        """Rows of a tile's temporaries that a sample brings."""
        return 1

    # What plans of other calls count: here for rows that are as many numbers as they are held in.
    def held(self, n: int, num_outputs: int) -> int:
        """Captured numbers, for ``n`` samples with ``num_outputs`` outputs."""
        return self.like.numel() // max(1, self.num_samples) * n * num_outputs

    def held_bytes(self, n: int, seen: dict[int, Tensor]) -> tuple[int, int]:
        """Bytes kept for ``n`` samples, each storage once, and those of them that autograd keeps too.

        ``seen`` holds the tensors it knows: a storage that is freed would pass its key on to another one. The key is
        one on the meta device, too, where all data is at address 0.
        """
        held = kept = 0
        for name, tensor in self.tensors().items():
            if (key := tensor.untyped_storage()._cdata) in seen:
                continue
            seen[key] = tensor
            size = min(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size())
            size = size * n // max(1, self.num_samples)
            held += size
            kept += size if name in self.kept_by_autograd else 0
        return held, kept

    def forward_flops(self, n: int) -> float:
        """Operations of the layer's part of a forward pass."""
        return 2.0 * n * min(self.num_params, self.like[0].numel())

    def product_flops(self, n: int, num_outputs: int) -> float:
        """Operations of a product with the rows, or with their transpose."""
        return self.forward_flops(n) * num_outputs

    def gram_product_flops(self, n: int, num_outputs: int) -> tuple[float, float]:
        """Operations of what all calls of a ``gram_product`` share, and of one call."""
        return 0.0, 2 * self.product_flops(n, num_outputs)

    def check_flops(self) -> float:
        """Operations of a sample's share in ``total``, and of its ``squared_norms``; none of rows that are held."""
        return 0.0

    kept_by_autograd: tuple[str, ...] = ()  # names of tensors the backward pass needs as well

    def temporary_bytes(self, n: int, piece_bytes: int) -> int:
        """Bytes beside a piece of ``piece_bytes`` of gradient rows of ``n`` samples while it is formed."""
        return 0

    @abstractmethod
    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        """Parts whose tiles sum to the kernel; a part forms at most ``max_numbers`` a sample, where possible."""

    def shared_pieces(
        self, others: Sequence[Self], max_numbers: int, rank: int, ranks: int
    ) -> Iterator[tuple[Piece, ...]]:
        """One of ``ranks`` parts of the pieces of formed rows, matched with those of other samples."""
        every = matched([side.pieces("materialise", max_numbers) for side in (self, *others)])
        return islice(every, rank, None, ranks)

    def from_shared_order(self, totals: Tensors) -> Tensors:
        """Flat sums of rows from the order of ``shared_pieces`` to that of ``pieces``."""
        return totals

    @abstractmethod
    def rows(self, index: slice) -> Tensors:
        """The gradients themselves: parameter -> (n, C, *shape) for the samples in ``index``."""

    @abstractmethod
    def only(self, name: str) -> Factor:
        """The same rows restricted to one of the parameters."""

    def piece_order(self, name: str, value: Tensor) -> Tensor:
        """A tensor shaped like parameter ``name``, flattened in the order of the pieces."""
        return value.reshape(-1)

    @abstractmethod
    def matvec(self, vectors: Tensors) -> Tensor:
        """``G v``: parameter -> (*shape) to (N, C)."""

    @abstractmethod
    def rmatvec(self, weights: Tensor) -> Tensors:
        """``G^T u``: (N, C) to parameter -> (*shape)."""

    def times(self, vectors: Tensors) -> Tensor:
        """``G V``: parameter -> (K, *shape) to (N, C, K)."""
        count = len(next(iter(vectors.values())))
        columns = [self.matvec({name: vectors[name][k] for name in self.shapes}) for k in range(count)]
        return torch.stack(columns, 2)

    def transposed_times(self, weights: Tensor) -> Tensors:
        """``G^T U``: (N, C, K) to parameter -> (K, *shape)."""
        columns = [self.rmatvec(weights[:, :, k]) for k in range(weights.shape[2])]
        return {name: torch.stack([column[name] for column in columns]) for name in self.shapes}

    def gram_product(self) -> GramProduct:
        """``G G^T`` as a product, (N, C, K) to (N, C, K); what all products share is formed here."""
        return lambda weights: self.times(self.transposed_times(weights))

    def total(self, outputs: Tensor) -> Tensors:
        """``sum_ic outputs_c g_ic``: (C,) to parameter -> (*shape)."""
        return self.rmatvec(outputs.expand(self.num_samples, -1))

    def squared_norms(self) -> Tensor:
        """``|g_ic|^2``, (N, C)."""
        return torch.cat([squares_of(rows) for rows in self._few_rows()])

    def _few_rows(self) -> Iterator[Tensors]:
        """The rows of all samples, some samples at a time."""
        step = max(1, 2**24 // max(1, self.num_params * self.num_outputs))
        for start in range(0, self.num_samples, step):
            yield self.rows(slice(start, min(start + step, self.num_samples)))

    def total_and_squares(self, outputs: Tensor) -> tuple[Tensors, Tensor]:
        """``total`` and ``squared_norms``; of rows that are formed once, where both are made of rows."""
        return self.total(outputs), self.squared_norms()

    def tensors(self) -> Tensors:
        """Every tensor held, by field name; those in a dict as ``field/key``."""
        tensors_of: Tensors = {}
        for name in _field_names(type(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                tensors_of[name] = value
            elif isinstance(value, Factor):
                tensors_of |= {f"{name}/{key}": t for key, t in value.tensors().items()}
            elif isinstance(value, dict):
                tensors_of |= {f"{name}/{key}": v for key, v in value.items() if isinstance(v, Tensor)}
        return tensors_of

    def constants(self) -> dict[str, str]:
        """Everything else that is held, but for the number of samples: equal for all samples of a layer."""
        texts: dict[str, str] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Factor):
                texts |= {f"{field.name}/{key}": text for key, text in value.constants().items()}
            elif not isinstance(value, Tensor | dict) and field.name != "num_samples":
                texts[field.name] = repr(value)
        return texts

    def with_tensors(self, tensors: Tensors) -> Self:
        """The same factor with other tensors in the places ``tensors()`` names: other samples of the same layer."""
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            inside = {k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(field.name + "/")}
            if field.name in tensors:
                changed[field.name] = tensors[field.name]
            elif isinstance(value, Factor):
                changed[field.name] = value.with_tensors(inside)
            elif isinstance(value, dict) and inside:
                changed[field.name] = value | inside
        return replace(self, **changed)  # type: ignore[type-var]

    def condensed(self) -> Factor:
        """The rows themselves in place of what they are made of."""
        return DenseFactor(self.rows(slice(0, self.num_samples)))

    def joined(self, others: Sequence[Self]) -> Self:
        """Rows of this factor's samples, then of the others': further batches of the same capture."""
        every = [self.tensors(), *(other.tensors() for other in others)]
        return self.with_tensors({name: torch.cat([tensors[name] for tensors in every]) for name in every[0]})


@dataclass(frozen=True)
class DenseFactor(Factor):
    """Rows held as they are: parameter -> (N, C, *shape). Norm layers, biases, the fallback."""

    gradients: Tensors
    form: Form = "dense"

    held_apart = True

    @property
    def like(self) -> Tensor:
        return next(iter(self.gradients.values()))

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return {name: g.shape[2:] for name, g in self.gradients.items()}

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return len(self.like)

    @property
    def num_outputs(self) -> int:
        return self.like.shape[1]

    @property
    def forms(self) -> tuple[Form, ...]:  # type: ignore[override]
        return (self.form,)

    def work(self, form: Form, asked: Products) -> Work:
        return Work(gemm=asked.flops * self.num_params * asked.pairs)

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        for name, g in self.gradients.items():
            yield from dense_pieces(name, 0, g.flatten(2) if g.dim() > 2 else g.unsqueeze(2))

    def rows(self, index: slice) -> Tensors:
        return {name: g[index] for name, g in self.gradients.items()}

    def only(self, name: str) -> Factor:
        return DenseFactor({name: self.gradients[name]}, self.form)

    def matvec(self, vectors: Tensors) -> Tensor:
        each = [
            (g.flatten(2) if g.dim() > 2 else g.unsqueeze(2)) @ vectors[n].reshape(-1)
            for n, g in self.gradients.items()
        ]
        return torch.stack(each).sum(0)

    def times(self, vectors: Tensors) -> Tensor:
        n, C, count = self.num_samples, self.num_outputs, len(next(iter(vectors.values())))
        parts = [g.reshape(n * C, -1) @ vectors[name].reshape(count, -1).T for name, g in self.gradients.items()]
        return torch.stack(parts).sum(0).view(n, C, -1)

    def transposed_times(self, weights: Tensor) -> Tensors:
        flat = weights.flatten(0, 1).T  # (K, N C)
        return {
            name: (flat @ g.reshape(flat.shape[1], -1)).view(-1, *g.shape[2:]) for name, g in self.gradients.items()
        }

    def rmatvec(self, weights: Tensor) -> Tensors:
        flat = weights.to(self.like).reshape(-1)
        return {n: (flat @ g.reshape(len(flat), -1)).view(g.shape[2:]) for n, g in self.gradients.items()}


def squares_of(rows: Tensors) -> Tensor:
    """Squared lengths of rows, (n, C)."""
    return sum(g.reshape(*g.shape[:2], -1).square().sum(2) for g in rows.values())  # type: ignore[return-value]
