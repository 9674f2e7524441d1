"""Symmetric matrices with a given spectrum, and operators that count or deny their products."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.operators.operator import Operator


def planted(values: Tensor, seed: int = 0) -> Tensor:
    """A dense float64 matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return q @ torch.diag(values.double()) @ q.T


class Counted(Operator):
    """A matrix that counts the columns and the calls of its products."""

    def __init__(self, matrix: Tensor, *, symmetric: bool = True) -> None:
        super().__init__((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device)
        self.matrix, self.symmetric = matrix, symmetric
        self.columns = self.calls = 0

    def _matmat(self, matrix: Tensor) -> Tensor:
        self.columns, self.calls = self.columns + matrix.shape[1], self.calls + 1
        return self.matrix @ matrix

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        self.columns, self.calls = self.columns + matrix.shape[1], self.calls + 1
        return self.matrix.T @ matrix


class Noisy(Operator):
    """Answers differently each time, like a new mini-batch for every product."""

    symmetric = True

    def __init__(self, matrix: Tensor, noise: float) -> None:
        super().__init__((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device)
        self.matrix, self.noise, self.generator = matrix, noise, torch.Generator().manual_seed(0)

    def _matmat(self, matrix: Tensor) -> Tensor:
        change = torch.randn(self.shape, generator=self.generator, dtype=self.dtype)
        return (self.matrix + self.noise * (change + change.T)) @ matrix
