"""The base class of every linear operator: a shape, a dtype, a device, and products with vectors and matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, overload

import torch
from torch import Tensor

from pullback._checks import input_error


class Operator(ABC):
    """A matrix known by its products.

    Subclasses define ``_matmat`` (and ``_rmatmat``, unless symmetric): products with matrices (columns, K).

    Attributes:
        shape: (rows, columns).
        dtype: of the products.
        device: of the products.
        symmetric: whether the matrix equals its transpose.
    """

    symmetric = False

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def _matmat(self, matrix: Tensor) -> Tensor:
        """Product with a matrix (columns, K) -> (rows, K)."""

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        """Product of the transpose with a matrix (rows, K) -> (columns, K)."""
        if not self.symmetric:
            raise NotImplementedError
        return self._matmat(matrix)

    @overload
    def __matmul__(self, other: Operator) -> Operator: ...

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    def __matmul__(self, other: Tensor | Operator) -> Tensor | Operator:
        """``op @ v`` for a vector (columns,) or a matrix (columns, K); ``A @ B`` for a chain of operators."""
        if isinstance(other, Operator):
            return Product(self, other)
        name = type(self).__name__
        if not isinstance(other, Tensor) or other.dim() not in (1, 2) or other.shape[0] != self.shape[1]:
            got = f"shape {tuple(other.shape)}" if isinstance(other, Tensor) else type(other).__name__
            raise input_error(name, f"a tensor ({self.shape[1]},) or ({self.shape[1]}, K)", got, "Reshape it")
        if other.dtype != self.dtype or other.device != self.device:
            raise input_error(
                name,
                f"{self.dtype} on {self.device}",
                f"{other.dtype} on {other.device}",
                "Convert the vector with .to(op.device, op.dtype)",
            )
        product = self._matmat(other.unsqueeze(1) if other.dim() == 1 else other)
        return product.squeeze(1) if other.dim() == 1 else product

    @property
    def T(self) -> Operator:
        """The transpose."""
        return self if self.symmetric else Transposed(self)

    def __add__(self, other: Operator) -> Operator:
        """``A + B``."""
        return Sum(self, other)

    def __rmul__(self, factor: float) -> Operator:
        """``a * A``."""
        return Scaled(self, factor)

    def to_dense(self) -> Tensor:
        """The matrix, (rows, columns), by products with the identity."""
        return self @ torch.eye(self.shape[1], dtype=self.dtype, device=self.device)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` with NumPy vectors in and out."""
        from scipy.sparse.linalg import LinearOperator

        def product(operator: Operator) -> Any:
            return lambda v: (operator @ torch.as_tensor(v, dtype=self.dtype, device=self.device)).cpu().numpy()

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(self.shape, matvec=product(self), rmatvec=product(self.T), dtype=numpy_dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {self.dtype}, {self.device})"


class Transposed(Operator):
    """``A^T``."""

    def __init__(self, inner: Operator) -> None:
        super().__init__((inner.shape[1], inner.shape[0]), inner.dtype, inner.device)
        self.inner = inner

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.inner._rmatmat(matrix)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.inner._matmat(matrix)


class Scaled(Operator):
    """``a A``."""

    def __init__(self, inner: Operator, factor: float) -> None:
        super().__init__(inner.shape, inner.dtype, inner.device)
        self.inner, self.factor = inner, factor
        self.symmetric = inner.symmetric

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.factor * self.inner._matmat(matrix)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.factor * self.inner._rmatmat(matrix)


class Sum(Operator):
    """``A + B``."""

    def __init__(self, first: Operator, second: Operator) -> None:
        if first.shape != second.shape:
            raise input_error("A + B", f"shape {first.shape}", f"{second.shape}", "Add operators of one shape")
        super().__init__(first.shape, first.dtype, first.device)
        self.first, self.second = first, second
        self.symmetric = first.symmetric and second.symmetric

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.first._matmat(matrix) + self.second._matmat(matrix)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.first._rmatmat(matrix) + self.second._rmatmat(matrix)


class Product(Operator):
    """``A B``, applied from the right."""

    def __init__(self, first: Operator, second: Operator) -> None:
        if first.shape[1] != second.shape[0]:
            raise input_error("A @ B", f"B with {first.shape[1]} rows", f"{second.shape[0]}", "Check the order")
        super().__init__((first.shape[0], second.shape[1]), first.dtype, first.device)
        self.first, self.second = first, second

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.first._matmat(self.second._matmat(matrix))

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.second._rmatmat(self.first._rmatmat(matrix))
