"""The damped curvature system every influence solves, by conjugate gradients or by factors of the smaller matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive, input_error
from pullback._results import Solution
from pullback.functional import LossFunction, ModelView, output_hessian, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.batch import joined as join
from pullback.functional.batches import Data
from pullback.functional.model_view import names_in
from pullback.functional.target_checks import logits_of
from pullback.functional.unwrap import without_autocast
from pullback.influence.dual import DampedInverse, Factored
from pullback.influence.held_rows import HELD_BYTES, fits, held_matrix, held_rows, itemsize
from pullback.operators import Fisher, GaussNewton, Hessian
from pullback.operators.operator import Operator
from pullback.spectral import eigenvalues, solve

Matrix = Literal["gauss_newton", "hessian", "empirical_fisher"]
Method = Literal["auto", "cg", "dual"]

RECOMPUTED = 4  # solutions whose residuals are measured by passes through the network, the worst
COLUMNS_WORTH = 200  # rows of a matrix whose factors cost about as much as one more column of 50 iterations
ROUNDING = 1e-6  # of a second derivative of a loss in its outputs, relatively, which may be computed in float32
TEST_PRODUCTS = 100  # spent on the smallest eigenvalue where nothing is added to the diagonal


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
            found = solve(system.fast, b, damping=s.damping, tol=s.tol, max_iters=s.max_iters)
            x = found.x
            self.iterations = max(self.iterations, found.iterations)
            self.num_matvecs += (found.iterations + 1) * b.shape[1]
            if system.fast is system.operator:
                self._residual = max(self._residual, found.residual)
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


def settings_of(
    where: str,
    matrix: str,
    method: str,
    damping: float,
    tol: float,
    max_iters: int | None,
    params: Iterable[str] | None,
) -> Settings:
    """The shared arguments, checked."""
    check_option(where, "matrix", matrix, get_args(Matrix))
    check_option(where, "method", method, get_args(Method))
    if not damping >= 0:
        raise input_error(where, "`damping` of at least 0", repr(damping), "Pass a non-negative `damping`")
    if not tol >= 0:
        raise input_error(where, "`tol` of at least 0", repr(tol), "Pass a non-negative `tol`")
    if max_iters is not None and max_iters < 0:
        raise input_error(where, "`max_iters` of at least 0", repr(max_iters), "Pass a number of iterations")
    if method == "dual":
        check_positive(where, "damping", damping)
        if matrix == "hessian":
            remedy = "Use matrix='gauss_newton', or method='cg'"
            raise input_error(where, "a matrix made of samples' rows for method='dual'", "'hessian'", remedy)
    names = None if params is None else names_in(params, where)
    return Settings(matrix, method, damping, tol, max_iters, names)  # type: ignore[arg-type]


def make_system(
    model: nn.Module, loss_fn: LossFunction, data: Data, settings: Settings, where: str, num_columns: int = 1
) -> System:
    """The operator, and for the dual its inverse; a matrix known to be singular is refused without damping.

    For as many right-hand sides as a sample has rows, or more, rows or matrix are held where they fit: to make them
    costs about as much as a product a row.
    """
    made: dict[str, Any] = {"gauss_newton": GaussNewton, "hessian": Hessian, "empirical_fisher": Fisher}
    kind = {"kind": "empirical"} if settings.matrix == "empirical_fisher" else {}
    operator = made[settings.matrix](model, loss_fn, data, params=settings.params, **kind)
    view, N = operator.view, operator.num_samples
    if settings.matrix == "hessian":
        if settings.damping == 0:
            _check_definite(operator, settings, view.num_params, where)
        return System(view, operator, None, settings, N)
    x, _ = data if isinstance(data, tuple) else next(iter(data))
    C = 1 if settings.matrix == "empirical_fisher" else num_outputs(view, x)  # rank a sample adds at most
    if settings.damping == 0:
        _check_definite(operator, settings, N * C, where)
    asked = view, loss_fn, data, settings.matrix, N, C, where
    holds, square = fits(view, N, C), view.num_params <= N * C
    factored = settings.method == "dual" or (
        settings.method == "auto"
        and settings.tol > 0
        and _prefers_factors(view, loss_fn, data, settings, N * C, num_columns)
    )
    if holds and square and (factored or num_columns >= C):
        held = held_matrix(*asked)
        factors = Factored(held.matrix, settings.damping) if factored else None
        return System(view, operator, factors, settings, N, held)
    if factored:
        x, y = joined(data)
        damping, matrix, names = settings.damping, settings.matrix, settings.params
        inverse = DampedInverse(model, loss_fn, x, y, damping=damping, matrix=matrix, params=names)
        return System(view, operator, inverse, settings, N)
    return System(view, operator, None, settings, N, held_rows(*asked) if holds and num_columns >= C else None)


def _prefers_factors(
    view: ModelView, loss_fn: LossFunction, data: Data, settings: Settings, num_rows: int, num_columns: int
) -> bool:
    """Whether factors of the smaller matrix fit, cost less than iterations, and A is known to have no negative part."""
    size = min(num_rows, view.num_params)
    if settings.damping == 0 or itemsize(view) * size**2 > HELD_BYTES or num_columns * COLUMNS_WORTH < size:
        return False
    if settings.matrix == "empirical_fisher":
        return True
    with undisturbed(view.model), torch.no_grad():
        for x, y in [data] if isinstance(data, tuple) else data:
            values = torch.linalg.eigvalsh(output_hessian(loss_fn, logits_of(view(x)), y).double())
            if bool((values[:, 0] < -ROUNDING * values[:, -1].abs()).any()):
                return False
    return True


def joined(data: Data) -> tuple[Any, Any]:
    """All batches as one."""
    if isinstance(data, tuple):
        return data
    batches = list(data)
    x, y = zip(*batches, strict=True)
    return (x[0], y[0]) if len(batches) == 1 else (join(x), join(y))


def num_outputs(view: ModelView, x: Batch) -> int:
    """C, outputs of one sample."""
    with undisturbed(view.model), torch.no_grad():
        return int(logits_of(view(take(x, [0]))).numel())


def _check_definite(operator: Operator, settings: Settings, rank: int, where: str) -> None:
    """Without damping: fewer rows than parameters, or a smallest eigenvalue that is rounding, is a singular matrix."""
    P = operator.shape[0]
    expected = f"a positive definite matrix ({settings.matrix}) for `damping=0`"
    if settings.matrix != "hessian" and rank < P:
        remedy = "Pass a `damping` above 0, for example the weight decay of the training"
        raise input_error(where, expected, f"a rank of at most {rank} for {P} parameters", remedy)
    found = eigenvalues(operator, 1, which="both", tol=1e-3, max_matvecs=TEST_PRODUCTS).values
    largest, smallest = float(found.max()), float(found.min())
    if smallest <= P * torch.finfo(operator.dtype).eps * max(abs(largest), abs(smallest)):
        also = ", or use matrix='gauss_newton'" if settings.matrix == "hessian" else ""
        remedy = f"Pass a `damping` above {max(-smallest, 0.0):.2g}{also}"
        raise input_error(where, expected, f"a smallest eigenvalue of {smallest:.2g}", remedy)
