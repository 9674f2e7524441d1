"""Curvature of decision boundaries in input space, and points on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_positive, input_error
from pullback.functional import check_batch, undisturbed
from pullback.functional.losses import check_finite, logits_of
from pullback.operators.algebra import damp
from pullback.operators.base import Operator
from pullback.operators.products import func, hvp
from pullback.operators.repeatable import refuse_random_and_coupled
from pullback.spectral import eigenvalues
from pullback.spectral.inputs import DENSE_LIMIT, check_count

COLUMNS_AT_ONCE = 256  # second derivatives carried through one pass


@dataclass(frozen=True)
class BoundaryPoints:
    """Points where the predicted class changes.

    Attributes:
        x: (N, ...), within rounding of the boundary.
        classes: (N, 2): the class on the side of the first input, and the one next to it.
    """

    x: Tensor
    classes: Tensor


@dataclass(frozen=True)
class BoundaryCurvature:
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


def boundary_points(model: nn.Module, a: Tensor, b: Tensor) -> BoundaryPoints:
    """A point on the decision boundary between each pair of inputs, by bisection of the line that joins them.

    The class is the largest output, or whether the only output is above 0. The point is where the class of ``a`` ends:
    what is beyond it need not be the class of ``b``.

    Args:
        model: any module in eval mode, from (N, ...) to (N, C) or (N, 1).
        a: inputs (N, ...).
        b: inputs of the same shape, of another class than ``a``, pair by pair.

    Raises:
        InputError: a pair of one class, or of different shapes.
        UnsupportedError: dropout or batch norm in train mode.

    Cost: a forward pass for each bit of the dtype, 52 in float64.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 1.0]]))
        >>> ends = torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, -1.0]], dtype=torch.float64)
        >>> [round(v, 6) for v in boundary_points(model, *ends).x[0].tolist()]  # x_1 + x_2 = 0
        [0.75, -0.75]
    """
    where = "boundary_points"
    check_batch(where, a, b, ("a", "b"))
    if a.shape != b.shape or a.dtype != b.dtype:
        got = f"{tuple(a.shape)}, {a.dtype} and {tuple(b.shape)}, {b.dtype}"
        raise input_error(where, "`a` and `b` of one shape and dtype", got, "Pass one end for each pair in both")
    refuse_random_and_coupled(model, where)
    with undisturbed(model), torch.no_grad():
        first = _scores(model, a, where).argmax(1)
        same = first == _scores(model, b, where).argmax(1)
        if bool(same.any()):
            pair = int(same.nonzero()[0])
            raise input_error(where, "ends of different class", f"{int(first[pair])} twice in pair {pair}", "Drop it")
        low, high = a, b
        for _ in range(round(-math.log2(torch.finfo(a.dtype).eps))):
            middle = (low + high) / 2
            inside = (_scores(model, middle, where).argmax(1) == first).view(-1, *[1] * (a.dim() - 1))
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        classes = torch.stack([first, _scores(model, high, where).argmax(1)], 1)
    return BoundaryPoints((low + high) / 2, classes)


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
    count = check_batch(where, x)
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
        pairs = _pairs(_scores(model, x, where), classes, where)
        rows = []
        for i in range(count):
            G = _difference(model, pairs[i], x.shape[1:], where)
            point = x[i].reshape(-1)
            gradient, value = func.grad_and_value(G)(point)
            norm = gradient.norm()
            _check_point(point, float(value), float(norm), tol, i, where)
            form = SecondForm(G, point, gradient)
            # where G bends along its normal alone, what is left on the tangents is rounding, and not even symmetric
            floor = math.sqrt(torch.finfo(point.dtype).eps) * form.along_normal()
            found = eigenvalues(damp(form, floor), *((size - 1, "largest") if k is None else (k, "both")), seed=seed)
            converged = torch.tensor(found.converged)
            rows.append((found.values - floor, found.residuals, converged, gradient / norm, norm, (value / norm).abs()))
    return BoundaryCurvature(*(torch.stack(column) for column in zip(*rows, strict=True)), pairs)


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


def _scores(model: nn.Module, x: Tensor, where: str) -> Tensor:
    """Outputs by class (N, C), C >= 2: a single output stands beside zero."""
    outputs = logits_of(model(x))
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(x):
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise input_error(where, "a model that returns one tensor (N, C)", got, "Wrap it to return scores by class")
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs


def _difference(model: nn.Module, pair: Tensor, shape: torch.Size, where: str) -> Callable[[Tensor], Tensor]:
    """G as a function of a flat input."""
    one, other = pair.tolist()

    def G(flat: Tensor) -> Tensor:
        scores = _scores(model, flat.view(1, *shape), where)[0]
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
