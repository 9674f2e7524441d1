"""Points where a model's predicted class changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback._results import Shown
from pullback.functional import check_batch, undisturbed
from pullback.functional.model_view import check_module, evaluate
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.target_checks import logits_of


@dataclass(frozen=True)
class BoundaryPoints(Shown):
    """Points where the predicted class changes.

    Attributes:
        x: (N, ...), within rounding of the boundary.
        classes: (N, 2): the class on the side of the first input, and the one next to it.
    """

    x: Tensor
    classes: Tensor


def boundary_points(model: nn.Module, a: Tensor, b: Tensor) -> BoundaryPoints:
    """A point on the decision boundary between each pair of inputs, by bisection of the line that joins them.

    The class is the largest output, or whether the only output is above 0. The point is where the class of ``a`` ends:
    what is beyond it need not be the class of ``b``.

    Args:
        model: any module in eval mode, from (N, ...) to (N, C) or (N, 1).
        a: inputs (N, ...).
        b: inputs of the same shape, of another class than ``a``, pair by pair.

    Raises:
        InputError: a pair of one class, or of different shapes.
        UnsupportedError: dropout or batch norm in train mode.

    Cost: a forward pass for each bit of the dtype, 52 in float64.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 1.0]]))
        >>> ends = torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, -1.0]], dtype=torch.float64)
        >>> [round(v, 6) for v in boundary_points(model, *ends).x[0].tolist()]  # x_1 + x_2 = 0
        [0.75, -0.75]
    """
    where = "boundary_points"
    check_module(model, where)
    check_batch(where, a, b, ("a", "b"))
    if a.shape != b.shape or a.dtype != b.dtype:
        got = f"{tuple(a.shape)}, {a.dtype} and {tuple(b.shape)}, {b.dtype}"
        raise input_error(where, "`a` and `b` of one shape and dtype", got, "Pass one end for each pair in both")
    refuse_random_and_coupled(model, where)
    with undisturbed(model), torch.no_grad():
        first = class_scores(model, a, where).argmax(1)
        same = first == class_scores(model, b, where).argmax(1)
        if bool(same.any()):
            pair = int(same.nonzero()[0])
            raise input_error(where, "ends of different class", f"{int(first[pair])} twice in pair {pair}", "Drop it")
        low, high = a, b
        for _ in range(round(-math.log2(torch.finfo(a.dtype).eps))):
            middle = (low + high) / 2
            inside = (class_scores(model, middle, where).argmax(1) == first).view(-1, *[1] * (a.dim() - 1))
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        classes = torch.stack([first, class_scores(model, high, where).argmax(1)], 1)
    return BoundaryPoints((low + high) / 2, classes)


def class_scores(model: nn.Module, x: Tensor, where: str) -> Tensor:
    """Outputs by class (N, C), C >= 2: a single output stands beside zero."""
    outputs = logits_of(evaluate(model, x))
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(x):
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise input_error(where, "a model that returns one tensor (N, C)", got, "Wrap it to return scores by class")
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs
