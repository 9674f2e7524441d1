"""The damped inverse through the Gram matrix of the samples: exact, without iterations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive
from pullback.functional import LossFunction, check_batch, output_hessian
from pullback.functional.batch import Batch
from pullback.functional.losses import logits_of
from pullback.functional.model_view import names_in
from pullback.kernels import GradientMatrix, backward_kernel, tangent_kernel
from pullback.operators import Jacobian
from pullback.operators.base import Operator


class DampedInverse(Operator):
    """(G + damping I)^{-1}, (P, P), for a matrix G = 1/N F^T H F of the mean loss over one batch; exact.

    F are the samples' rows and H acts within a sample: for "gauss_newton" F = J, the (N C, P) derivative of the
    outputs, and H the second derivative of each loss in its own outputs; for "empirical_fisher" F is the (N, P)
    matrix of per-sample gradients and H = I. With the Gram matrix K = F F^T the push-through identity

        (F^T H F / N + lam I)^{-1} F^T = F^T (H K / N + lam I)^{-1}

    leaves a system of the samples' size, factored once. ``damping`` is lam of the averaged cost; summed costs have
    N times that.

    Args:
        model: any module in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        x: inputs of all training samples, (N, ...).
        y: their targets.
        damping: above 0.
        matrix: which G.
        params: names of parameters or modules; None for all trainable ones.

    Attributes:
        rows: F as an operator.
        between_rows: F (G + damping I)^{-1} F^T = (K H / N + damping I)^{-1} K: what the inverse is between samples.

    Raises:
        InputError: a damping of 0; as ``tangent_kernel`` and ``backward_kernel``.
        UnsupportedError, SelfCheckError: as those.

    Cost: the Gram matrix ("gauss_newton": C backward passes and N^2 C^2 numbers; else one and N^2), its LU
        factorisation, 2/3 (N C)^3 operations; then one product with F and one with F^T for each column. Bytes: three
        matrices of the Gram matrix's size.

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
        >>> inverse = DampedInverse(model, nn.CrossEntropyLoss(), x, y, damping=0.1)
        >>> dense = reference.dense_gauss_newton(model, nn.CrossEntropyLoss(), x, y) + 0.1 * torch.eye(8)
        >>> bool(torch.allclose(inverse.to_dense(), dense.inverse()))
        True
    """

    symmetric = True

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        x: Batch,
        y: Batch,
        *,
        damping: float,
        matrix: str = "gauss_newton",
        params: Iterable[str] | None = None,
    ) -> None:
        where = "DampedInverse"
        check_option(where, "matrix", matrix, ("gauss_newton", "empirical_fisher"))
        check_positive(where, "damping", damping)
        params = None if params is None else names_in(params, where)
        self.damping, self.num_samples = damping, check_batch(where, x, y)
        if matrix == "gauss_newton":
            kernel = tangent_kernel(model, x, contract="full", params=params)
            self.rows: Operator = Jacobian(model, x, params=params)
            self.bend: Tensor | None = output_hessian(loss_fn, logits_of(kernel.outputs).detach(), y)  # H, (N, C, C)
        else:
            kernel = backward_kernel(model, loss_fn, x, y, params=params)
            self.rows, self.bend = GradientMatrix(model, loss_fn, x, y, params=params), None
        self._gram = kernel.to_dense()
        system = self.bent(self._gram).T / self.num_samples  # K H / N
        system.diagonal().add_(damping)
        self._factors = torch.linalg.lu_factor(system)
        P = self.rows.shape[1]
        super().__init__((P, P), self._gram.dtype, self._gram.device)

    def bent(self, values: Tensor) -> Tensor:
        """H times the rows' values, (N C, K)."""
        if self.bend is None:
            return values
        return torch.einsum("ica,iak->ick", self.bend, values.unflatten(0, (len(self.bend), -1))).flatten(0, 1)

    @property
    def between_rows(self) -> Tensor:
        """F (G + damping I)^{-1} F^T, (N C, N C) or (N, N)."""
        return torch.linalg.lu_solve(*self._factors, self._gram)

    def residual(self, between: Tensor) -> float:
        """|(K H / N + damping I) S - K| / |K| of a computed ``between_rows`` S."""
        left = self._gram @ self.bent(between) / self.num_samples + self.damping * between - self._gram
        return float(left.norm() / self._gram.norm())

    def of_rows(self, values: Tensor) -> Tensor:
        """(G + damping I)^{-1} F^T times the rows' values, (P, K): exact also where ``damping`` is small."""
        return self.rows.T @ torch.linalg.lu_solve(*self._factors, values, adjoint=True)

    def _matmat(self, matrix: Tensor) -> Tensor:
        seen = torch.linalg.lu_solve(*self._factors, self.rows @ matrix)
        return (matrix - self.rows.T @ self.bent(seen) / self.num_samples) / self.damping
