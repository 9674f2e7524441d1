"""The border: matrices and other packages' operators as this package's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import input_error, unsupported
from pullback.operators.arrays import real_tensor, tensor_of
from pullback.operators.operator import Operator


def as_operator(op: Any, where: str = "as_operator", *, symmetric: bool = False) -> Operator:
    """Anything with ``.shape`` and ``@`` as an ``Operator``.

    Operators of this package (kernels too) come back as they are. Tensors and NumPy arrays are matrices. Objects
    with a NumPy ``dtype`` (SciPy's sparse matrices and LinearOperators) are given NumPy arrays, and results are
    converted; all others are given tensors of their ``dtype`` (float64 if they have none) on their ``device`` (the
    CPU if they have none), which is what curvlinops' operators take. Their transpose is ``.T`` or ``.adjoint()``.

    Args:
        op: the object.
        where: the caller, for error messages.
        symmetric: that the matrix equals its transpose; of foreign objects this cannot be known.

    Raises:
        InputError: no two-dimensional shape, no ``@``, entries that are not real numbers; on use, products of
            another shape.
        UnsupportedError: on use, a product with the transpose of an object that has none.

    Cost: none; integers are converted to float64.

    Example:
        >>> A = as_operator(np.array([[1, 2], [3, 4]]))
        >>> A.T @ torch.ones(2, dtype=torch.float64)
        tensor([4., 6.], dtype=torch.float64)
    """
    if isinstance(op, Operator):
        return op
    shape = getattr(op, "shape", None)
    if not isinstance(shape, tuple | list) or len(shape) != 2 or not hasattr(op, "__matmul__"):
        got = type(op).__name__ if shape is None else f"{type(op).__name__} of shape {tuple(shape)}"
        expected = "an operator, or an object with a `shape` (rows, columns) and `@`"
        raise input_error(where, expected, got, "Pass a matrix, or define both")
    if isinstance(op, np.ndarray):
        op = real_tensor(op, where)
    if isinstance(op, Tensor):
        matrix = op.detach()
        if matrix.is_complex():
            raise input_error(where, "real entries", str(matrix.dtype), "Pass real and imaginary parts by themselves")
        return Dense(matrix if matrix.is_floating_point() else matrix.double(), symmetric=symmetric)
    return Foreign(op, where, symmetric=symmetric)


class Dense(Operator):
    """A matrix that is there as a whole."""

    def __init__(self, matrix: Tensor, *, symmetric: bool = False) -> None:
        super().__init__((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device)
        self.matrix, self.symmetric = matrix, symmetric

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.matrix @ matrix

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.matrix.T @ matrix

    def to_dense(self) -> Tensor:
        """A copy of the matrix."""
        return self.matrix.clone()


class Foreign(Operator):
    """An object of another package, known by its ``shape`` and ``@``."""

    def __init__(self, wrapped: Any, where: str, *, symmetric: bool = False) -> None:
        found = getattr(wrapped, "dtype", None)
        if found is None and type(wrapped).__module__.partition(".")[0] == "scipy":
            found = np.dtype(np.float64)  # a LinearOperator that has not been asked for a product yet
        self._numpy = found is not None and not isinstance(found, torch.dtype)
        if self._numpy:
            kind = np.dtype(found)
            if kind.kind not in "fiub":
                raise input_error(where, "real entries", str(kind), "Pass real and imaginary parts by themselves")
            found = torch.float32 if kind == np.float32 else torch.float64
        dtype = torch.float64 if found is None else found
        device = torch.device("cpu" if self._numpy else getattr(wrapped, "device", "cpu"))
        super().__init__((int(wrapped.shape[0]), int(wrapped.shape[1])), dtype, device)
        self.wrapped, self.symmetric, self._where = wrapped, symmetric, where

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self._product(self.wrapped, matrix, self.shape[0])

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        if self.symmetric:
            return self._matmat(matrix)
        transposed = getattr(self.wrapped, "T", None)
        if transposed is None and callable(getattr(self.wrapped, "adjoint", None)):
            transposed = self.wrapped.adjoint()
        if transposed is None:
            name = type(self.wrapped).__name__
            remedy = "Define `.T` on it, or pass as_operator(op, symmetric=True) if it equals its transpose"
            raise unsupported(self._where, "an object with `.T` or `.adjoint()`", name, remedy)
        try:
            return self._product(transposed, matrix, self.shape[1])
        except (NotImplementedError, TypeError) as error:  # TypeError: of SciPy 1.18, or the object's own
            if not (isinstance(error, NotImplementedError) or self._is_one_sided()):
                raise
            name = type(self.wrapped).__name__
            remedy = "Define `rmatvec`, or pass as_operator(op, symmetric=True) if it equals its transpose"
            raise unsupported(self._where, "products with the transpose", f"a {name} without", remedy) from error

    def _is_one_sided(self) -> bool:
        """Whether it is SciPy's LinearOperator without ``rmatvec``."""
        try:
            self.wrapped.rmatvec(np.zeros(self.shape[0]))
        except NotImplementedError:
            return True
        except (AttributeError, TypeError):  # it has none to ask, or one that fails by itself
            return False
        return False

    def _product(self, wrapped: Any, matrix: Tensor, rows: int) -> Tensor:
        """Product in the object's own kind of array, converted and checked."""
        given = matrix.detach().cpu().numpy() if self._numpy else matrix
        product = wrapped @ given
        result = tensor_of(np.asarray(product)) if self._numpy else product
        if not isinstance(result, Tensor) or tuple(result.shape) != (rows, matrix.shape[1]):
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
            expected = f"{type(self.wrapped).__name__} @ ({len(matrix)}, K) to be a tensor ({rows}, K)"
            raise input_error(self._where, expected, got, "Let `@` take matrices")
        return result.detach().to(self.device, self.dtype)
