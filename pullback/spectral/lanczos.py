"""Outer eigenpairs of a symmetric operator, each with its residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, check_option, check_positive
from pullback._results import Drawn
from pullback._rng import make_generator
from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_symmetric, dense, gaussian, product, square_operator
from pullback.spectral.basis import Basis
from pullback.spectral.multiplicity import Search
from pullback.spectral.sums import inner_products, lengths

SHARES = (0.7, 0.2)  # of the tolerance: rounding adds to the residuals of the recurrence
ROUNDING = 1e-3  # of the tolerance: from there on the recurrence's residuals are the operator's


@dataclass(frozen=True)
class Eigenpairs(Drawn):
    """Eigenvalues with their errors.

    Attributes:
        values: (k,), descending; for "both" those of the two ends, without repetition.
        vectors: (n, k), orthonormal.
        residuals: |A v - value v| for each pair, (k,), from products taken with the vectors returned: an eigenvalue of
            A lies within its residual.
        num_matvecs: products used.
        converged: whether every residual is below ``tol`` times the largest absolute eigenvalue seen, and the search
            for repeated eigenvalues has ended.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    num_matvecs: int
    converged: bool

    def __str__(self) -> str:
        shown = ", ".join(f"{v:.6g}" for v in self.values[:5].tolist()) + (", …" if len(self.values) > 5 else "")
        how = "converged" if self.converged else "not converged"
        return f"{shown} (residuals up to {float(self.residuals.max()):.2g}, {self.num_matvecs} products, {how})"


def eigenvalues(
    op: Any,
    k: int = 1,
    which: str = "largest",
    *,
    tol: float = 1e-4,
    max_matvecs: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    block_size: int = 1,
    max_basis: int | None = None,
    repeated: bool = True,
) -> Eigenpairs:
    """Outer eigenpairs of a symmetric operator, by Lanczos with full reorthogonalisation and thick restarts.

    Args:
        op: a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        k: how many pairs (for "both": from each end).
        which: "largest" or "smallest" (by value, not by size), or "both".
        tol: residual to reach, relative to the largest absolute eigenvalue seen.
        max_matvecs: products allowed to the iteration; None means 200 + 50 for each pair. The residuals take one more
            for each pair.
        seed: of the start vector, drawn from a generator of its own.
        start: a start vector (n,), or (n, block_size), for example from an earlier call.
        block_size: columns of each product. More than one pays where products come cheaper in blocks: the number of
            products grows, that of calls falls.
        max_basis: vectors held; None means 40 + 3 for each pair, or as many as ``max_matvecs`` can fill.
        repeated: search for eigenvalues met more than once. A Krylov space holds one vector for each distinct
            eigenvalue, so others are looked for from a new random vector, orthogonal to what was found, until none
            appears: a third or so more products. For k = 1 there is nothing to search.

    Returns:
        Eigenpairs; not converged is data, not an exception.

    Raises:
        InputError: the operator is not square, products show that it is not symmetric, or a count is out of range.

    Cost: one product an iteration and column; memory n times ``max_basis``.

    References: Parlett (1998), The Symmetric Eigenvalue Problem, ch. 13; Wu and Simon (2000), thick restarts.

    Example:
        >>> pairs = eigenvalues(torch.diag(torch.tensor([3.0, 1.0, -2.0])), k=1, which="both")
        >>> [round(v, 4) for v in pairs.values.tolist()], pairs.converged
        ([3.0, -2.0], True)
    """
    where = "eigenvalues"
    check_option(where, "which", which, ("largest", "smallest", "both"))
    check_positive(where, "tol", tol)
    operator = square_operator(op, where)
    n = operator.shape[0]
    check_count(where, "k", k, 1, n)
    check_count(where, "block_size", block_size, 1)
    wanted = min(n, 2 * k if which == "both" else k)
    if max_basis is not None:
        check_count(where, "max_basis", max_basis, min(n, wanted + 2 * block_size))
    if max_matvecs is not None:
        check_count(where, "max_matvecs", max_matvecs, wanted)
    limit = max_matvecs or 200 + 50 * wanted
    if 3 * wanted >= n and limit >= n:
        return _from_dense(operator, k, which, tol, where)
    held = max_basis or max(min(40 + 3 * wanted, limit), wanted + block_size) + block_size
    basis = Basis(operator, held, block_size, make_generator(seed), start, where)
    hidden = Search(n, which) if repeated and k > 1 else None
    checks = 0
    for share in SHARES:
        coordinates, scale, ended = _iterate(basis, k, which, share * tol, limit, hidden)
        values, vectors, residuals = _recomputed(operator, basis, coordinates, last=not ended or basis.spans_all)
        checks += vectors.shape[1]
        converged = ended and bool((residuals <= tol * scale).all())
        if converged or not ended or basis.spans_all:
            break
    return Eigenpairs(values, vectors, residuals, basis.num_matvecs + checks, converged)


