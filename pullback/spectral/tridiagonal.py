"""Lanczos on many start vectors or matrices at once: tridiagonal matrices, without restarts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback._rng import make_generator


def tridiagonalise(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Diagonals (B, steps) and off-diagonals (B, steps), the last being what is left over, for B unit vectors (B, n).

    ``apply`` maps (B, n) to (B, n), row by row. A row whose space is invariant has zeros from there on.
    """
    basis = start.new_zeros(*start.shape[:1], steps, start.shape[1])
    vector, scale = start, start.new_zeros(len(start), 1)
    diagonal, off = [], []
    eps = 10 * torch.finfo(start.dtype).eps
    for j in range(steps):
        basis[:, j] = vector
        product = apply(vector)
        diagonal.append((vector * product).sum(1, keepdim=True))
        scale = torch.maximum(scale, product.norm(dim=1, keepdim=True))
        for first in (max(j - 1, 0), 0, 0):  # twice is enough (Parlett), as in basis.py
            part, before = basis[:, first : j + 1], product.norm(dim=1)
            product = product - (part.mT @ (part @ product.unsqueeze(2))).squeeze(2)
            if first == 0 and bool((product.norm(dim=1) >= 0.995 * before).all()):
                break
        size = product.norm(dim=1, keepdim=True)
        size = size * (size > eps * scale)  # zero once the space is invariant; the rest of the matrix stays zero then
        off.append(size)
        vector = torch.where(size > 0, product / size, 0)
    return torch.cat(diagonal, 1), torch.cat(off, 1)


def quadrature(diagonal: Tensor, off: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (B, steps) ascending, first and last entries of their eigenvectors, of the tridiagonal matrices."""
    inner = off[:, :-1].double()
    matrices = torch.diag_embed(diagonal.double()) + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
    nodes, vectors = torch.linalg.eigh(matrices)
    return nodes, vectors[:, 0], vectors[:, -1]


def largest_eigenvalues(matrices: Tensor, *, num_matvecs: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue of every matrix of a stack (L, n, n) at once, and its residual, (L,) each.

    For symmetric positive semi-definite matrices; one batched Lanczos run, so that a profile over layers costs
    little more than one layer.

    Args:
        matrices: (L, n, n).
        num_matvecs: steps, at most n; with n of them the eigenvalues are exact up to rounding.
        seed: of the start vector, which all matrices share.

    Cost: L ``num_matvecs`` products of a matrix and a vector, and ``num_matvecs`` vectors of L n numbers.

    Example:
        >>> stack = torch.diag_embed(torch.tensor([[1.0, 3.0], [5.0, 2.0]], dtype=torch.float64))
        >>> values, residuals = largest_eigenvalues(stack)
        >>> torch.allclose(values, torch.tensor([3.0, 5.0]).double()), bool((residuals < 1e-12).all())
        (True, True)
    """
    batch, n, _ = matrices.shape
    start = torch.randn(n, generator=make_generator(seed), dtype=torch.float64, device="cpu").to(matrices)

    def apply(vectors: Tensor) -> Tensor:
        # one matrix-vector product a matrix: batched products of a single column are several times slower
        return torch.stack([m.mv(v) for m, v in zip(matrices, vectors, strict=True)])

    diagonal, off = tridiagonalise(apply, (start / start.norm()).expand(batch, n), min(n, num_matvecs))
    nodes, _, last = quadrature(diagonal, off)
    return nodes[:, -1].to(matrices), (off[:, -1] * last[:, -1].to(matrices)).abs()
