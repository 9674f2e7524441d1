"""What kinds of rows have in common: forms of a kernel, what is summed over outputs, how cost is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["ghost", "shift", "materialise", "dense", "join", "fallback", "unused"]


Contract = Literal[
    "full", "trace", "diagonal"
]  # of the output axes of two rows: keep both, sum the equal, keep the equal


Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """What is to be done, by the rate at which a machine does it.

    Args:
        gemm: operations (an add and a multiply are two) of large matrix products.
        bmm: those of many small ones.
        stream: numbers that pass through an elementwise product and sum.
    """

    gemm: float = 0.0
    bmm: float = 0.0
    stream: float = 0.0

    @property
    def flops(self) -> float:
        """Operations of all products."""
        return self.gemm + self.bmm


def gram_flops(n1: int, n2: int | None) -> float:
    """Pairs an n1 x n2 product computes, counted twice for add and multiply; a symmetric one needs half."""
    return float(n1) * n1 if n2 is None else 2.0 * n1 * n2


def output_pairs(num_outputs: int, contract: Contract) -> int:
    """How many pairs of outputs a pair of samples brings."""
    return num_outputs**2 if contract == "full" else num_outputs


def block_shape(n1: int, n2: int, num_outputs: int, contract: Contract) -> tuple[int, ...]:
    """Shape of a kernel block as it is computed; see ``Piece``."""
    if contract == "diagonal":
        return (num_outputs, n1, n2)
    return (n1, n2) if contract == "trace" else (n1 * num_outputs, n2 * num_outputs)


def full_precision(tensor: Tensor) -> Tensor:
    """Half-precision captures are widened before anything is summed."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
