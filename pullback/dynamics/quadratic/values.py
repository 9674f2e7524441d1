"""What a user may pass for a matrix, a vector, a covariance, as tensors; and the checks they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.operators import Operator


def values(value: Any, name: str, where: str) -> Tensor:
    """A tensor of finite numbers on the CPU, in its own dtype; lists and whole numbers are float64.

    Raises:
        InputError: NaN or Inf.
    """
    if isinstance(value, Operator):
        value = value.to_dense()
    found = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    found = found if found.is_floating_point() else found.double()
    if not found.isfinite().all():
        raise input_error(where, f"finite numbers in `{name}`", "NaN or Inf", "Look at what made them")
    return found


def symmetric(matrix: Tensor, where: str) -> Tensor:
    """In float64, a matrix that is its own transpose up to the rounding of its dtype.

    Raises:
        InputError: it is not.
    """
    apart, most = float((matrix - matrix.T).abs().max()), float(matrix.abs().max())
    if apart > len(matrix) * torch.finfo(matrix.dtype).eps * most:
        got = f"entries that differ from their mirror image by {apart:.3g}"
        raise input_error(where, "a symmetric matrix", got, "Pass (A + A.T) / 2, which has the same values x^T A x")
    return ((matrix + matrix.T) / 2).double()


def check_momentum(where: str, momentum: float) -> None:
    """Refuse a momentum outside [0, 1).

    Raises:
        InputError: it is.
    """
    if not 0 <= momentum < 1:
        raise input_error(where, "`momentum` in [0, 1)", repr(momentum), "Pass a momentum below 1")
