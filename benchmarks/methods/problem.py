"""What a method is given, and what its call returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class Skip(Exception):
    """A method that cannot run in this environment; the message says why."""


@dataclass(frozen=True)
class Problem:
    """A model and its data; the loss is summed over samples: no g_i is rescaled.

    Args:
        model: without layers that mix samples.
        x: inputs, (N, ...).
        y: class labels, (N, ...).
        products: (T, d, p) per layer, for ``gemm``: positions, inputs (kernel taps included), outputs.
        loss_fn: of outputs and labels, summed over the samples or one number per sample.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    products: tuple[tuple[int, int, int], ...] = ()
    loss_fn: Callable[[Tensor, Tensor], Tensor] = field(default_factory=lambda: nn.CrossEntropyLoss(reduction="sum"))

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The number whose gradients the peers take: the sum over the samples given."""
        return self.loss_fn(outputs, y).sum()


@dataclass(frozen=True)
class Blocks:
    """The total kernel, (N, N) or (N, N, C, C), and every layer's block by module name; {} where a method has none."""

    total: Tensor
    layers: dict[str, Tensor]


@dataclass(frozen=True)
class Columns:
    """Products with fixed vectors: (P,) or (P, K) each, or split by parameter. Side by side all must agree."""

    parts: list[Tensor | Sequence[Tensor]]

    def matrix(self) -> Tensor:
        """All columns, (P, K)."""
        flat = [p if isinstance(p, Tensor) else torch.cat([q.reshape(-1) for q in p]) for p in self.parts]
        return torch.cat([part.reshape(len(part), -1) for part in flat], 1)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (k,), descending; their vectors (P, k) and the products they took, where a method has those."""

    values: Tensor
    vectors: Tensor | None = None
    num_products: int | None = None


@dataclass(frozen=True)
class Elsewhere:
    """What a call reports whose work was done and timed in other processes: the fields ``child.measure`` returns."""

    report: dict[str, Any]


Call = Callable[[], Blocks | Columns | Spectrum | Elsewhere | None]
