"""NumPy's arrays as tensors, and operators as SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import input_error, unsupported


def to_scipy(op: Any) -> Any:
    """A ``scipy.sparse.linalg.LinearOperator`` with the products of ``op``: shape, dtype, device, ``@``, ``T``."""
    from scipy.sparse.linalg import LinearOperator

    if op.dtype not in (torch.float16, torch.float32, torch.float64):
        got, remedy = str(op.dtype), "Build the operator in float32"
        raise unsupported("to_scipy", "a dtype NumPy has", got, remedy)

    def product(operator: Any) -> Any:
        def of_array(array: Any) -> Any:
            return (operator @ tensor_of(np.asarray(array)).to(op.device, op.dtype)).cpu().numpy()

        return of_array

    left, right = product(op), product(op.T)
    numpy_dtype = torch.empty(0, dtype=op.dtype, device="cpu").numpy().dtype
    return LinearOperator(op.shape, matvec=left, matmat=left, rmatvec=right, rmatmat=right, dtype=numpy_dtype)


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor, on its memory unless torch cannot have it so (not writeable, reversed)."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def real_tensor(array: np.ndarray[Any, Any], where: str) -> Tensor:
    """The array as a tensor of floats, refused if it is not real.

    Kinds of numbers that torch has no products for (integers, long doubles, another byte order) come as float64.
    """
    if array.dtype.kind not in "fiub":
        raise input_error(where, "real entries", str(array.dtype), "Convert the array to float64")
    return tensor_of(array if array.dtype in (np.float16, np.float32, np.float64) else array.astype(np.float64))
