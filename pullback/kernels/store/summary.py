"""What is kept of every layer's kernel when only the total is stored: traces and inner products of layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._results import Shown


@dataclass(frozen=True)
class LayerSummary(Shown):
    """One layer's kernel in a few numbers; none is divided by N.

    Args:
        trace: sum over samples of the squared norms of the layer's gradients.
        frobenius_norm: root of the summed squares of all N^2 entries.
        sum: of all N^2 entries, which is the squared norm of the summed gradient.
        num_params: trainable numbers the layer owns.
    """

    trace: float
    frobenius_norm: float
    sum: float
    num_params: int


def triangle(matrix: Tensor) -> list[float]:
    """A symmetric matrix as the numbers on and below its diagonal, row by row."""
    rows, columns = torch.tril_indices(*matrix.shape, device="cpu")
    return matrix[rows, columns].tolist()


def summed(entries: Iterable[dict[str, Any]], num_layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Traces (L,), sums (L,) and inner products (L, L) of whole kernels from the ledger's entries of their tiles.

    A tile below the diagonal stands for itself and its mirror image.
    """
    traces, sums = torch.zeros(2, num_layers, dtype=torch.float64, device="cpu")
    inner = torch.zeros(num_layers, num_layers, dtype=torch.float64, device="cpu")
    rows, columns = torch.tril_indices(num_layers, num_layers, device="cpu")
    for entry in entries:
        i, j = entry["tile"]
        times = 1 if i == j else 2
        inner[rows, columns] += entry["inner"] * times
        sums += torch.tensor(entry["sums"], dtype=torch.float64, device="cpu") * times
        if i == j:
            traces += torch.tensor(entry["trace"], dtype=torch.float64, device="cpu")
    inner[columns, rows] = inner[rows, columns]
    return traces, sums, inner
