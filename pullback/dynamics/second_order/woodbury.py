"""Damped curvature through the samples: C = B^T B / N, and a system of the rows' size in place of the parameters'."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.dynamics.second_order.systems import Direction, size_of
from pullback.functional.unwrap import without_autocast
from pullback.gradients.curvature_rows import RowSource
from pullback.gradients.matrix import GradientRows
from pullback.kernels.gram.squares import total_gram
from pullback.kernels.plan.make import TOTAL, make_plan

REFINED = 1e3  # eps: residual above which the solution is refined once more
REFINEMENTS = 3


@dataclass(frozen=True)
class _Part:
    """The rows in the parameters of one damping: their columns, as an operator, and their Gram matrix."""

    columns: Tensor
    rows: GradientRows
    gram: Tensor


class Rows:
    """C = B^T B / N by its rows B, (N r, P), r values a sample; exact, without iterations.

    (C + D)^-1 g = D^-1 g - D^-1 B^T (N I + B D^-1 B^T)^-1 B D^-1 g, and B D^-1 B^T is the sum over dampings of the Gram
    matrix of the rows in those parameters, over that damping: one kernel call for each of them.

    Where a model is so sure that its curvature is zero in its precision there are no rows, and C = 0.

    Args:
        source: the rows.
        d: dampings, (P,), above 0; what is solved for later are multiples of it.
        where: the caller.

    Cost: for each distinct damping the capture of the rows and their Gram matrix; a solve (N r)^3 / 3 operations and
        two products with B and B^T for each refinement.
    """

    smallest: float | None = None

    def __init__(self, source: RowSource, d: Tensor, where: str) -> None:
        self._d, self._parts, self.num_samples = d, [], 1
        names = torch.cat([d.new_full((w.numel(),), i) for i, w in enumerate(source.view.parameters.values())])
        every = list(source.view.parameters)
        for damping in d.unique() if source.num_values else ():
            columns = (d == damping).nonzero().squeeze(1)
            inside = [every[int(i)] for i in names[columns].unique()]
            captured = replace(source, view=source.view.restricted(inside)).capture(where)
            plan = make_plan(captured, captured.num_samples, None, where, TOTAL)
            with without_autocast():
                gram = total_gram(captured, plan, where)
            self._parts.append(_Part(columns, GradientRows.of(captured, None), gram))
            self.num_samples = captured.num_samples
        grams = [part.gram / d[part.columns[0]] for part in self._parts]
        self._gram = sum(grams[1:], grams[0]) if grams else d.new_zeros(0, 0)  # B D^-1 B^T

    def times(self, v: Tensor) -> Tensor:
        """B v, (N r,)."""
        parts = [part.rows @ v[part.columns].to(part.rows.dtype) for part in self._parts]
        return torch.stack(parts).sum(0) if parts else v.new_zeros(0)

    def transposed(self, u: Tensor) -> Tensor:
        """B^T u, (P,)."""
        v = u.new_zeros(len(self._d))
        for part in self._parts:
            v[part.columns] = part.rows.T @ u.to(part.rows.dtype)
        return v

    @without_autocast()
    def product(self, v: Tensor) -> Tensor:
        """C v."""
        return self.transposed(self.times(v)) / self.num_samples

    @without_autocast()
    def solve(self, d: Tensor, b: Tensor) -> Direction:
        """For d a multiple of the dampings it was made with."""
        factor = float(d[0] / self._d[0])
        small = self._gram / factor
        small.diagonal().add_(self.num_samples)
        L, failed = torch.linalg.cholesky_ex(small)
        if bool(failed):
            got, remedy = f"a damping of {float(d.min()):.3g} that rounding hides", "Raise the damping"
            raise input_error("Woodbury", "a kernel that is positive definite with the damping", got, remedy)
        x, residual, size = torch.zeros_like(b), b, 1.0
        for _ in range(REFINEMENTS):
            seen = torch.cholesky_solve(self.times(residual / d).unsqueeze(1), L).squeeze(1)
            moved = x + residual / d - self.transposed(seen) / d
            left = b - self.product(moved) - d * moved
            if not size_of(left, b) < size:
                break
            x, residual, size = moved, left, size_of(left, b)
            if size <= REFINED * torch.finfo(b.dtype).eps:
                break
        # the right-hand side is lost in rounding where C x and D x cancel; backward error counts
        done = float(residual.norm()) <= REFINED * torch.finfo(b.dtype).eps * float((d * x).norm() + b.norm())
        return Direction(x, size, 0, done)
