"""Two numbers of a kernel, of products or of a spectrum, which every method must agree on."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.methods.problem import Blocks, Columns, Spectrum


def checksum(result: Blocks | Columns | Spectrum) -> dict[str, list[float]]:
    """Of the total and of every block K: the Frobenius norm, and u^T K v for fixed random signs u, v.

    A deviation E of K shows in the second number as about |E|, whatever it does to the norm.
    """
    if isinstance(result, Columns):
        return {"total": numbers(result.matrix())}
    if isinstance(result, Spectrum):
        return {"total": numbers(result.values.unsqueeze(1))}
    return {name: numbers(block) for name, block in {"total": result.total, **result.layers}.items()}


def numbers(block: Tensor) -> list[float]:
    """Of one matrix: of any shape, or (N, N, C, C) with a sign for every pair of sample and output."""
    if block.ndim == 4:
        block = block.transpose(1, 2).flatten(2).flatten(0, 1)
    u, v = signs(block.shape[0])[0], signs(block.shape[1])[1]
    block = block.detach().double()
    return [float(torch.linalg.vector_norm(block)), float(u @ block @ v)]


def signs(n: int) -> tuple[Tensor, Tensor]:
    """The two vectors of random signs, (n,) each."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.randint(2, (n,), generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    return u, v
