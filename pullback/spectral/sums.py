"""Inner products and lengths of long vectors: sums of float32 in parts, added up in float64.

One thread adds a vector of millions up in a few running sums, whose size swallows what comes in: lengths were off by
2e-3 at 16 million entries, products of matrices by more. Parts are short enough that float32 is as good as it gets.
"""

from __future__ import annotations

import torch
from torch import Tensor

PART = 2**16  # entries


def inner_products(rows: Tensor, block: Tensor) -> Tensor:
    """``rows @ block`` of (K, n) and (n, J) or (n,), in float64."""
    n = rows.shape[1]
    if n <= PART:
        return (rows @ block).double()
    total = torch.zeros(len(rows), *block.shape[1:], dtype=torch.float64, device=rows.device)
    for first in range(0, n, PART):
        total += rows[:, first : first + PART] @ block[first : first + PART]
    return total


def lengths(block: Tensor) -> Tensor:
    """Euclidean lengths of the columns of (n, J), or of one vector (n,), in float64."""
    if len(block) <= PART:
        return torch.linalg.vector_norm(block, dim=0).double()
    whole = len(block) - len(block) % PART
    parts = torch.linalg.vector_norm(block[:whole].unflatten(0, (-1, PART)), dim=1).double()
    if whole < len(block):
        parts = torch.cat([parts, torch.linalg.vector_norm(block[whole:], dim=0, keepdim=True).double()])
    return torch.linalg.vector_norm(parts, dim=0)
