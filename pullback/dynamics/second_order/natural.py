"""``NaturalGradient``: steps of steepest descent in the metric of the model's own distribution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pullback._checks import check_count, check_option, input_error
from pullback._rng import make_generator
from pullback.dynamics.second_order.base import SecondOrder
from pullback.dynamics.second_order.by_rows import FORMS, by_rows, rows_of
from pullback.dynamics.second_order.kronecker import Kronecker
from pullback.dynamics.second_order.newton import DENSE_LIMIT
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.step import Step
from pullback.dynamics.second_order.systems import Dense, Products, System, check_solver
from pullback.dynamics.second_order.woodbury import Rows
from pullback.functional import LossFunction, sample_targets, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.differentiable import differentiable
from pullback.functional.likelihood import known_likelihood
from pullback.functional.target_checks import logits_of
from pullback.gradients.curvature_rows import row_source
from pullback.operators import Fisher
from pullback.operators.curvature.fisher import Kind

SEEDS = 2**31  # torch's generators keep 32 bits
STRIDE = 1_000_003  # between the seeds of two runs, so that none repeats another's draws a step later


class NaturalGradient(SecondOrder):
    """Natural gradient: w <- w - lr (F + damping I)^-1 g, F the Fisher matrix of the batch.

    Without damping the function the model computes moves the same way whatever coordinates its weights are in, to first
    order in ``lr``. For cross-entropy and its like on one prediction a sample F is the Gauss-Newton matrix.

    Args:
        model: as for ``Newton``.
        loss_fn: as for ``Newton``; "true" and "sampled" need a loss that is a negative log-likelihood.
        lr: as for ``Newton``.
        damping: added to the diagonal; of a group. Above 0 in the kernel form.
        fisher: "true": targets in expectation over the model's own prediction. "sampled": drawn from it anew at each
            step, one for each sample. "empirical": those of the data: neither the Fisher matrix nor the Hessian.
        form: "parameters": F, (P, P), formed, or its products where P is above ``dense_limit``. "kernel": through the
            Gram matrix of the rows, (N C, N C) for "true" and (N, N) for the others: exact, at the price of one kernel
            call. "kronecker": a Kronecker-factored block a layer, an approximation, by the package
            curvlinops-for-pytorch. None: the smaller of the first two.
        seed: of the draws.
        params: as for ``Newton``.
        dense_limit: parameters up to which F is formed. Above, conjugate gradients.
        tol: their residual, relative; 100 roundings of the dtype at least.
        max_iters: their iterations; None as ``pb.solve``.

    Raises:
        InputError: an argument out of range; curvlinops is not installed ("kronecker"); on ``step`` as every optimizer
            here; F without damping is singular.
        UnsupportedError: on ``step``, as ``Fisher``.

    Cost: "kernel": a kernel call, (N r)^3 / 3 operations, and some products with the rows. "parameters": P products in
        blocks, then P^3 / 3 operations.

    References: Amari (1998); Martens (2020), arXiv:1412.1193; Kunstner, Hennig and Balles (2019), arXiv:1905.12558.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> optimizer = NaturalGradient(model, nn.CrossEntropyLoss(), damping=1e-2)
        >>> before = optimizer.step(x, y)
        >>> bool(nn.CrossEntropyLoss()(model(x), y) < before)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        lr: float | Tensor = 1.0,
        damping: float = 1e-3,
        *,
        fisher: str = "true",
        form: str | None = None,
        seed: int = 0,
        params: Iterable[Any] | None = None,
        dense_limit: int = DENSE_LIMIT,
        tol: float = 1e-6,
        max_iters: int | None = None,
    ) -> None:
        where = "NaturalGradient"
        check_option(where, "fisher", fisher, ("true", "sampled", "empirical"))
        check_option(where, "form", form, (*FORMS, "kronecker"))
        check_solver(where, dense_limit, tol, max_iters)
        check_count(where, "seed", seed, 0)
        if fisher != "empirical":
            known_likelihood(loss_fn, where)
        self.fisher, self.form, self.seed = cast(Kind, fisher), form, seed
        self.dense_limit, self.tol, self.max_iters = dense_limit, tol, max_iters
        self.needs_damping = form in ("kernel", "kronecker")
        super().__init__(model, loss_fn, params, lr=lr, damping=damping)

    def _settings(self) -> tuple[str, ...]:
        return ("fisher", "form", "dense_limit", "tol", "max_iters", "needs_damping")

    def _kept(self) -> tuple[str, ...]:
        return ("seed",)

    def _take(self, problem: Problem, lr: Tensor, d: Tensor) -> tuple[Tensor, Step]:
        system = self._system(problem, d)
        direction = system.solve(d, problem.gradient)
        if direction.negative is not None:
            got = f"a smallest curvature of {direction.negative:.3g}"
            raise input_error(problem.where, "a Fisher matrix that can be inverted", got, "Pass a larger `damping`")
        p = -lr * direction.x
        predicted = -float((problem.gradient * p + p * system.product(p) / 2).sum())
        word = {Rows: "step: kernel", Dense: "step: parameters", Products: "step: products"}.get(type(system))
        record = Step(
            float(problem.loss), None, predicted, float(d.max()), None, direction.residual, direction.iterations,
            direction.converged, 1, word or "step: kronecker",
        )  # fmt: skip
        return p, record

    def _system(self, problem: Problem, d: Tensor) -> System:
        seed = (self.seed * STRIDE + self.steps) % SEEDS
        if self.form == "kronecker":
            return Kronecker(problem, self.fisher, seed)
        smaller = bool((d > 0).all()) and by_rows(self.form, problem, None if self.fisher == "true" else 1)
        if self.form == "kernel" or smaller:
            return Rows(self._rows(problem, seed), d, problem.where)
        data = (problem.x, problem.y)
        F = Fisher(problem.view.model, problem.loss_fn, data, kind=self.fisher, seed=seed, params=problem.names)
        if F.shape[0] <= self.dense_limit:
            return Dense(F.to_dense(), known=False)
        return Products(F, self.tol, self.max_iters)

    def _rows(self, problem: Problem, seed: int) -> Any:
        if self.fisher == "true":
            return rows_of(problem, "true_fisher")
        y = problem.y if self.fisher == "empirical" else drawn_targets(problem, seed)
        return row_source(problem.view, problem.loss_fn, problem.x, y, "empirical_fisher", problem.where)


def drawn_targets(problem: Problem, seed: int) -> Batch:
    """Targets drawn from the model's prediction: those of ``Fisher(kind="sampled", seed=seed)``."""
    with undisturbed(problem.view.model), differentiable(), torch.no_grad():
        z = logits_of(problem.view(problem.x))
        generator = make_generator(seed, problem.gradient.device)
        return sample_targets(problem.loss_fn, z, problem.y, generator)
