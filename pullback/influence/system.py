"""The damped curvature system every influence solves: its operator, made once, and what is held or factored of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import nn

from pullback._checks import check_option, check_positive, input_error
from pullback.functional import LossFunction, ModelView, output_hessian, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.batch import joined as join
from pullback.functional.batches import Data
from pullback.functional.model_view import names_in
from pullback.functional.target_checks import logits_of
from pullback.influence.dual import DampedInverse, Factored
from pullback.influence.held_rows import HELD_BYTES, fits, held_matrix, held_rows, itemsize
from pullback.influence.solves import Matrix, Method, Settings, System
from pullback.operators import Fisher, GaussNewton, Hessian
from pullback.operators.adapt import Dense
from pullback.operators.operator import Operator
from pullback.spectral import eigenvalues

COLUMNS_WORTH = 200  # rows of a matrix whose factors cost about as much as one more column of 50 iterations
ROUNDING = 1e-6  # of a second derivative of a loss in its outputs, relatively, which may be computed in float32
TEST_PRODUCTS = 100  # spent on the smallest eigenvalue where nothing is added to the diagonal


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


class DampedSystem:
    """(A + damping I) x = b for the training data, made once, whatever is asked of it and how often.

    The operator, and the test that a matrix without damping is not singular, come with it. Rows, a matrix or factors
    are held from the first question on that has columns enough to be worth them, and serve all that follow.

    Args:
        model: as ``damped_curvature``.
        loss_fn: as ``damped_curvature``.
        data: the training data.
        settings: checked.
        where: the caller.

    Raises:
        InputError: ``damping`` 0 and a matrix known to be singular, or found to be.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, data: Data, settings: Settings, where: str) -> None:
        made: dict[str, Any] = {"gauss_newton": GaussNewton, "hessian": Hessian, "empirical_fisher": Fisher}
        kind = {"kind": "empirical"} if settings.matrix == "empirical_fisher" else {}
        operator = made[settings.matrix](model, loss_fn, data, params=settings.params, **kind)
        self.model, self.loss_fn, self.data, self.settings, self.where = model, loss_fn, data, settings, where
        self.view: ModelView = operator.view
        self.num_samples: int = operator.num_samples
        self._rows_each = 1  # rank a sample adds at most
        if settings.matrix == "gauss_newton":
            x, _ = data if isinstance(data, tuple) else next(iter(data))
            self._rows_each = num_outputs(self.view, x)
        if settings.damping == 0:
            _check_definite(operator, settings, self.num_samples * self._rows_each, where)
        self._ready = System(self.view, operator, None, settings, self.num_samples)

    def for_columns(self, count: int) -> System:
        """The system ready for so many right-hand sides.

        For as many as a sample has rows, or more, rows or matrix are held where they fit: to make them costs about as
        much as a product a row.
        """
        ready, settings = self._ready, self.settings
        if settings.matrix == "hessian" or ready.inverse is not None:
            return ready
        view, N, C = self.view, self.num_samples, self._rows_each
        holds, square = fits(view, N, C), view.num_params <= N * C
        factored = settings.method == "dual" or (
            settings.method == "auto"
            and settings.tol > 0
            and _prefers_factors(view, self.loss_fn, self.data, settings, N * C, count)
        )
        held = ready.held
        if held is None and holds and (factored or count >= C if square else count >= C and not factored):
            make = held_matrix if square else held_rows
            held = make(view, self.loss_fn, self.data, settings.matrix, N, C, self.where)
        inverse: Operator | None = None
        if factored and isinstance(held, Dense):
            inverse = Factored(held.matrix, settings.damping)
        elif factored:
            inverse, held = self._dual(), None
        self._ready = replace(ready, inverse=inverse, held=held)
        return self._ready

    def _dual(self) -> DampedInverse:
        x, y = joined(self.data)
        s = self.settings
        return DampedInverse(self.model, self.loss_fn, x, y, damping=s.damping, matrix=s.matrix, params=s.params)


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
    ends = eigenvalues(operator, 1, which="both", tol=1e-3, max_matvecs=TEST_PRODUCTS).values
    largest, smallest = float(ends.max()), float(ends.min())
    if smallest <= P * torch.finfo(operator.dtype).eps * max(abs(largest), abs(smallest)):
        also = ", or use matrix='gauss_newton'" if settings.matrix == "hessian" else ""
        remedy = f"Pass a `damping` above {max(-smallest, 0.0):.2g}{also}"
        raise input_error(where, expected, f"a smallest eigenvalue of {smallest:.2g}", remedy)
