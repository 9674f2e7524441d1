"""The damped inverse through the Gram matrix of the samples: exact, without iterations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive, input_error
from pullback.functional import LossFunction, ModelView, check_batch, output_hessian, per_sample_loss
from pullback.functional.batch import Batch
from pullback.functional.losses import check_finite
from pullback.functional.model_view import names_in
from pullback.functional.repeatable import values_of
from pullback.functional.target_checks import logits_of
from pullback.functional.unwrap import without_autocast
from pullback.influence.held_rows import HELD_BYTES, HeldCurvature, HeldRows, bent, check_precision, held_rows, itemsize
from pullback.kernels import GradientMatrix, backward_kernel, tangent_kernel
from pullback.operators import Jacobian
from pullback.operators.operator import Operator


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
        curvature: G by its rows F, which are held from the first use on; None where they take more than 2 GiB.
        rows: F as an operator.
        between_rows: F (G + damping I)^{-1} F^T = (K H / N + damping I)^{-1} K: what the inverse is between samples.

    Raises:
        InputError: a damping of 0; as ``tangent_kernel`` and ``backward_kernel``; on use, other weights than it was
            made at.
        UnsupportedError, SelfCheckError: as those.

    Cost: the Gram matrix ("gauss_newton": C backward passes and N^2 C^2 numbers; else one and N^2), its LU
        factorisation, 2/3 (N C)^3 operations; then one product with F and one with F^T for each column, which are
        matrix products where the rows are held and passes through the network where they are not. Bytes: three
        matrices of the Gram matrix's size, and the rows.

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
        self._view = ModelView.of(model, params, where)
        check_precision(self._view, where)
        self._made_from = model, loss_fn, x, y, matrix, params
        if matrix == "gauss_newton":
            kernel = tangent_kernel(model, x, contract="full", params=params)
            self.outputs = logits_of(kernel.outputs).detach()
            check_finite(per_sample_loss(loss_fn, self.outputs, y, where), where)
            self.bend: Tensor | None = output_hessian(loss_fn, self.outputs, y, where)  # H, (N, C, C)
        else:
            kernel = backward_kernel(model, loss_fn, x, y, params=params)
            self.bend = None
        self._state = values_of(self._view.model)
        self._gram = kernel.to_dense()
        with without_autocast():
            system = self.bent(self._gram).T / self.num_samples  # K H / N
            system.diagonal().add_(damping)
            self._factors = torch.linalg.lu_factor(system)
        P = self._view.num_params
        super().__init__((P, P), self._gram.dtype, self._gram.device)

    @cached_property
    def curvature(self) -> HeldCurvature | None:
        """G by its held rows; None where they are too many."""
        self._check_state()
        if len(self._gram) * self.shape[0] * itemsize(self._view) > HELD_BYTES:
            return None
        _, loss_fn, x, y, matrix, _ = self._made_from
        num_rows = len(self._gram) // self.num_samples
        return held_rows(self._view, loss_fn, (x, y), matrix, self.num_samples, num_rows, "DampedInverse")

    @cached_property
    def rows(self) -> Operator:
        """F, (N C, P) or (N, P)."""
        return self._by_passes if self.curvature is None else HeldRows(self.curvature.rows)

    @cached_property
    def _by_passes(self) -> Operator:
        """F by passes through the network: the cheaper way for a few products."""
        self._check_state()
        model, loss_fn, x, y, matrix, params = self._made_from
        if matrix == "gauss_newton":
            return Jacobian(model, x, params=params)
        return GradientMatrix(model, loss_fn, x, y, params=params)

    def from_rows(self, values: Tensor) -> Tensor:
        """F^T V, (P, K), for a few columns."""
        return self._by_passes.T @ values

    def bent(self, values: Tensor) -> Tensor:
        """H times the rows' values, (N C, K)."""
        return bent(self.bend, values)

    @property
    @without_autocast()
    def between_rows(self) -> Tensor:
        """F (G + damping I)^{-1} F^T, (N C, N C) or (N, N)."""
        return torch.linalg.lu_solve(*self._factors, self._gram)

    @without_autocast()
    def residual(self, between: Tensor) -> float:
        """|(K H / N + damping I) S - K| / |K| of a computed ``between_rows`` S."""
        left = self._gram @ self.bent(between) / self.num_samples + self.damping * between - self._gram
        return float(left.norm() / self._gram.norm())

    @without_autocast()
    def coefficients(self, values: Tensor) -> Tensor:
        """W, (N C, K), with (G + damping I)^{-1} F^T V = F^T W for the rows' values V."""
        return torch.linalg.lu_solve(*self._factors, values, adjoint=True)

    @without_autocast()
    def gram_product(self, values: Tensor) -> Tensor:
        """K V, (N C, K)."""
        return self._gram @ values

    def own_coefficients(self, loss_fn: LossFunction, y: Batch) -> Tensor:
        """r, (N, C), with g_i = F_i^T r_i: the slopes of the losses in the outputs, or 1 where rows are gradients."""
        if self.bend is None:
            return self._gram.new_ones(self.num_samples, 1)
        with torch.enable_grad():
            leaf = self.outputs.clone().requires_grad_()
            losses = per_sample_loss(loss_fn, leaf, y, "DampedInverse")
            return torch.autograd.grad(losses.sum(), leaf)[0].reshape(self.num_samples, -1)

    @without_autocast()
    def residuals(self, values: Tensor, coefficients: Tensor) -> Tensor:
        """|b - (G + damping I) x| / |b| of x = F^T W for b = F^T V, (K,), from the Gram matrix: no row is needed."""
        w = coefficients
        left = values - self.bent(self._gram @ w) / self.num_samples - self.damping * w
        sizes = [(v * (self._gram @ v)).sum(0).clamp(min=0).sqrt() for v in (left, values)]
        return sizes[0] / torch.where(sizes[1] > 0, sizes[1], 1)

    def of_rows(self, values: Tensor) -> Tensor:
        """(G + damping I)^{-1} F^T times the rows' values, (P, K): exact also where ``damping`` is small."""
        return self.rows.T @ self.coefficients(values)

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        self._check_state()
        seen = torch.linalg.lu_solve(*self._factors, self.rows @ matrix)
        return (matrix - self.rows.T @ self.bent(seen) / self.num_samples) / self.damping

    def _check_state(self) -> None:
        """Rows that are made after the Gram matrix must be those of the same weights."""
        if values_of(self._view.model) != self._state:
            remedy = "Make another one after the weights have moved"
            raise input_error("DampedInverse", "the weights it was made at", "others", remedy)


def own_entries(coefficients: Tensor) -> Tensor:
    """(N, C) as columns (N C, N), column i with the entries of sample i and zeros."""
    return torch.diag_embed(coefficients.T).permute(1, 0, 2).reshape(-1, len(coefficients))


class Factored(Operator):
    """(A + damping I)^{-1}, (P, P), of a symmetric matrix by its LU factors; A may have negative eigenvalues."""

    symmetric = True

    @without_autocast()
    def __init__(self, matrix: Tensor, damping: float) -> None:
        super().__init__((len(matrix), len(matrix)), matrix.dtype, matrix.device)
        system = matrix.clone()
        system.diagonal().add_(damping)
        self._factors = torch.linalg.lu_factor(system)

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        return torch.linalg.lu_solve(*self._factors, matrix)
