"""Lanczos with full reorthogonalisation: outer eigenpairs of a symmetric operator, each with its residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import check_option, check_positive, input_error
from pullback._rng import make_generator
from pullback.operators.base import Operator


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues with their errors.

    Attributes:
        values: (k,), descending.
        vectors: (n, k), orthonormal.
        residuals: |A v - value v| for each pair, (k,): an eigenvalue lies within its residual.
        num_matvecs: products used.
        converged: whether every residual is below ``tol`` times the largest absolute value.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    num_matvecs: int
    converged: bool


def eigenvalues(
    op: Operator | Tensor,
    k: int = 1,
    which: str = "largest",
    *,
    tol: float = 1e-4,
    max_matvecs: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
) -> Eigenpairs:
    """Outer eigenpairs of a symmetric operator, by Lanczos with full reorthogonalisation.

    Args:
        op: a symmetric operator or matrix (n, n).
        k: how many pairs (for "both": from each end).
        which: "largest" or "smallest" (by value, not by size), or "both".
        tol: residual to reach, relative to the largest absolute eigenvalue found.
        max_matvecs: products allowed; None means min(n, 20 k + 80).
        seed: of the start vector, drawn from a generator of its own.
        start: a start vector (n,), for example from an earlier call.

    Returns:
        Eigenpairs; not converged is data, not an exception.

    Raises:
        InputError: the operator is not square, or ``k`` is not between 1 and n.

    Cost: one product an iteration; memory n times the iterations for the basis.

    References: Parlett (1998), The Symmetric Eigenvalue Problem, ch. 13.

    Example:
        >>> pairs = eigenvalues(torch.diag(torch.tensor([3.0, 1.0, -2.0])), k=1, which="both")
        >>> [round(v, 4) for v in pairs.values.tolist()], pairs.converged
        ([3.0, -2.0], True)
    """
    where = "eigenvalues"
    check_option(where, "which", which, ("largest", "smallest", "both"))
    check_positive(where, "tol", tol)
    n = op.shape[0]
    if op.shape[0] != op.shape[1]:
        raise input_error(where, "a square operator", f"shape {tuple(op.shape)}", "Pass a symmetric operator")
    if not 1 <= k <= n:
        raise input_error(where, f"`k` from 1 to {n}", repr(k), "Ask for fewer eigenvalues")
    limit = min(n, max_matvecs or 20 * k + 80)
    generator = make_generator(seed)
    vector = start if start is not None else _random(n, generator)
    vector = vector.to(op.device, op.dtype)
    basis, diagonal, off = [vector / vector.norm()], [], []
    wanted = min(n, 2 * k if which == "both" else k)
    for step in range(1, limit + 1):
        product = op @ basis[-1]
        diagonal.append(basis[-1] @ product)
        product = _orthogonalised(product, basis)
        off.append(product.norm())
        if off[-1] <= _floor(diagonal, off):  # an invariant space: go on outside it, for eigenvalues met twice
            off[-1] = torch.zeros_like(off[-1])
            product = _orthogonalised(_random(n, generator).to(product), basis) if step < n else product
        if step == limit or step % 2 == 0 or step >= n or not off[-1]:
            values, small, residuals = _ritz(diagonal, off, k, which)
            done = step >= wanted and bool((residuals <= tol * values.abs().max()).all())
            if done:
                break
        basis.append(product / product.norm())
    vectors = torch.stack(basis[: len(diagonal)]).T @ small.to(op.dtype)
    return Eigenpairs(values, vectors, residuals, step, done)


def _random(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _orthogonalised(vector: Tensor, basis: list[Tensor]) -> Tensor:
    known = torch.stack(basis)
    for _ in range(2):  # twice is enough (Parlett)
        vector = vector - known.T @ (known @ vector)
    return vector


def _floor(diagonal: list[Tensor], off: list[Tensor]) -> float:
    """Size below which a new basis vector is rounding error: the space is invariant."""
    scale = max([abs(float(d)) for d in diagonal] + [float(b) for b in off[:-1]])
    return 10 * torch.finfo(off[-1].dtype).eps * scale


def _ritz(diagonal: list[Tensor], off: list[Tensor], k: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen eigenpairs of the tridiagonal matrix, descending, and their residuals."""
    d, b = torch.stack(diagonal).double(), torch.stack(off).double()
    matrix = torch.diag(d) + torch.diag(b[:-1], 1) + torch.diag(b[:-1], -1)
    values, vectors = torch.linalg.eigh(matrix)
    m = len(d)
    top, bottom = list(range(m - 1, max(m - 1 - k, -1), -1)), list(range(min(k, m) - 1, -1, -1))
    chosen = {"largest": top, "smallest": bottom, "both": top + [i for i in bottom if i not in top]}[which]
    residuals = (b[-1] * vectors[-1, chosen]).abs()
    dtype = diagonal[0].dtype
    return values[chosen].to(dtype), vectors[:, chosen], residuals.to(dtype)


def largest_eigenvalues(matrices: Tensor, *, num_matvecs: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue of every matrix of a stack (L, n, n) at once, and its residual, (L,) each.

    For symmetric positive semi-definite matrices; one batched Lanczos run, so that a profile over layers costs
    little more than one layer.
    """
    batch, n, _ = matrices.shape
    steps = min(n, num_matvecs)
    start = torch.randn(n, 1, generator=make_generator(seed), dtype=torch.float64).to(matrices)
    vector = (start / start.norm()).expand(batch, n, 1)
    basis = matrices.new_zeros(batch, n, steps)
    diagonal, off = [], []
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)  # no eigenvalue is larger
    floor = (10 * torch.finfo(matrices.dtype).eps * trace).view(-1, 1, 1)
    for j in range(steps):
        basis[:, :, j : j + 1] = vector
        # one matrix-vector product a matrix: batched products of a single column are several times slower
        product = torch.stack([m.mv(v) for m, v in zip(matrices, vector.squeeze(2), strict=True)]).unsqueeze(2)
        diagonal.append(vector.mT @ product)
        for _ in range(2):
            product = product - basis[:, :, : j + 1] @ (basis[:, :, : j + 1].mT @ product)
        size = torch.linalg.vector_norm(product, dim=1, keepdim=True)
        size = size * (size > floor)  # zero once the space is invariant; the rest of the matrix stays zero then
        off.append(size)
        vector = torch.where(size > 0, product / size, 0)
    d, b = torch.cat(diagonal, 1).squeeze(2), torch.cat(off, 1).squeeze(2)
    tridiagonal = torch.diag_embed(d) + torch.diag_embed(b[:, :-1], 1) + torch.diag_embed(b[:, :-1], -1)
    values, vectors = torch.linalg.eigh(tridiagonal.double())
    return values[:, -1].to(matrices), (b[:, -1] * vectors[:, -1, -1].to(matrices)).abs()
