"""Damped curvature (C + D) x = b with D diagonal: by a matrix that is formed, or by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pullback._checks import check_count, check_positive
from pullback.functional.unwrap import without_autocast
from pullback.operators.operator import Operator
from pullback.spectral import eigenvalues, solve

FACTORISED = (
    100.0  # times P eps: residual, relative to |C + D| |x| + |b|, up to which a factorisation has done its work
)


@dataclass(frozen=True)
class Direction:
    """A solution of (C + D) x = b, or the news that C + D is not positive definite.

    Attributes:
        x: (P,).
        residual: |b - (C + D) x| / |b|.
        iterations: of conjugate gradients.
        converged: whether the residual reached the tolerance.
        negative: None, or the curvature of C + D, not positive, that was met; x is then what there was before it.
        usable: whether x is a direction to take.
    """

    x: Tensor
    residual: float
    iterations: int
    converged: bool
    negative: float | None = None
    usable: bool = True

    @property
    def reached(self) -> tuple[float, int, bool]:
        """Residual, iterations, converged: what a record of steps keeps of it."""
        return self.residual, self.iterations, self.converged


def check_solver(where: str, dense_limit: int, tol: float, max_iters: int | None) -> None:
    """Refuse settings of ``Dense`` and ``Products`` that are out of range.

    Raises:
        InputError: one is.
    """
    check_count(where, "dense_limit", dense_limit, 0)
    check_positive(where, "tol", tol)
    if max_iters is not None:
        check_count(where, "max_iters", max_iters, 1)


class System(Protocol):
    """The curvature C of a step."""

    @property
    def smallest(self) -> float | None:
        """Smallest eigenvalue of C, where it is known."""

    def product(self, v: Tensor) -> Tensor:
        """C v."""

    def solve(self, d: Tensor, b: Tensor) -> Direction:
        """Solution for the diagonal d, (P,)."""


def size_of(residual: Tensor, b: Tensor) -> float:
    """|residual| / |b|, 0 for b = 0."""
    norm = float(b.norm())
    return float(residual.norm()) / norm if norm else float(residual.norm())


class Dense:
    """C formed, (P, P); Cholesky.

    Args:
        matrix: C, symmetric up to rounding.
        known: whether its smallest eigenvalue is to be reported.
    """

    def __init__(self, matrix: Tensor, *, known: bool) -> None:
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        self.matrix, self._known = (matrix + matrix.T) / 2, known

    @cached_property
    @without_autocast()
    def spectrum(self) -> Tensor:
        """Eigenvalues of C, ascending."""
        return torch.linalg.eigvalsh(self.matrix)

    @property
    def smallest(self) -> float | None:
        """Smallest eigenvalue of C."""
        return float(self.spectrum[0]) if self._known else None

    @without_autocast()
    def ends(self, d: Tensor) -> tuple[float, float]:
        """Smallest eigenvalue of C + D, and the largest of C in size."""
        same = bool((d == d[0]).all())
        lowest = self.spectrum[0] + d[0] if same else torch.linalg.eigvalsh(self.matrix + torch.diag(d))[0]
        return float(lowest), float(self.spectrum.abs().max())

    @without_autocast()
    def product(self, v: Tensor) -> Tensor:
        """C v."""
        return self.matrix @ v

    @without_autocast()
    def solve(self, d: Tensor, b: Tensor) -> Direction:
        """By Cholesky factors."""
        damped = self.matrix + torch.diag(d)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed):
            lowest = min(0.0, float(torch.linalg.eigvalsh(damped)[0]))
            return Direction(torch.zeros_like(b), 1.0, 0, False, lowest, usable=False)
        return checked(damped, torch.cholesky_solve(b.unsqueeze(1), factor).squeeze(1), b)


def checked(damped: Tensor, x: Tensor, b: Tensor) -> Direction:
    """A direction from a factorised matrix, with its residual."""
    residual = b - damped @ x
    limit = FACTORISED * len(b) * torch.finfo(b.dtype).eps
    good = float(residual.norm()) <= limit * float(torch.linalg.matrix_norm(damped) * x.norm() + b.norm())
    return Direction(x, size_of(residual, b), 0, good)


class Diagonal(Operator):
    """diag(d)."""

    symmetric = True

    def __init__(self, d: Tensor) -> None:
        super().__init__((len(d), len(d)), d.dtype, d.device)
        self.d = d

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.d.unsqueeze(1) * matrix


class Products:
    """C by its products; conjugate gradients.

    Args:
        op: C.
        tol: residual to reach, at least 100 roundings of the dtype.
        max_iters: iterations at most.
        start: where they start from, (P,); None for zero.
        truncate: keep what was found before a direction of negative curvature, or b over that curvature if nothing was.
    """

    smallest: float | None = None

    def __init__(
        self, op: Operator, tol: float, max_iters: int | None, *, start: Tensor | None = None, truncate: bool = False
    ) -> None:
        self.op, self.tol, self.max_iters, self.start, self.truncate = op, tol, max_iters, start, truncate

    def ends(self, d: Tensor) -> tuple[float, float]:
        """A lower bound of the eigenvalues of C + D, and the largest of C in size; by Lanczos."""
        pairs = eigenvalues(self.op, 1, "both", tol=1e-3)
        self.smallest = float(pairs.values[-1])
        lowest = self.smallest - float(pairs.residuals[-1]) + float(d.min())
        return lowest, float(pairs.values.abs().max())

    def product(self, v: Tensor) -> Tensor:
        """C v."""
        return (self.op @ v.to(self.op.dtype)).to(v.dtype)

    def solve(self, d: Tensor, b: Tensor) -> Direction:
        """By conjugate gradients, with the residual recomputed."""
        damped: Any = self.op + Diagonal(d.to(self.op.dtype))
        start = None if self.start is None else self.start.to(b)
        tol = max(self.tol, FACTORISED * torch.finfo(damped.dtype).eps)  # below it is rounding, in float32 soon
        solution = solve(damped, b, tol=tol, max_iters=self.max_iters, start=start, indefinite="stop")
        x, residual = solution.x, solution.residual
        if solution.curvature is not None and self.truncate and not bool(x.any()):
            x = b / max(abs(solution.curvature), float(d.max()), torch.finfo(b.dtype).tiny)
        usable = solution.curvature is None or self.truncate
        return Direction(x, residual, solution.iterations, solution.converged, solution.curvature, usable)
