"""Sizes and tokens that the tests of rank collapse share."""

from __future__ import annotations

import torch
from torch import Tensor

N, T, D, H = 3, 6, 16, 4
PADDED = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
