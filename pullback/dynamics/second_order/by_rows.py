"""The two forms of a matrix J^T M J: (P, P) in the parameters, or (N r, N r) between the samples' rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.dynamics.second_order.problem import Problem
from pullback.functional import undisturbed
from pullback.functional.batch import num_samples
from pullback.functional.target_checks import logits_of
from pullback.gradients.curvature_rows import Matrix, RowSource, row_source

FORMS = (None, "parameters", "kernel")


def by_rows(form: str | None, problem: Problem, rows_a_sample: int | None = None) -> bool:
    """Whether the kernel form is asked for; where nothing is, whether it is the smaller one.

    Args:
        form: what the user said.
        problem: its sizes.
        rows_a_sample: r; None for the number of outputs.

    Cost: a forward pass where nothing is asked for and r is not known.
    """
    if form is not None:
        return form == "kernel"
    count = _num_outputs(problem) if rows_a_sample is None else rows_a_sample * num_samples(problem.x)
    return 0 < count < problem.view.num_params


def _num_outputs(problem: Problem) -> int:
    """Of all samples together; 0 where the model returns something else than one tensor."""
    with undisturbed(problem.view.model), torch.no_grad():
        z = logits_of(problem.view(problem.x))
    return z.numel() if isinstance(z, Tensor) else 0


def rows_of(problem: Problem, matrix: Matrix) -> RowSource:
    """The rows of a matrix of the problem's batch."""
    return row_source(
        problem.view, problem.loss_fn, problem.x, problem.y, matrix, problem.where, otherwise="form='parameters'"
    )
