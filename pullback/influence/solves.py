"""How a damped curvature system is solved, and how good the solutions are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pullback._results import Solution
from pullback.functional import ModelView
from pullback.functional.unwrap import without_autocast
from pullback.influence.dual import DampedInverse
from pullback.operators.operator import Operator
from pullback.spectral import solve

Matrix = Literal["gauss_newton", "hessian", "empirical_fisher"]
Method = Literal["auto", "cg", "dual"]

RECOMPUTED = 4  # solutions whose residuals are measured by passes through the network, the worst


@dataclass(frozen=True)
class Settings:
    """How the system is made and solved; the arguments the public functions share."""

    matrix: Matrix
    method: Method
    damping: float
    tol: float
    max_iters: int | None
    params: list[str] | None


@dataclass(frozen=True)
class System:
    """(A + damping I) x = b, A the curvature of the mean loss over the training data; N its samples.

    Attributes:
        operator: A by passes through the network: what residuals are measured with.
        inverse: (A + damping I)^{-1} by its factors; None for conjugate gradients.
        held: A by its entries or rows, where ``fast`` is not that of the inverse.
    """

    view: ModelView
    operator: Operator
    inverse: Operator | None
    settings: Settings
    num_samples: int
    held: Operator | None = None

    @property
    def fast(self) -> Operator:
        """A for many products: by rows or entries that are held, or ``operator`` itself."""
        held = self.inverse.curvature if isinstance(self.inverse, DampedInverse) else self.held
        return self.operator if held is None else held

    def solve(self, b: Tensor) -> Solution:
        """X for one or several right-hand sides, (P,) or (P, K); the residual is recomputed with ``operator``."""
        s = self.settings
        if self.inverse is None:
            return solve(self.operator, b, damping=s.damping, tol=s.tol, max_iters=s.max_iters)
        x, left = self.by_factors(self.operator, b)
        residual = float(left.max())
        return Solution(x, residual, 0, residual <= s.tol, left.reshape(1, *b.shape[1:]))

    def by_factors(self, operator: Operator, b: Tensor) -> tuple[Tensor, Tensor]:
        """X by the inverse, with a step of refinement where the residual asks for one, and the residuals left."""
        assert self.inverse is not None
        x = self.inverse @ b
        left = self.residuals(operator, b, x)
        if bool((left > self.settings.tol).any()):
            better = x + self.inverse @ (b - operator @ x - self.settings.damping * x)
            fresh = self.residuals(operator, b, better)
            x, left = torch.where(fresh < left, better, x), torch.minimum(fresh, left)
        return x, left

    @without_autocast()
    def residuals(self, operator: Operator, b: Tensor, x: Tensor) -> Tensor:
        """|b - (A + damping I) x| / |b| with A as ``operator`` knows it, one a column."""
        size = b.norm(dim=0)
        left = b - operator @ x - self.settings.damping * x
        return left.norm(dim=0) / torch.where(size > 0, size, 1)


class Solves:
    """Many solves with one system, and how good the worst of them is.

    Residuals are measured with ``system.fast``; the ``RECOMPUTED`` largest of them are measured again with
    ``system.operator``, which shares no number with what was solved.

    Args:
        system: what is solved.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.iterations = self.num_matvecs = 0
        self._residual = 0.0
        self._worst: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, b: Tensor) -> Tensor:
        """X for the right-hand sides (P, K)."""
        system, s = self.system, self.system.settings
        if system.inverse is not None:
            x, left = system.by_factors(system.fast, b)
        else:
            solution = solve(system.fast, b, damping=s.damping, tol=s.tol, max_iters=s.max_iters)
            x = solution.x
            self.iterations = max(self.iterations, solution.iterations)
            self.num_matvecs += (solution.iterations + 1) * b.shape[1]
            if system.fast is system.operator:
                self._residual = max(self._residual, solution.residual)
                return x
            left = system.residuals(system.fast, b, x)
        self.num_matvecs += b.shape[1]
        self.keep(b, x, left)
        return x

    def keep(self, b: Tensor, x: Tensor, residuals: Tensor) -> None:
        """Remember solutions, so far as they are among the worst."""
        self._residual = max(self._residual, float(residuals.max()))
        if self._worst is not None:
            b, x = (torch.cat(pair, 1) for pair in ((self._worst[0], b), (self._worst[1], x)))
            residuals = torch.cat((self._worst[2], residuals))
        worst = residuals.topk(min(RECOMPUTED, len(residuals))).indices
        self._worst = b[:, worst], x[:, worst], residuals[worst]

    def keep_rows(self, inverse: DampedInverse, v: Tensor, w: Tensor) -> None:
        """Remember solutions F^T W of right-hand sides F^T V, whose residuals the Gram matrix knows."""
        residuals = inverse.residuals(v, w)
        worst = residuals.topk(min(RECOMPUTED, len(residuals))).indices
        self.num_matvecs += len(residuals)
        self._residual = max(self._residual, float(residuals.max()))
        both = inverse.from_rows(torch.cat((v[:, worst], w[:, worst]), 1))
        self.keep(both[:, : len(worst)], both[:, len(worst) :], residuals[worst])

    def residual(self) -> float:
        """The largest relative residual of all solves."""
        if self._worst is not None:
            b, x, _ = self._worst
            self._worst = None
            self.num_matvecs += b.shape[1]
            self._residual = max(self._residual, float(self.system.residuals(self.system.operator, b, x).max()))
        return self._residual
