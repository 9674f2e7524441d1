"""Operators made from operators: transposes, multiples, sums, differences, chains, damping."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pullback._checks import input_error
from pullback.operators.adapt import as_operator
from pullback.operators.base import Operator


def damp(op: Operator, lam: float) -> Operator:
    """The operator ``A + lam I``, symmetric if A is.

    Args:
        op: square.
        lam: added to every diagonal entry, in the units of A (for a matrix of the mean loss that of a mean loss,
            not of a sum over samples). Negative values shift the spectrum down.

    Raises:
        InputError: an operator that is not square, a ``lam`` that is no finite number.

    Cost: that of A.

    Example:
        >>> import torch
        >>> A = as_operator(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), symmetric=True)
        >>> damp(A, 0.5).to_dense()
        tensor([[2.5000, 1.0000],
                [1.0000, 2.5000]])
    """
    return Damped(as_operator(op, "damp"), lam)


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


class Damped(Operator):
    """``A + lam I``."""

    def __init__(self, inner: Operator, lam: float) -> None:
        if inner.shape[0] != inner.shape[1]:
            raise input_error("damp", "a square operator", f"shape {inner.shape}", "Damp A.T @ A or A @ A.T")
        super().__init__(inner.shape, inner.dtype, inner.device)
        self.inner, self.lam = inner, checked_factor("damp", lam)
        self.symmetric = inner.symmetric

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.inner._matmat(matrix) + self.lam * matrix

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.inner._rmatmat(matrix) + self.lam * matrix


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


def _check_operator(where: str, found: object) -> None:
    """Refuse summands that are no operators."""
    if not isinstance(found, Operator):
        raise input_error(where, "B to be an operator", type(found).__name__, "Use pullback.operators.as_operator(B)")


def _check_kind(where: str, first: Operator, second: Operator) -> None:
    """Refuse operators of different dtypes or devices."""
    if (first.dtype, first.device) != (second.dtype, second.device):
        expected, got = f"{first.dtype} on {first.device}", f"{second.dtype} on {second.device}"
        raise input_error(where, f"both operators in {expected}", got, "Build both in one dtype and on one device")