def outer_values(op: Operator, which: str, *, tol: float, max_matvecs: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue, with "both" also the smallest, as of ``eigenvalues``, and the residuals, (1,) or (2,).

    Both are those of the recurrence, which differ by rounding from what another product with each vector would show.
    Where ``tol`` is far above that, it would be a sixth of the cost; elsewhere it is made.
    """
    n, wanted = op.shape[0], min(op.shape[0], 2 if which == "both" else 1)
    if (3 * wanted >= n and max_matvecs >= n) or torch.finfo(op.dtype).eps > ROUNDING * tol:
        pairs = eigenvalues(op, 1, which, tol=tol, max_matvecs=max_matvecs, start=start)
        return pairs.values, pairs.residuals
    basis = Basis(op, max(max_matvecs, wanted + 1) + 1, 1, make_generator(0), start, "eigenvalues")
    _iterate(basis, 1, which, SHARES[0] * tol, max_matvecs, None)
    values, _, residuals = basis.ritz()
    chosen, _ = _choose(values, 1, which)
    return values[chosen].to(basis.rows), residuals[chosen].to(basis.rows)


def start_vector(op: Operator, *, seed: int = 0) -> Tensor:
    """The vector (n, 1) that ``eigenvalues`` starts from where none is given, for several searches that share it."""
    return gaussian(op.shape[0], 1, make_generator(seed), op)


def _iterate(
    basis: Basis, k: int, which: str, tol: float, limit: int, hidden: Search | None
) -> tuple[Tensor, float, bool]:
    """Coordinates (size, k) of the chosen Ritz vectors, the largest absolute value seen, and whether all is settled."""
    n = basis.op.shape[0]
    wanted = min(n, 2 * k if which == "both" else k)
    scale, checked = 0.0, 0
    while True:
        basis.extend()
        if hidden:
            hidden.steps += 1
        full = basis.size + basis.pending > basis.capacity
        last = basis.spans_all or basis.num_matvecs + basis.pending > limit
        if not (full or last) and (basis.size < wanted or basis.size < checked + basis.size // 10):
            continue  # small eigenproblems cost little, but not nothing
        checked = basis.size
        values, coordinates, errors = basis.ritz()
        scale = max(scale, float(values.abs().max()))
        chosen, others = _choose(values, k, which)
        done = basis.size >= wanted and bool((errors[chosen] <= tol * scale).all())
        if done and (basis.spans_all or not hidden or hidden.nothing(values, errors, chosen, others, tol * scale)):
            return coordinates[:, chosen], scale, True
        if last:
            return coordinates[:, chosen], scale, False
        fresh = done and hidden is not None and hidden.changed(values[chosen], tol * scale)
        if fresh and hidden:
            hidden.begin(values, chosen, others)
        elif not full:
            continue
        # what comes next takes a third of the room, unless the space is left for a random vector
        room = 0 if fresh else (basis.capacity - basis.block - len(chosen)) // 3
        kept = sorted(chosen + others[: max(room, 0)])
        basis.restart(values[kept], coordinates[:, kept], fresh=fresh)
        checked = 0


def _choose(values: Tensor, k: int, which: str) -> tuple[list[int], list[int]]:
    """Indices of the chosen of ascending values, largest first, and of the others, those next to the chosen first."""
    m = len(values)
    top, bottom = list(range(m - 1, max(m - 1 - k, -1), -1)), list(range(min(k, m) - 1, -1, -1))
    chosen = {"largest": top, "smallest": bottom, "both": top + [i for i in bottom if i not in top]}[which]
    rest = sorted(set(range(m)) - set(chosen))
    if which == "largest":
        rest.reverse()
    elif which == "both":  # from the two ends inwards
        rest = [i for pair in zip(reversed(rest), rest, strict=True) for i in pair][: len(rest)]
    return chosen, rest


def _recomputed(op: Operator, basis: Basis, coordinates: Tensor, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenpairs of the operator on the span of Ritz vectors, descending, with residuals from one block of products.

    With ``last`` the basis, most of what is held, is let go of before the products.
    """
    vectors = basis.vectors(coordinates)
    if last:
        basis.release()
    vectors, _ = torch.linalg.qr(vectors)
    products = product(op, vectors)
    vectors.div_(lengths(vectors).to(vectors))
    inner = inner_products(vectors.T, products)
    values, turn = torch.linalg.eigh((inner + inner.T) / 2)
    values, turn = values.flip(0).to(vectors), turn.flip(1).to(vectors)
    vectors = vectors @ turn  # one after the other: each frees as much as it takes
    products = products @ turn
    return values, vectors, lengths(products.sub_(vectors * values)).to(values)


def _from_dense(op: Operator, k: int, which: str, tol: float, where: str) -> Eigenpairs:
    """The same from the whole matrix, where k is not much smaller than n."""
    matrix = dense(op)
    check_symmetric(matrix, op, where)
    values, vectors = torch.linalg.eigh((matrix + matrix.T).double() / 2)
    chosen, _ = _choose(values, k, which)
    picked, found = vectors[:, chosen].to(matrix), values[chosen].to(matrix)
    residuals = (matrix @ picked - picked * found).norm(dim=0)
    converged = bool((residuals <= tol * float(values.abs().max())).all())
    return Eigenpairs(found, picked, residuals, op.shape[0], converged)
