"""Determinants, solutions and running products, from operations whose derivatives are right at every matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback._checks import unsupported


class SignAndLog(NamedTuple):
    """As ``torch.linalg.slogdet`` returns it."""

    sign: Tensor
    logabsdet: Tensor


def det(A: Tensor) -> Tensor:
    """From the pivots of an LU factorisation; torch's second derivative is nan where singular values coincide.

    A singular matrix has no such derivative: there from the coefficients of the characteristic polynomial, which
    are polynomials in the entries.
    """
    size = A.shape[-1]
    if size <= 3:
        return _polynomial(A)
    pivots = torch.linalg.lu_factor_ex(A.detach())[0].diagonal(dim1=-2, dim2=-1).abs()
    singular = pivots.amin(-1) <= size * torch.finfo(A.dtype).eps * pivots.amax(-1)
    regular = A.where(~singular[..., None, None], torch.eye(size, dtype=A.dtype, device=A.device))
    return _polynomial(A).where(singular, _by_pivots(regular))


def _by_pivots(A: Tensor) -> Tensor:
    P, _, U = torch.linalg.lu(A)
    return U.diagonal(dim1=-2, dim2=-1).prod(-1) * _sign(P)


def _sign(P: Tensor) -> Tensor:
    """Of a permutation matrix: -1 to the number of pairs that stand in the wrong order."""
    place = P.detach().argmax(-1)
    wrong = (place.unsqueeze(-1) > place.unsqueeze(-2)).triu(1).sum((-2, -1))
    return (1 - 2 * (wrong % 2)).to(P.dtype)


def _polynomial(A: Tensor) -> Tensor:
    """Expanded for up to 3 rows, else by the recursion of Faddeev and Le Verrier: products and traces alone."""
    size = A.shape[-1]
    if size <= 1:
        return A[..., 0, 0] if size else A.new_ones(A.shape[:-2])
    if size == 2:
        return A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]
    if size == 3:
        a, b, c = A.unbind(-2)
        return (a * torch.linalg.cross(b, c)).sum(-1)
    unit = torch.eye(size, dtype=A.dtype, device=A.device)
    product, coefficient = A, A.diagonal(dim1=-2, dim2=-1).sum(-1)
    for k in range(2, size + 1):
        product = A @ (product - coefficient[..., None, None] * unit)
        coefficient = product.diagonal(dim1=-2, dim2=-1).sum(-1) / k
    return coefficient if size % 2 else -coefficient


def slogdet(A: Tensor) -> SignAndLog:
    """Sign and log of the absolute value, of a regular matrix."""
    P, _, U = torch.linalg.lu(A)
    pivots = U.diagonal(dim1=-2, dim2=-1)
    return SignAndLog(_sign(P) * pivots.detach().sign().prod(-1), pivots.abs().log().sum(-1))


def logdet(A: Tensor) -> Tensor:
    """Log of a positive determinant, nan for a negative one."""
    sign, log = slogdet(A)
    return log.masked_fill(sign < 0, torch.nan)


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """A^{-1} B or B A^{-1}, by the factors of A; a vector or a batch of vectors where B has an axis less."""
    vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    if not left:
        return solve(A.mT, B if vector else B.mT) if vector else solve(A.mT, B.mT).mT
    P, L, U = torch.linalg.lu(A)
    right = P.mT @ (B.unsqueeze(-1) if vector else B)
    inner = torch.linalg.solve_triangular(L, right, upper=False, unitriangular=True)
    solution = torch.linalg.solve_triangular(U, inner, upper=True)
    return solution.squeeze(-1) if vector else solution


def cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    """Inverse of L L^T (or U^T U)."""
    unit = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    inverse = torch.linalg.solve_triangular(L.triu() if upper else L.tril(), unit, upper=upper)
    return inverse @ inverse.mT if upper else inverse.mT @ inverse


def householder_product(input: Tensor, tau: Tensor) -> Tensor:
    """The first columns of the product of I - tau v v^T, v a column below its unit diagonal."""
    rows, columns = input.shape[-2:]
    v = input.tril(-1) + torch.eye(rows, columns, dtype=input.dtype, device=input.device)
    result = torch.eye(rows, columns, dtype=input.dtype, device=input.device).expand(v.shape)
    for k in reversed(range(tau.shape[-1])):
        one = v[..., k : k + 1]
        result = result - tau[..., k, None, None] * one @ (one.mT @ result)
    return result


def cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Products of all entries up to each: factor by factor, so that zeros are no exception."""
    total, products = None, []
    for entry in input.to(dtype or input.dtype).unbind(dim):
        total = entry if total is None else total * entry
        products.append(total)
    return torch.stack(products, dim) if products else input.to(dtype or input.dtype)


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """Log of the sum of the exponentials up to each entry."""
    x = input.movedim(dim, -1) if input.dim() else input.reshape(1)
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    total = torch.logsumexp(x.unsqueeze(-2).masked_fill(later, -torch.inf), -1)
    return total.movedim(-1, dim) if input.dim() else total.reshape(())


def scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """As torch does it; products are refused: torch's forward derivative of them is another number."""
    if reduce == "prod":
        raise unsupported(
            "torch.scatter_reduce",
            "a `reduce` that torch differentiates rightly",
            "'prod'",
            "Take the exponential of sums of logarithms, or multiply the parts one by one",
        )
    return torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self)


ALGEBRA: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.det, torch.linalg.det, Tensor.det), det),
    **dict.fromkeys((torch.slogdet, torch.linalg.slogdet, Tensor.slogdet), slogdet),
    **dict.fromkeys((torch.logdet, Tensor.logdet), logdet),
    torch.linalg.solve: solve,
    **dict.fromkeys((torch.cholesky_inverse, Tensor.cholesky_inverse), cholesky_inverse),
    **dict.fromkeys((torch.linalg.householder_product, torch.orgqr, Tensor.orgqr), householder_product),
    **dict.fromkeys((torch.cumprod, Tensor.cumprod), cumprod),
    **dict.fromkeys((torch.logcumsumexp, Tensor.logcumsumexp), logcumsumexp),
    **dict.fromkeys((torch.scatter_reduce, Tensor.scatter_reduce), scatter_reduce),
}
