"""``Newton`` and ``SaddleFreeNewton``: steps by the whole Hessian, at a fixed damping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_count, check_option, input_error
from pullback.dynamics.second_order.base import SecondOrder
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.step import Step
from pullback.dynamics.second_order.systems import Dense, Direction, Products, check_solver, checked, size_of
from pullback.functional import LossFunction
from pullback.functional.unwrap import without_autocast
from pullback.operators import Hessian
from pullback.spectral import eigenvalues

DENSE_LIMIT = 1000  # parameters up to which a matrix is formed and factorised
FLAT = 1e-3  # of the largest eigenvalue: the least that "damp" leaves for the smallest


class Newton(SecondOrder):
    """Newton's method: w <- w - lr (H + damping I)^-1 g, H the Hessian of the batch's mean loss.

    Exact on a quadratic in one step. It is drawn to any stationary point, saddles and maxima too, so a matrix that is
    not positive definite is refused unless ``indefinite`` says what to do with it; ``last.action`` says what was done.

    Args:
        model: any module in eval mode that treats samples on their own.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        lr: times the whole step; of a group.
        damping: added to the diagonal; of a group.
        indefinite: where H + damping I is not positive definite: "refuse"; "damp": by as much more as makes the
            smallest eigenvalue positive; "drop": no movement along eigenvectors whose eigenvalue is not; "keep": the
            step to the stationary point, whatever that is.
        params: parameters, groups of them, or names of parameters or modules; None for all.
        dense_limit: parameters up to which H is formed. Above, the smallest eigenvalue by Lanczos, to which the least
            of the groups' dampings is added, and conjugate gradients ("refuse" and "damp" alone).
        tol: their residual, relative; 100 roundings of the dtype at least.
        max_iters: their iterations; None as ``pb.solve``.

    Raises:
        InputError: an argument out of range; on ``step`` also a Hessian that is not positive definite ("refuse"), or
            is singular ("keep"), or too large ("drop", "keep").
        UnsupportedError: on ``step``, as ``Hessian``.

    Cost: up to the limit P Hessian-vector products in blocks and 2 P^3 operations; above it some tens of products
        for the smallest eigenvalue, and one an iteration.

    References: Nocedal and Wright (2006), ch. 3.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = Newton(model, nn.MSELoss())
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])
        >>> _ = optimizer.step(x, y)
        >>> round(model.weight.item(), 4), optimizer.last.action
        (3.0, 'step')
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        lr: float | Tensor = 1.0,
        damping: float = 0.0,
        *,
        indefinite: str = "refuse",
        params: Iterable[Any] | None = None,
        dense_limit: int = DENSE_LIMIT,
        tol: float = 1e-6,
        max_iters: int | None = None,
    ) -> None:
        check_option("Newton", "indefinite", indefinite, ("refuse", "damp", "drop", "keep"))
        check_solver("Newton", dense_limit, tol, max_iters)
        self.indefinite, self.dense_limit, self.tol, self.max_iters = indefinite, dense_limit, tol, max_iters
        super().__init__(model, loss_fn, params, lr=lr, damping=damping)

    def _settings(self) -> tuple[str, ...]:
        return ("indefinite", "dense_limit", "tol", "max_iters")

    def _take(self, problem: Problem, lr: Tensor, d: Tensor) -> tuple[Tensor, Step]:
        H = Hessian(problem.view.model, problem.loss_fn, (problem.x, problem.y), params=problem.names)
        if len(d) <= self.dense_limit:
            system: Dense | Products = Dense(H.to_dense(), known=True)
        elif self.indefinite in ("drop", "keep"):
            got, remedy = f"{len(d)} parameters", "Raise `dense_limit`, or use 'damp'"
            raise input_error(problem.where, f"at most {self.dense_limit} with {self.indefinite!r}", got, remedy)
        else:
            system = Products(H, self.tol, self.max_iters)
        direction, added, action = self._solved(system, d, problem)
        p = -lr * direction.x
        predicted = -float((problem.gradient * p + p * system.product(p) / 2).sum())
        damping = float(d.max()) + added
        record = Step(
            float(problem.loss), None, predicted, damping, system.smallest, direction.residual, direction.iterations,
            direction.converged, 1, action,
        )  # fmt: skip
        return p, record

    def _solved(self, system: Dense | Products, d: Tensor, problem: Problem) -> tuple[Direction, float, str]:
        """The direction, what was added to the damping for it, and the word for that."""
        g = problem.gradient
        lowest, largest = system.ends(d)
        if lowest > len(g) * torch.finfo(g.dtype).eps * largest:
            direction = system.solve(d, g)
            if direction.negative is None:
                return direction, 0.0, "step"
            lowest = direction.negative
        if self.indefinite == "refuse":
            got = f"a smallest eigenvalue of {lowest:.3g}"
            remedy = "Pass a `damping` above it, indefinite='damp', or use DampedNewton or SaddleFreeNewton"
            raise input_error(problem.where, "a positive definite Hessian", got, remedy)
        if isinstance(system, Dense) and self.indefinite != "damp":
            return self._by_eigenvectors(system, d, g, problem.where, lowest)
        added = max(-lowest, 0.0) + max(abs(lowest), FLAT * largest)
        word = f"damped: by {added:.3g} more, as the smallest eigenvalue was {lowest:.3g}"
        return system.solve(d + added, g), added, word

    @without_autocast()
    def _by_eigenvectors(
        self, system: Dense, d: Tensor, g: Tensor, where: str, lowest: float
    ) -> tuple[Direction, float, str]:
        damped = system.matrix + torch.diag(d)
        values, vectors = torch.linalg.eigh(damped)
        floor = len(g) * torch.finfo(g.dtype).eps * values.abs().max()
        if self.indefinite == "drop":
            kept = values > floor
            x = vectors[:, kept] @ ((vectors[:, kept].T @ g) / values[kept])
            word = f"dropped: {int((~kept).sum())} directions, the smallest eigenvalue was {lowest:.3g}"
            return Direction(x, size_of(g - damped @ x, g), 0, True), 0.0, word
        if bool((values.abs() <= floor).any()):
            got = f"an eigenvalue of {float(values[values.abs().argmin()]):.3g}"
            raise input_error(where, "a Hessian that can be inverted", got, "Pass a `damping`, or indefinite='drop'")
        direction = checked(damped, vectors @ ((vectors.T @ g) / values), g)
        return direction, 0.0, f"kept: the smallest eigenvalue was {lowest:.3g}, the point may be a saddle or a maximum"


