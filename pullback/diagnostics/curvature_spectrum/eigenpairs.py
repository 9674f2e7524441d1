"""Eigenpairs of a curvature matrix A = B^T B / N from its rows B or from the operator, measured on what is returned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback._checks import self_check_error
from pullback._rng import make_generator
from pullback.diagnostics.curvature_spectrum.routes import Route, Sizes
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.matrix import GradientRows
from pullback.kernels.gram.squares import total_gram
from pullback.kernels.plan.make import TOTAL, make_plan
from pullback.operators.operator import Operator
from pullback.spectral import eigenvalues

NEARLY = 1e-3  # off-diagonal inner products from which one orthogonalisation loses no more than rounding
REFINEMENTS = 2  # power steps on eigenvectors whose residuals rounding has left above the tolerance


@dataclass(frozen=True)
class MeasuredPairs:
    """See ``CurvatureSpectrum``; ``count`` is how many eigenvalues were looked at."""

    values: Tensor
    vectors: Tensor | None
    residuals: Tensor
    noise_floor: float
    num_matvecs: int
    converged: bool


@dataclass(frozen=True)
class Wanted:
    """What the eigensolvers are told.

    Args:
        sizes: N, r, P, k.
        tol: relative residual.
        seed: of start vectors.
        where: the caller.
    """

    sizes: Sizes
    tol: float
    seed: int
    where: str


def nothing(like: Tensor, wanted: Wanted) -> MeasuredPairs:
    """Of a matrix that is zero."""
    vectors = like.new_empty(wanted.sizes.num_params, 0) if wanted.sizes.vectors else None
    return MeasuredPairs(like.new_empty(0), vectors, like.new_empty(0), 0.0, 0, True)


def from_gram(captured: Captured, route: Route, wanted: Wanted) -> MeasuredPairs:
    """Through the rows: their Gram matrix, formed or by products, or the matrix itself where it is the smaller."""
    where, like = wanted.where, captured.values
    N = captured.num_samples
    with without_autocast():
        if route.form == "dense":
            plan = make_plan(captured, N, None, where, TOTAL)
            gram = total_gram(captured, plan, where).div_(N)
            return _from_matrix(gram, GradientRows.of(captured, None), wanted)
        rows = GradientRows.of(captured, where)
        if route.form == "parameters":
            dense = rows.to_dense()
            return _from_matrix(dense.T @ dense / N, rows, wanted, of_parameters=True)
        trace = float(rows.squared_norms().sum(dtype=torch.float64)) / N
        if trace == 0:
            return nothing(like, wanted)
        return _by_lanczos((1 / N) * rows.gram, _floor(like, trace), rows, wanted)


def from_operator(operator: Operator, wanted: Wanted) -> MeasuredPairs:
    """By Lanczos on the operator."""
    sizes = wanted.sizes
    k = min(sizes.num_rows, sizes.num_params) if sizes.all_wanted else sizes.num_pairs
    pairs = eigenvalues(operator, k, tol=wanted.tol, seed=wanted.seed)
    floor = 10 * torch.finfo(operator.dtype).eps * float(pairs.values.abs().max())
    kept = _kept(pairs.values, floor, sizes)
    vectors = pairs.vectors[:, kept] if sizes.vectors else None
    return MeasuredPairs(pairs.values[kept], vectors, pairs.residuals[kept], floor, pairs.num_matvecs, pairs.converged)


def _floor(like: Tensor, trace: float) -> float:
    """Rounding of a Gram matrix: of an entry a few eps |b_i| |b_j|, so of the whole at most that of all |b_i|^2."""
    return 4 * torch.finfo(like.dtype).eps * trace


def _kept(values: Tensor, floor: float, sizes: Sizes) -> Tensor:
    """Places of the values asked for, of descending ones: those above the floor, the first or the last k of them."""
    above = (values > floor).nonzero().squeeze(1)
    if sizes.k is None:
        return above
    return above[-sizes.k :] if sizes.smallest else above[: sizes.k]


def _from_matrix(matrix: Tensor, rows: GradientRows, wanted: Wanted, *, of_parameters: bool = False) -> MeasuredPairs:
    """From a matrix that is formed: the Gram matrix of the samples, or A itself."""
    sizes = wanted.sizes
    trace = float(matrix.diagonal().sum(dtype=torch.float64))
    floor = _floor(matrix, trace)
    if trace == 0:
        return nothing(matrix, wanted)
    if not (sizes.all_wanted or of_parameters):
        return _by_lanczos(matrix, floor, rows, wanted)
    if not sizes.vectors:
        values = torch.linalg.eigvalsh(matrix).flip(0)
        _check_moments(values, matrix, trace, wanted)
        values = values[_kept(values, floor, sizes)]
        return MeasuredPairs(values, None, torch.full_like(values, floor), floor, 0, True)
    every, columns = torch.linalg.eigh(matrix)
    every, columns = every.flip(0), columns.flip(1)
    kept = _kept(every, floor, sizes)
    values, columns = every[kept], columns[:, kept]
    errors = matrix @ columns - columns * values
    if of_parameters:
        residuals = torch.linalg.vector_norm(errors, dim=0)
    else:  # in parameter space B^T e / sqrt(N value)
        residuals = ((errors * (matrix @ errors)).sum(0).clamp(min=0) / values).sqrt()
    measured = MeasuredPairs(values, columns, residuals, floor, 0, True)
    vectors = columns if of_parameters else orthonormal(rows.T @ columns)
    return _measured(measured, vectors, max(floor, wanted.tol * float(every[0])), rows)


def _by_lanczos(gram: Operator | Tensor, floor: float, rows: GradientRows, wanted: Wanted) -> MeasuredPairs:
    """The largest pairs of the Gram matrix of the samples, and of A."""
    sizes = wanted.sizes
    pairs = eigenvalues(gram, sizes.num_pairs, tol=wanted.tol, seed=wanted.seed)
    kept = _kept(pairs.values, floor, sizes)
    values, columns, residuals = pairs.values[kept], pairs.vectors[:, kept], pairs.residuals[kept]
    measured = MeasuredPairs(values, None, residuals, floor, pairs.num_matvecs, pairs.converged)
    if not sizes.vectors:
        return measured
    # |B^T e| / sqrt(N value) for a residual e of the Gram matrix, whose norm is the largest eigenvalue
    bounds = residuals * (pairs.values[:1] / values).sqrt()
    measured = replace(measured, residuals=bounds)
    return _measured(measured, orthonormal(rows.T @ columns), wanted.tol * float(pairs.values[0]), rows)


def _check_moments(values: Tensor, matrix: Tensor, trace: float, wanted: Wanted) -> None:
    """Eigenvalues that come without eigenvectors to measure them by: their sum and that of their squares."""
    pairs = [
        ("sum", float(values.sum(dtype=torch.float64)), trace),
        ("sum of squares", float(values.double().square().sum()), float(torch.linalg.vector_norm(matrix)) ** 2),
    ]
    for name, found, expected in pairs:
        if not abs(found - expected) <= torch.finfo(values.dtype).eps ** 0.5 * abs(expected):
            raise self_check_error(
                wanted.where,
                f"the {name} of the eigenvalues to be {expected:.6g}, that of the matrix",
                f"{found:.6g}",
                "Pass vectors=True, whose residuals are measured, and please report this model",
            )


def _measured(pairs: MeasuredPairs, vectors: Tensor, limit: float, rows: GradientRows) -> MeasuredPairs:
    """With eigenvectors in parameter space, whose residuals A V - V values are within ``limit``, if rounding allows.

    Those known from the Gram matrix are exact but for the rounding of ``vectors``. One product with a combination of
    the vectors with random signs shows that: its squared residual is on average the sum of all squared ones. Only if
    either is above the limit is every vector measured, and improved by a step of the power method.
    """
    k = vectors.shape[1]
    if k == 0:
        return replace(pairs, vectors=vectors, residuals=pairs.values)
    signs = torch.randint(2, (k,), generator=make_generator(0), device="cpu").to(vectors) * 2 - 1
    moved = rows.T @ (rows @ (vectors @ signs)) / rows.num_samples
    seen = torch.linalg.vector_norm(moved - vectors @ (signs * pairs.values)) / k**0.5
    pairs = replace(
        pairs, vectors=vectors, residuals=pairs.residuals.clamp(min=float(seen)), num_matvecs=pairs.num_matvecs + 1
    )
    for _ in range(1 + REFINEMENTS):
        if bool((pairs.residuals <= limit).all()):
            return pairs
        values, vectors, image, residuals = _ritz(rows, vectors)
        pairs = replace(pairs, values=values, vectors=vectors, residuals=residuals, num_matvecs=pairs.num_matvecs + k)
        vectors = orthonormal(image)
    return replace(pairs, converged=pairs.converged and bool((pairs.residuals <= limit).all()))


def _ritz(rows: GradientRows, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenpairs of A on the span of orthonormal columns, descending, their images under A, and residuals."""
    N = rows.num_samples
    image = rows @ vectors  # B V, (n, k)
    inner = (image.T @ image).double() / N
    values, turn = torch.linalg.eigh((inner + inner.T) / 2)
    values, turn = values.flip(0).to(vectors), turn.flip(1).to(vectors)
    vectors, moved = vectors @ turn, rows.T @ (image @ turn) / N
    return values, vectors, moved, torch.linalg.vector_norm(moved - vectors * values, dim=0)


def orthonormal(vectors: Tensor) -> Tensor:
    """Columns made orthonormal in their order, the first kept as it is, by Cholesky; twice if they are far from it."""
    for _ in range(2):
        inner = (vectors.T @ vectors).double()
        sizes = inner.diagonal().sqrt()
        inner = inner / sizes / sizes.unsqueeze(1)
        factor, failed = torch.linalg.cholesky_ex(inner)
        if failed:
            return torch.linalg.qr(vectors)[0]
        inverse = (
            torch.linalg.solve_triangular(factor, torch.eye(len(inner), device="cpu").to(inner), upper=False) / sizes
        )
        vectors = vectors @ inverse.T.to(vectors)
        if float((inner - torch.eye(len(inner), device="cpu").to(inner)).abs().max()) < NEARLY:
            break
    return vectors
