"""``damp``: a multiple of the identity added to an operator."""

from __future__ import annotations

from torch import Tensor

from pullback._checks import input_error
from pullback.operators.adapt import as_operator
from pullback.operators.operator import Operator, checked_factor


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
