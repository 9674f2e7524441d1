"""The base class of every linear operator: a shape, a dtype, a device, and products with vectors and matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, overload

import torch
from torch import Tensor

from pullback._checks import input_error, unsupported


class Operator(ABC):
    """A matrix known by its products.

    Subclasses define ``_matmat`` (and ``_rmatmat``, unless symmetric): products with matrices (columns, K).
    Sums, differences, multiples and chains of operators are operators; they are found in ``operators/algebra.py``.

    Attributes:
        shape: (rows, columns).
        dtype: of the products.
        device: of the products.
        symmetric: whether the matrix is known to equal its transpose.
    """

    symmetric = False
    __array_ufunc__ = None  # NumPy hands its own ``scalar * op`` and ``array @ op`` over to this class

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
            name = type(self).__name__
            raise unsupported(name, "products with its transpose", "an operator that has none", "Define `_rmatmat`")
        return self._matmat(matrix)

    @overload
    def __matmul__(self, other: Operator) -> Operator: ...

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    def __matmul__(self, other: Tensor | Operator) -> Tensor | Operator:
        """``op @ v`` for a vector (columns,) or a matrix (columns, K); ``A @ B`` for a chain of operators."""
        if isinstance(other, Operator):
            from pullback.operators.algebra import Product

            return Product(self, other)
        name = type(self).__name__
        if not isinstance(other, Tensor) or other.dim() not in (1, 2) or other.shape[0] != self.shape[1]:
            remedy = "Convert it with torch.as_tensor, or use op.to_scipy()"
            got = type(other).__name__
            if isinstance(other, Tensor):
                got, remedy = f"shape {tuple(other.shape)}", "Reshape it"
            raise input_error(name, f"a tensor ({self.shape[1]},) or ({self.shape[1]}, K)", got, remedy)
        if other.dtype != self.dtype or other.device != self.device:
            raise input_error(
                name,
                f"{self.dtype} on {self.device}",
                f"{other.dtype} on {other.device}",
                "Convert the vector with .to(op.device, op.dtype)",
            )
        product = self._matmat(other.unsqueeze(1) if other.dim() == 1 else other)
        return product.squeeze(1) if other.dim() == 1 else product

    def __rmatmul__(self, other: object) -> Operator:
        """``v @ op`` is refused: rows and columns would be told apart by guessing."""
        got = f"a {type(other).__name__} on the left"
        raise input_error(type(self).__name__, "a tensor on the right", got, "Use op.T @ v")

    @property
    def T(self) -> Operator:
        """The transpose."""
        from pullback.operators.algebra import Transposed

        return self if self.symmetric else Transposed(self)

    def __add__(self, other: Operator) -> Operator:
        """``A + B``."""
        from pullback.operators.algebra import Sum

        return Sum(self, other)

    def __sub__(self, other: Operator) -> Operator:
        """``A - B``."""
        from pullback.operators.algebra import Sum

        return Sum(self, other, sign=-1.0)

    def __rmul__(self, factor: float) -> Operator:
        """``a * A``."""
        from pullback.operators.algebra import Scaled

        return Scaled(self, factor)

    def __mul__(self, factor: float) -> Operator:
        """``A * a``."""
        return self.__rmul__(factor)

    def __truediv__(self, factor: float) -> Operator:
        """``A / a``."""
        from pullback.operators.algebra import Scaled, checked_factor

        return Scaled(self, 1.0 / checked_factor(type(self).__name__, factor, zero=False))

    def __neg__(self) -> Operator:
        """``-A``."""
        return self.__rmul__(-1.0)

    def to_dense(self) -> Tensor:
        """The matrix, (rows, columns), by products with the identity."""
        return self @ torch.eye(self.shape[1], dtype=self.dtype, device=self.device)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator``: NumPy arrays in and out, in this operator's dtype.

        Raises:
            UnsupportedError: a dtype NumPy does not have (bfloat16).
        """
        from pullback.operators.adapt import to_scipy

        return to_scipy(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {self.dtype}, {self.device})"
