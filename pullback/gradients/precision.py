"""Products in the precision of the numbers they are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Half-precision captures are widened before anything is summed."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
