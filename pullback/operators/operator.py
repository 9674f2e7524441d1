"""The base class of every linear operator, a shape, a dtype, a device and products, and what is made of two of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, overload

import torch
from torch import Tensor

from pullback._checks import input_error, unsupported
from pullback.operators.arrays import to_scipy


class Operator(ABC):
    """A matrix known by its products.

    Subclasses define ``_matmat`` (and ``_rmatmat``, unless symmetric): products with matrices (columns, K).
    Sums, differences, multiples and chains of operators are operators.

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
        with torch.inference_mode(False):  # a caller's would leave tensors no graph can hold
            other = other.clone() if other.is_inference() else other
            product = self._matmat(other.unsqueeze(1) if other.dim() == 1 else other)
        return product.squeeze(1) if other.dim() == 1 else product

    def __rmatmul__(self, other: object) -> Operator:
        """``v @ op`` is refused: rows and columns would be told apart by guessing."""
        got = f"a {type(other).__name__} on the left"
        raise input_error(type(self).__name__, "a tensor on the right", got, "Use op.T @ v")

    @property
    def T(self) -> Operator:
        """The transpose."""
        return self if self.symmetric else Transposed(self)

    def __add__(self, other: Operator) -> Operator:
        """``A + B``."""
        return Sum(self, other)

    def __sub__(self, other: Operator) -> Operator:
        """``A - B``."""
        return Sum(self, other, sign=-1.0)

    def __rmul__(self, factor: float) -> Operator:
        """``a * A``."""
        return Scaled(self, factor)

    def __mul__(self, factor: float) -> Operator:
        """``A * a``."""
        return self.__rmul__(factor)

    def __truediv__(self, factor: float) -> Operator:
        """``A / a``."""
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
        return to_scipy(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {self.dtype}, {self.device})"


class Transposed(Operator):
    """``A^T``."""

    def __init__(self, inner: Operator) -> None:
        super().__init__((inner.shape[1], inner.shape[0]), inner.dtype, inner.device)
        self.inner = inner

    @property
    def T(self) -> Operator:
        """A itself."""
        return self.inner

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.inner._rmatmat(matrix)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.inner._matmat(matrix)


class Scaled(Operator):
    """``a A``."""

    def __init__(self, inner: Operator, factor: float) -> None:
        super().__init__(inner.shape, inner.dtype, inner.device)
        self.inner, self.factor = inner, checked_factor("a * A", factor)
        self.symmetric = inner.symmetric

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.factor * self.inner._matmat(matrix)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.factor * self.inner._rmatmat(matrix)


class Sum(Operator):
    """``A + B``, or ``A - B`` with ``sign=-1``."""

    def __init__(self, first: Operator, second: Operator, sign: float = 1.0) -> None:
        where = "A + B" if sign == 1 else "A - B"
        _check_operator(where, second)
        if first.shape != second.shape:
            raise input_error(where, f"shape {first.shape}", f"{second.shape}", "Add operators of one shape")
        _check_kind(where, first, second)
        super().__init__(first.shape, first.dtype, first.device)
        self.first, self.second, self.sign = first, second, sign
        self.symmetric = first.symmetric and second.symmetric

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.first._matmat(matrix).add(self.second._matmat(matrix), alpha=self.sign)

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.first._rmatmat(matrix).add(self.second._rmatmat(matrix), alpha=self.sign)


class Product(Operator):
    """``A B``, applied from the right; known to be symmetric where it is ``A^T A`` or ``A A^T``."""

    def __init__(self, first: Operator, second: Operator) -> None:
        if first.shape[1] != second.shape[0]:
            raise input_error("A @ B", f"B with {first.shape[1]} rows", f"{second.shape[0]}", "Check the order")
        _check_kind("A @ B", first, second)
        super().__init__((first.shape[0], second.shape[1]), first.dtype, first.device)
        self.first, self.second = first, second
        self.symmetric = _is_transpose(first, second) or _is_transpose(second, first)

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.first._matmat(self.second._matmat(matrix))

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.second._rmatmat(self.first._rmatmat(matrix))


def checked_factor(where: str, factor: Any, *, zero: bool = True) -> float:
    """A finite real number as a Python float."""
    try:
        value = float(factor)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not math.isfinite(value) or (value == 0 and not zero):
        expected = "a finite number" if zero else "a finite number other than 0"
        got = repr(factor) if isinstance(factor, int | float) else type(factor).__name__
        raise input_error(where, expected, got, "Use @ for products with tensors and operators")
    return value


def _is_transpose(first: Operator, second: Operator) -> bool:
    """Whether the first is the second's transpose, as far as their construction shows it."""
    return (isinstance(first, Transposed) and first.inner is second) or (first is second and first.symmetric)


def _check_operator(where: str, factor: object) -> None:
    """Refuse summands that are no operators."""
    if not isinstance(factor, Operator):
        raise input_error(where, "B to be an operator", type(factor).__name__, "Use pullback.operators.as_operator(B)")


def _check_kind(where: str, first: Operator, second: Operator) -> None:
    """Refuse operators of different dtypes or devices."""
    if (first.dtype, first.device) != (second.dtype, second.device):
        expected, got = f"{first.dtype} on {first.device}", f"{second.dtype} on {second.device}"
        raise input_error(where, f"both operators in {expected}", got, "Build both in one dtype and on one device")
