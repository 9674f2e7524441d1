"""A Kronecker-factored block for each layer in place of the Fisher matrix, made by curvlinops."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import input_error, unsupported
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.systems import Direction, size_of
from pullback.functional import undisturbed

TYPES = {"true": "type-2", "sampled": "mc", "empirical": "empirical"}  # curvlinops' names
EXACT = 1e3  # eps: relative residual up to which an inverse by eigendecompositions has done its work


def kfac_operator(
    model: nn.Module,
    loss_fn: Any,
    params: list[nn.Parameter],
    batch: tuple[Any, Any],
    fisher: str,
    seed: int,
    where: str,
) -> Any:
    """Curvlinops' KFAC of the mean loss over a batch; each block A (x) B of a layer's weight, and B of its bias.

    Raises:
        InputError: curvlinops is not installed.
        UnsupportedError: layers other than linear and 2-d convolutional ones; a loss other than CrossEntropyLoss,
            MSELoss and BCEWithLogitsLoss with reduction "mean".
    """
    try:
        peer = import_module("curvlinops")
    except ImportError as error:
        got, remedy = f"{error}", "Run: pip install curvlinops-for-pytorch"
        raise input_error(where, "the package curvlinops for Kronecker factors", got, remedy) from None
    if getattr(loss_fn, "reduction", None) != "mean":
        got = f"reduction {getattr(loss_fn, 'reduction', None)!r}"
        raise unsupported(where, "a loss module with reduction 'mean' for Kronecker factors", got, "Use another form")
    try:
        with undisturbed(model), torch.enable_grad():
            made = peer.KFACLinearOperator(model, loss_fn, params, [batch], fisher_type=TYPES[fisher], seed=seed)
            made @ torch.zeros(made.shape[1], dtype=params[0].dtype, device=params[0].device)  # makes the factors
    except (NotImplementedError, ValueError, KeyError) as error:
        got, remedy = f"curvlinops' {type(error).__name__}: {error}", "Use form='kernel', which knows other layers"
        raise unsupported(
            where, "linear and 2-d convolutional layers and a loss curvlinops knows", got, remedy
        ) from None
    return made


class Kronecker:
    """The blocks as the curvature of a step, inverted by the eigenvectors of their factors."""

    smallest: float | None = None

    def __init__(self, problem: Problem, fisher: str, seed: int) -> None:
        params, where = list(problem.view.parameters.values()), problem.where
        batch = (problem.x, problem.y)
        self._op = kfac_operator(problem.view.model, problem.loss_fn, params, batch, fisher, seed, where)
        self._where = where

    def product(self, v: Tensor) -> Tensor:
        """C v."""
        with torch.no_grad():
            return self._op @ v

    def solve(self, d: Tensor, b: Tensor) -> Direction:
        """(C + d I)^-1 b."""
        if not bool((d == d[0]).all()):
            got, remedy = "several", "Give all groups one damping, or use form='kernel'"
            raise input_error(self._where, "one damping for Kronecker factors", got, remedy)
        peer, damping = import_module("curvlinops"), float(d[0])
        with torch.no_grad():
            inverse = peer.KFACInverseLinearOperator(self._op, damping=damping, use_exact_damping=True)
            x = inverse @ b
        residual = size_of(b - self.product(x) - damping * x, b)
        return Direction(x, residual, 0, residual <= EXACT * torch.finfo(b.dtype).eps / min(1.0, damping))
