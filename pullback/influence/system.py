"""The damped curvature system every influence solves, by conjugate gradients or through the samples' Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pullback._checks import check_option, check_positive, input_error
from pullback._results import Solution
from pullback.functional import LossFunction, ModelView, num_samples, take, undisturbed
from pullback.functional.losses import logits_of
from pullback.functional.model_view import names_in
from pullback.influence.dual import DampedInverse
from pullback.operators import Fisher, GaussNewton, Hessian
from pullback.operators.base import Operator
from pullback.operators.data import Data
from pullback.spectral import eigenvalues, solve

Matrix = Literal["gauss_newton", "hessian", "empirical_fisher"]
Method = Literal["cg", "dual"]

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
    """(A + damping I) x = b, A the curvature of the mean loss over the training data; N its samples."""

    view: ModelView
    operator: Operator
    inverse: DampedInverse | None
    settings: Settings
    num_samples: int

    def solve(self, b: Tensor) -> Solution:
        """X for one or several right-hand sides, (P,) or (P, K); the residual is recomputed with the operator."""
        if self.inverse is None:
            s = self.settings
            return solve(self.operator, b, damping=s.damping, tol=s.tol, max_iters=s.max_iters)
        x = self.inverse @ b
        size = b.norm(dim=0)
        left = (b - self.operator @ x - self.settings.damping * x).norm(dim=0) / torch.where(size > 0, size, 1)
        residual = float(left.max())
        return Solution(x, residual, 0, residual <= self.settings.tol, left.unsqueeze(0))


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
    if method == "dual":
        check_positive(where, "damping", damping)
        if matrix == "hessian":
            remedy = "Use matrix='gauss_newton', or method='cg'"
            raise input_error(where, "a matrix made of samples' rows for method='dual'", "'hessian'", remedy)
    names = None if params is None else names_in(params, where)
    return Settings(matrix, method, damping, tol, max_iters, names)  # type: ignore[arg-type]


def make_system(model: nn.Module, loss_fn: LossFunction, data: Data, settings: Settings, where: str) -> System:
    """The operator, and for the dual its inverse; a matrix known to be singular is refused without damping."""
    made: dict[str, Any] = {"gauss_newton": GaussNewton, "hessian": Hessian, "empirical_fisher": Fisher}
    kind = {"kind": "empirical"} if settings.matrix == "empirical_fisher" else {}
    operator = made[settings.matrix](model, loss_fn, data, params=settings.params, **kind)
    batches = [data] if isinstance(data, tuple) else data
    count = sum(num_samples(y, where, "y") for _, y in batches)
    inverse = None
    if settings.method == "dual":
        x, y = joined(data)
        inverse = DampedInverse(
            model, loss_fn, x, y, damping=settings.damping, matrix=settings.matrix, params=settings.params
        )
    if settings.damping == 0:
        _check_definite(operator, settings, count * _rows_a_sample(model, data, settings), where)
    return System(operator.view, operator, inverse, settings, count)


def joined(data: Data) -> tuple[Any, Any]:
    """All batches as one."""
    if isinstance(data, tuple):
        return data
    batches = list(data)
    return batches[0] if len(batches) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *batches)


def _rows_a_sample(model: nn.Module, data: Data, settings: Settings) -> int:
    """Rank one sample adds to the matrix at most."""
    if settings.matrix == "empirical_fisher":
        return 1
    x, _ = data if isinstance(data, tuple) else next(iter(data))
    with undisturbed(model), torch.no_grad():
        return int(logits_of(ModelView.of(model)(take(x, [0]))).numel())


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
