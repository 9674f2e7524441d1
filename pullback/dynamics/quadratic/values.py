"""What a user may pass for a matrix, a vector, a covariance, as tensors; and the checks they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import as_number, input_error
from pullback.operators import Operator


def values(value: Any, name: str, where: str) -> Tensor:
    """A tensor of finite numbers on the CPU, in its own dtype; lists and whole numbers are float64, sparse ones dense.

    Raises:
        InputError: NaN or Inf; complex numbers; what is no numbers at all.
    """
    return points(value, name, where).detach()


def points(value: Any, name: str, where: str) -> Tensor:
    """``values``, which a tensor's graph goes through."""
    if isinstance(value, Operator) or (isinstance(value, Tensor) and value.layout != torch.strided):
        value = value.to_dense()
    tensor = value.cpu() if isinstance(value, Tensor) else _read(value, name, where)
    if tensor.is_complex():
        raise input_error(where, f"real numbers in `{name}`", f"{tensor.dtype}", "Pass the real part, if that is meant")
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    if not tensor.isfinite().all():
        raise input_error(where, f"finite numbers in `{name}`", "NaN or Inf", "Look at what made them")
    return tensor


def _read(value: Any, name: str, where: str) -> Tensor:
    """Lists and arrays."""
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:  # words, nothing, rows of several lengths
        got = f"{type(value).__name__} without a shape or without numbers"
        raise input_error(where, f"numbers in `{name}`", got, "Pass a tensor, an array or a list of numbers") from error


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
    if not 0 <= as_number(momentum) < 1:
        raise input_error(where, "`momentum` in [0, 1)", repr(momentum), "Pass a momentum below 1")


def check_number_of(where: str, name: str, function: Any, *at: Tensor) -> None:
    """Refuse what does not answer with one number, which torch can differentiate.

    Raises:
        InputError: it does not, or cannot be called.
    """
    found = function(*(each.clone().requires_grad_() for each in at)) if callable(function) else function
    if not isinstance(found, Tensor) or found.dim() or not found.is_floating_point():
        got = f"shape {tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        remedy = "Return a tensor without axes, as .sum() does"
        raise input_error(where, f"`{name}` that returns one number", got, remedy)
