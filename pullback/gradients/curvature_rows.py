"""Rows B of a curvature matrix A = B^T B / N: then A and the Gram matrix B B^T / N share their non-zero eigenvalues.

The empirical Fisher matrix has the N gradients of the losses for rows. For Gauss-Newton every sample has the rows
S_i^T J_i, with S_i S_i^T the second derivative of its loss in its outputs, and for the true Fisher matrix S_i S_i^T
is the second moment of the loss's slope. S_i is constant: the rows are gradients of the values S_i^T z_i.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pullback._checks import UnsupportedError, unsupported
from pullback.functional import LossFunction, ModelView, loss_readout, output_hessian, output_readout, take, undisturbed
from pullback.functional.batch import Batch, mapped
from pullback.functional.differentiable import elementary
from pullback.functional.likelihood import known_likelihood, likelihood_of
from pullback.functional.losses import check_finite, unchecked_loss
from pullback.functional.readout import Readout
from pullback.functional.target_checks import check_targets, logits_of
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import captured_rows
from pullback.gradients.matrix import GradientRows
from pullback.gradients.rows.factor import Factor

Matrix = Literal["gauss_newton", "empirical_fisher", "true_fisher"]


@dataclass(frozen=True)
class RowSource:
    """What the rows of a curvature matrix are the gradients of.

    Args:
        view: the parameters.
        readout: the values, r of them a sample.
        x: inputs, (N, ...).
        y: what the readout takes for targets.
        num_values: r, the largest rank of S_i; 0 where the matrix is zero.
    """

    view: ModelView
    readout: Readout
    x: Batch
    y: Batch
    num_values: int

    def capture(self, where: str) -> Captured:
        """Gradient factors of the rows."""
        return captured_rows(self.view, self.readout, self.x, self.y, where)

    def rows(self, where: str) -> GradientRows:
        """The rows as an operator (N r, P), checked against the ordinary gradient."""
        return GradientRows.of(self.capture(where), where)


def row_source(
    view: ModelView,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    matrix: Matrix,
    where: str,
    *,
    otherwise: str = "method='lanczos'",
) -> RowSource:
    """The rows of ``matrix``, ready to be captured; ``otherwise`` is what errors advise where there are none.

    Raises:
        UnsupportedError: the model returns no tensor; Gauss-Newton of a loss that is not convex in the outputs; the
            true Fisher matrix of a loss that is no negative log-likelihood.

    Cost: for the two that need S_i a forward pass, N C^2 numbers of float64, and where the loss has no closed form C
        differentiations of it.
    """
    if matrix == "empirical_fisher":
        return RowSource(view, _accurate(loss_readout(loss_fn)), x, y, 1)
    with undisturbed(view.model), torch.no_grad():
        outputs = view(x)
        z = output_tensor(outputs, where, otherwise)
        check_targets(loss_fn, outputs, y, where)
        check_finite(unchecked_loss(loss_fn, outputs, y, where), where)
    with without_autocast():
        family = known_likelihood(loss_fn, where) if matrix == "true_fisher" else likelihood_of(loss_fn)
        plain_targets = family is not None and not (family.classes and y.is_floating_point())  # they may not sum to 1
        if family is not None and (matrix == "true_fisher" or (family.natural and plain_targets)):
            half = family.curvature_root(loss_fn, z.double(), y, expected=matrix == "true_fisher")
            middle, computed_in = half @ half.mT, torch.float64
        else:
            middle, computed_in = _bend(loss_fn, z, y)
        root = square_root(middle, computed_in, where, otherwise)
    root = root.to(torch.promote_types(z.dtype, torch.float32))
    return RowSource(view, Readout(_weighted, lambda outputs, targets, where: None), x, root, root.shape[2])


def layers_of_rows(
    view: ModelView, loss_fn: LossFunction, data: tuple[Batch, Batch], matrix: Matrix, where: str
) -> tuple[tuple[Factor, ...], int, str | None]:
    """Factors of two samples with one value each, the number of values of a sample, and why rows cannot be had."""
    x, y = (take(each, slice(0, 2)) for each in data)
    readout, count = None, 1
    obstacle = None
    if matrix != "empirical_fisher":
        with undisturbed(view.model), torch.no_grad():
            outputs = view(x)
        try:
            z = output_tensor(outputs, where)
        except UnsupportedError as error:
            obstacle = str(error)
        else:
            readout, count = output_readout(summed=True), z[0].numel()
            family = likelihood_of(loss_fn)
            if family is not None and family.kind == "softmax":
                count -= z[0, 0].numel()  # the rank of diag(p) - p p^T is one less than the classes, at every position
    captured = captured_rows(view, readout or loss_readout(loss_fn), x, y, where, check=False)
    return captured.factors, max(1, count), obstacle


def _accurate(readout: Readout) -> Readout:
    """The same values, with slopes that keep their digits where a prediction is all but certain."""

    def values(outputs: object, targets: Batch, where: str) -> Tensor:
        with elementary():
            return readout.values(outputs, targets, where)

    return replace(readout, values=values)


def output_tensor(outputs: object, where: str, otherwise: str = "method='lanczos'") -> Tensor:
    """The one tensor (N, ...) a model returned, by itself or as ``logits``."""
    z = logits_of(outputs)
    if isinstance(z, Tensor) and z.dim() > 0 and z.is_floating_point():
        return z
    got = f"shape {tuple(z.shape)}, {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
    raise unsupported(where, "a model that returns one real tensor (N, ...)", got, f"Use {otherwise}")


def _weighted(outputs: object, root: Batch, where: str) -> Tensor:
    """S_i^T z_i, (N, r)."""
    z = logits_of(outputs)
    with without_autocast():
        return torch.einsum("nc,ncr->nr", z.reshape(len(z), -1).to(root.dtype), root)


def _bend(loss_fn: LossFunction, z: Tensor, y: Batch) -> tuple[Tensor, torch.dtype]:
    """Second derivative of every sample's loss in its outputs, (N, C, C), and what it was computed in.

    That is float64 if the loss is a module, which can be converted.
    """
    if not isinstance(loss_fn, nn.Module):
        return output_hessian(loss_fn, z, y).double(), z.dtype
    double = mapped(lambda t: t.double() if t.is_floating_point() else t, y)
    return output_hessian(copy.deepcopy(loss_fn).double(), z.double(), double), torch.float64


def square_root(middle: Tensor, computed_in: torch.dtype, where: str, otherwise: str = "method='lanczos'") -> Tensor:
    """S (N, C, r) with S_i S_i^T = M_i for positive semi-definite M (N, C, C), r their largest rank.

    Cholesky with the largest pivot first, all samples at once: what is left is what rounding made.

    Raises:
        UnsupportedError: what is left is more than that: some M_i is not positive semi-definite.
    """
    left = middle.clone()
    samples = torch.arange(len(left), device=left.device)
    size = left.abs().amax()
    rounding = 4 * left.shape[1] * torch.finfo(computed_in).eps * size
    columns = []
    for _ in range(left.shape[1]):
        pivot, place = left.diagonal(dim1=1, dim2=2).max(1)
        kept = pivot > rounding
        if not kept.any():
            break
        column = left[samples, :, place] / pivot.where(kept, 1.0).sqrt().unsqueeze(1) * kept.unsqueeze(1)
        left -= column.unsqueeze(2) * column.unsqueeze(1)
        columns.append(column)
    worst = left.abs().amax((1, 2))
    if bool((worst > 100 * rounding).any()):
        sample = int(worst.argmax())
        lowest = float(torch.linalg.eigvalsh(middle[sample])[0])
        raise unsupported(
            where,
            "a loss that is convex in the outputs",
            f"curvature {lowest:.3g} for sample {sample}",
            f"Use {otherwise}, which does not need a square root of it",
        )
    return torch.stack(columns, 2) if columns else left[:, :, :0]