class SaddleFreeNewton(SecondOrder):
    """Saddle-free Newton: w <- w - lr (|H| + damping I)^-1 g, with the eigenvalues' absolute values.

    Saddles repel: along negative curvature the step goes down as far as Newton's would go up. ``last.action`` counts
    the eigenvalues that were turned.

    Args:
        model: as for ``Newton``.
        loss_fn: as for ``Newton``.
        lr: as for ``Newton``.
        damping: above 0 unless no eigenvalue comes near 0.
        params: as for ``Newton``.
        dense_limit: parameters up to which H is formed. Above, its ``rank`` outermost eigenpairs at either end are
            found by Lanczos, and all other directions get the smallest of these in size.
        rank: from each end.

    Raises:
        InputError: as ``Newton``; an eigenvalue of 0 without damping.
        UnsupportedError: on ``step``, as ``Hessian``.

    Cost: as ``Newton``; above the limit the products of ``pb.eigenvalues``.

    References: Dauphin et al. (2014), arXiv:1406.2572.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(0.5)
        >>> optimizer = SaddleFreeNewton(model, lambda z, y: -(z**2).squeeze(1), damping=0.0)  # maximum: 0
        >>> _ = optimizer.step(torch.ones(1, 1), torch.ones(1, 1))
        >>> round(model.weight.item(), 4), optimizer.last.action
        (1.0, 'step: 1 of 1 eigenvalues were negative')
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        lr: float | Tensor = 1.0,
        damping: float = 1e-3,
        *,
        params: Iterable[Any] | None = None,
        dense_limit: int = DENSE_LIMIT,
        rank: int = 10,
    ) -> None:
        self.dense_limit = check_count("SaddleFreeNewton", "dense_limit", dense_limit, 0)
        self.rank = check_count("SaddleFreeNewton", "rank", rank, 1)
        super().__init__(model, loss_fn, params, lr=lr, damping=damping)

    def _settings(self) -> tuple[str, ...]:
        return ("dense_limit", "rank")

    def _take(self, problem: Problem, lr: Tensor, d: Tensor) -> tuple[Tensor, Step]:
        H = Hessian(problem.view.model, problem.loss_fn, (problem.x, problem.y), params=problem.names)
        g = problem.gradient
        if len(d) <= self.dense_limit:
            values, vectors = torch.linalg.eigh(Dense(H.to_dense(), known=False).matrix)
            rest, count, converged = 0.0, len(d), True
        else:
            pairs = eigenvalues(H, min(self.rank, max(1, len(d) // 4)), "both", tol=1e-3)
            values, vectors, converged = pairs.values.to(g), pairs.vectors.to(g), pairs.converged
            rest, count = float(values.abs().min()), pairs.num_matvecs
        direction = self._solved(values, vectors, rest, d, g, problem.where)
        p = -lr * direction.x
        bent = (H @ p.to(H.dtype)).to(p)
        negative = int((values < 0).sum())
        word = f"step: {negative} of {len(values)} eigenvalues were negative"
        predicted = -float((g * p + p * bent / 2).sum())
        iterations = 0 if len(d) <= self.dense_limit else count
        record = Step(
            float(problem.loss), None, predicted, float(d.max()), float(values.min()), direction.residual, iterations,
            direction.converged and converged, 1, word,
        )  # fmt: skip
        return p, record

    @without_autocast()
    def _solved(self, values: Tensor, vectors: Tensor, rest: float, d: Tensor, g: Tensor, where: str) -> Direction:
        """(V |values| V^T + rest (I - V V^T) + D)^-1 g; ``rest`` is 0 where V is square."""
        size = values.abs()
        floor = len(g) * torch.finfo(g.dtype).eps * float(size.max())
        if float(d.min()) <= 0 and float(size.min()) <= floor:
            raise input_error(where, "a Hessian without eigenvalue 0", "one within its rounding", "Pass a `damping`")
        if not rest:
            matrix = (vectors * size) @ vectors.T + torch.diag(d)
            return checked(matrix, torch.linalg.solve(matrix, g), g)
        kept = size > rest + floor
        V, s = vectors[:, kept], size[kept] - rest
        base = d + rest  # a diagonal, and V s V^T of low rank
        scaled = V / base.unsqueeze(1)
        x = g / base - scaled @ torch.linalg.solve(torch.diag(1 / s) + V.T @ scaled, scaled.T @ g)
        residual = size_of(base * x + V @ (s * (V.T @ x)) - g, g)
        return Direction(x, residual, 0, residual <= FLAT)
