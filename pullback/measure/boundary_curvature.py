"""Curvature of decision boundaries in input space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pullback._checks import check_count, check_positive, input_error
from pullback._results import Shown
from pullback.functional import check_batch, undisturbed
from pullback.functional.losses import check_finite
from pullback.functional.model_view import check_module
from pullback.functional.refused import refuse_random_and_coupled
from pullback.measure.boundary_points import class_scores
from pullback.operators.damp import damp
from pullback.operators.operator import Operator
from pullback.operators.products import func, hvp
from pullback.spectral import Eigenpairs, eigenvalues
from pullback.spectral.arguments import DENSE_LIMIT

COLUMNS_AT_ONCE = 256  # second derivatives carried through one pass


@dataclass(frozen=True)
class BoundaryCurvature(Shown):
    """Principal curvatures of the surfaces G = 0 at N points, G the difference of two outputs.

    Attributes:
        values: (N, K), descending, per unit of length in input space: 1 / r for a sphere of radius r inside of which
            G < 0. K = D - 1 for inputs of D numbers, or 2 k.
        residuals: error of each, (N, K), as of ``pb.eigenvalues``.
        converged: whether those reached their tolerance, (N,).
        normals: unit gradients of G, (N, D).
        gradient_norm: |grad G|, (N,).
        distance: |G| / |grad G|, (N,): to first order how far the points are from the boundary.
        classes: (N, 2), G being the first one's output less the second one's.
    """

    values: Tensor
    residuals: Tensor
    converged: Tensor
    normals: Tensor
    gradient_norm: Tensor
    distance: Tensor
    classes: Tensor


def boundary_curvature(
    model: nn.Module,
    x: Tensor,
    classes: Tensor | None = None,
    *,
    k: int | None = None,
    tol: float = 1e-3,
    seed: int = 0,
) -> BoundaryCurvature:
    """Principal curvatures of the decision boundary through each point.

    They are the eigenvalues of P (d2 G / dx2) P / |grad G| with P = I - n n^T, n = grad G / |grad G|, without the one
    that belongs to n itself. Where the model is piecewise linear (ReLU) all are zero: its boundary bends in the kinks
    alone. On a network without its read-out, the boundary of a linear read-out is flat in the last layer's space; how
    much it is bent in input space is what depth adds.

    Args:
        model: any module in eval mode, from (N, ...) to (N, C) or (N, 1); smooth activations.
        x: points on the boundary (N, ...), for example from ``boundary_points``.
        classes: (N, 2), or (2,) for all points: G is output ``classes[0]`` less output ``classes[1]``. A single output
            is that of class 1 beside zero for class 0. None takes (1, 0) where there are two classes, and the two
            largest outputs of each point, largest first, where there are more.
        k: how many from each end, without forming the matrix; None for all D - 1, up to D = 1000.
        tol: distance from the boundary allowed, relative to |x|.
        seed: of the start vectors (with ``k``).

    Returns:
        BoundaryCurvature, in the dtype of ``x``.

    Raises:
        InputError: a point off the boundary, or where the gradient of G is zero; bad classes; large inputs without
            ``k``.
        UnsupportedError: dropout or batch norm in train mode.

    Cost: a point takes D - 1 second derivatives along a direction, of about 5 forward passes each, or with ``k`` 50 to
        100 for each eigenvalue.

    References: Poole et al. (2016), arXiv:1606.05340, section 4; do Carmo (1976), section 3.2.

    Example:
        >>> class Sphere(nn.Module):
        ...     def forward(self, x):
        ...         return x.square().sum(1, keepdim=True) - 9.0
        >>> curvature = boundary_curvature(Sphere(), torch.tensor([[1.0, 2.0, 2.0]]))
        >>> [round(v, 6) for v in curvature.values[0].tolist()]
        [0.333333, 0.333333]
    """
    where = "boundary_curvature"
    check_module(model, where)
    count = check_batch(where, x)
    if not isinstance(x, Tensor):
        raise input_error(where, "`x` as one tensor (N, ...)", type(x).__name__, "Pass the points alone")
    check_positive(where, "tol", tol)
    size = x[0].numel()
    if size < 2:
        raise input_error(where, "inputs of at least two numbers", f"{size}", "A point on a line has no curvature")
    if k is None and size > DENSE_LIMIT:
        raise input_error(where, f"`k` for inputs of more than {DENSE_LIMIT} numbers", "None", "Pass k=5, for example")
    if k is not None:
        check_count(where, "k", k, 1, size - 1)
    refuse_random_and_coupled(model, where)
    with undisturbed(model), torch.no_grad():
        pairs = _pairs(class_scores(model, x, where), classes, where)
        rows = []
        for i in range(count):
            G, point = _difference(model, pairs[i], x.shape[1:], where), x[i].reshape(-1)
            gradient, value = func.grad_and_value(G)(point)
            _check_point(point, float(value), float(gradient.norm()), tol, i, where)
            curvatures = _principal(SecondForm(G, point, gradient), k, seed)
            rows.append((curvatures.values, curvatures.residuals, curvatures.converged, gradient, value))
    values, residuals, converged, gradients, heights = zip(*rows, strict=True)
    slopes, norms = torch.stack(gradients), torch.stack(gradients).norm(dim=1)
    return BoundaryCurvature(
        values=torch.stack(values),
        residuals=torch.stack(residuals),
        converged=torch.tensor(converged),
        normals=slopes / norms.unsqueeze(1),
        gradient_norm=norms,
        distance=torch.stack(heights).abs() / norms,
        classes=pairs,
    )


def _principal(form: SecondForm, k: int | None, seed: int) -> Eigenpairs:
    """Eigenvalues of the form: all, or k from each end."""
    # where G bends along its normal alone, what is left on the tangents is rounding, and not even symmetric
    floor = math.sqrt(torch.finfo(form.dtype).eps) * form.along_normal()
    wanted = (form.shape[0], "largest") if k is None else (k, "both")
    pairs = eigenvalues(damp(form, floor), *wanted, seed=seed)
    return replace(pairs, values=pairs.values - floor)


class SecondForm(Operator):
    """Second fundamental form of G's level set: B^T (d2 G) B / |grad G|, the columns of B a basis of the tangents.

    B is what a reflection that takes the first axis to the normal makes of the other axes, so that nothing (D, D) is
    stored and the normal's own zero is no eigenvalue.
    """

    symmetric = True

    def __init__(self, G: Callable[[Tensor], Tensor], point: Tensor, gradient: Tensor) -> None:
        size = len(point) - 1
        super().__init__((size, size), point.dtype, point.device)
        self.G, self.point, self.norm = G, point, gradient.norm()
        self.normal = gradient / self.norm
        mirror = self.normal.clone()
        mirror[0] += mirror[0].sign() if float(mirror[0]) != 0 else 1.0  # away from cancellation
        self.mirror = mirror / mirror.norm()

    def along_normal(self) -> float:
        """|(d2 G) n| / |grad G|."""
        return float(hvp(self.G, self.point, self.normal, mode="reverse").norm() / self.norm)

    def _reflected(self, rows: Tensor) -> Tensor:
        return rows - 2 * (rows @ self.mirror).unsqueeze(1) * self.mirror

    def _matmat(self, matrix: Tensor) -> Tensor:
        tangents = self._reflected(torch.cat([matrix.new_zeros(1, matrix.shape[1]), matrix]).T)
        along = func.vmap(lambda v: hvp(self.G, self.point, v, mode="reverse"), chunk_size=COLUMNS_AT_ONCE)
        return self._reflected(along(tangents))[:, 1:].T / self.norm


def _difference(model: nn.Module, pair: Tensor, shape: torch.Size, where: str) -> Callable[[Tensor], Tensor]:
    """G as a function of a flat input."""
    one, other = pair.tolist()

    def G(flat: Tensor) -> Tensor:
        scores = class_scores(model, flat.view(1, *shape), where)[0]
        return scores[one] - scores[other]

    return G


def _pairs(scores: Tensor, classes: Tensor | None, where: str) -> Tensor:
    """Classes (N, 2) that are compared at every point."""
    check_finite(scores, where, "output")
    count, num_classes = scores.shape
    if classes is None:
        if num_classes == 2:
            return torch.tensor([[1, 0]], device=scores.device).expand(count, 2)
        return scores.topk(2, dim=1).indices
    pairs = classes.expand(count, 2) if classes.dim() == 1 else classes
    if pairs.shape != (count, 2) or bool(((pairs < 0) | (pairs >= num_classes)).any()):
        expected = f"`classes` ({count}, 2) from 0 to {num_classes - 1}"
        raise input_error(where, expected, f"{classes.tolist()}", "Pass two outputs for each point")
    if bool((pairs[:, 0] == pairs[:, 1]).any()):
        raise input_error(where, "two different `classes`", f"{classes.tolist()}", "Pass two outputs for each point")
    return pairs


def _check_point(point: Tensor, value: float, norm: float, tol: float, i: int, where: str) -> None:
    """Refuse points that have no normal, or are not on the boundary."""
    if norm == 0:
        raise input_error(where, f"a gradient of G at point {i}", "zero", "Pass a point where the outputs change")
    if abs(value) > tol * norm * float(point.norm()):
        got = f"point {i} about {abs(value) / norm:.3g} away from it"
        raise input_error(where, "points on the boundary", got, "Find them with boundary_points, or raise `tol`")
