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


@dataclass(frozen=True)
class Products:
    """The inner products that are asked for, of n1 samples with n2 others or with each other.

    Args:
        n1: samples of the rows.
        n2: of the columns; None: those of the rows.
        num_outputs: C.
        contract: of the output axes.
        shape: of the block, as it is computed; see ``Piece``.
        flops: operations for each number of a row and each pair of outputs; half of them if it is symmetric.
        pairs: pairs of outputs that a pair of samples brings.
    """

    n1: int
    n2: int | None
    num_outputs: int
    contract: Contract
    shape: tuple[int, ...]
    flops: float
    pairs: int

    @classmethod
    def of(cls, n1: int, n2: int | None, num_outputs: int, contract: Contract = "full") -> Products:
        """With what follows from the sizes."""
        C, columns = num_outputs, n1 if n2 is None else n2
        shapes = {"full": (n1 * C, columns * C), "trace": (n1, columns), "diagonal": (C, n1, columns)}
        flops = float(n1) * n1 if n2 is None else 2.0 * n1 * n2
        return cls(n1, n2, C, contract, shapes[contract], flops, C**2 if contract == "full" else C)


def full_precision(tensor: Tensor) -> Tensor:
    """Half-precision captures are widened before anything is summed."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
