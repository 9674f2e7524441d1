"""Convexity, sampled along segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, input_error
from pullback._results import Shown


@dataclass(frozen=True)
class ConvexityCheck(Shown):
    """Whether a function lay below its chords.

    Attributes:
        holds: no violation was found; that is evidence, not a proof. False is a proof of non-convexity.
        violation: largest f(point) - chord, over all segments; at most rounding where ``holds``.
        segment: where: the segment's row,
        position: and the share of the way from its first to its second end.
        num_evaluations: of f.
    """

    holds: bool
    violation: float
    segment: int
    position: float
    num_evaluations: int

    def __bool__(self) -> bool:
        return self.holds


def is_convex_between(
    function: Callable[[Tensor], Any], first: Tensor, second: Tensor, *, num_points: int = 17
) -> ConvexityCheck:
    """Whether ``f((1 - t) a + t b) <= (1 - t) f(a) + t f(b)`` on segments from a to b, sampled evenly in t.

    A convex function passes everywhere; for a smooth one on a convex domain that is the same as a Hessian that is
    positive semi-definite everywhere (``is_positive_definite(op, semi=True)`` at points).

    Args:
        function: of a vector (n,), to a number.
        first: a, (n,), or one row a segment (S, n).
        second: b, of the same shape.
        num_points: points within each segment.

    Returns:
        ConvexityCheck, true where no point was above its chord by more than rounding.

    Raises:
        InputError: the shapes do not fit, or the function is not finite or not a number.

    Cost: (num_points + 2) S evaluations.

    References: Grosse (2021), eq. 11.

    Example:
        >>> a, b = torch.tensor([-1.0]), torch.tensor([2.0])
        >>> [bool(is_convex_between(f, a, b)) for f in (lambda w: w**2, lambda w: -(w**4))]
        [True, False]
    """
    where = "is_convex_between"
    check_count(where, "num_points", num_points, 1)
    if first.shape != second.shape or first.dim() not in (1, 2):
        got = f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
        raise input_error(where, "ends (n,) or (S, n) of one shape", got, "Pass two points, or rows of points")
    ends = zip(first.reshape(-1, first.shape[-1]), second.reshape(-1, first.shape[-1]), strict=True)
    t = torch.linspace(0, 1, num_points + 2, dtype=torch.float64, device="cpu")
    worst, holds, segment, position = -float("inf"), True, 0, 0.0
    for row, (a, b) in enumerate(ends):
        values = [_detached(function((1 - float(s)) * a + float(s) * b)) for s in t]
        if any(isinstance(v, Tensor) and v.numel() != 1 for v in values):
            raise input_error(
                where, "a function with one number", f"shape {tuple(values[0].shape)}", "Sum or average it"
            )
        heights = torch.tensor([float(v) for v in values], dtype=torch.float64, device="cpu")
        if not bool(torch.isfinite(heights).all()):
            raise input_error(where, "finite values", "nan or inf", "Choose ends within the function's domain")
        above = (heights - (1 - t) * heights[0] - t * heights[-1])[1:-1]
        holds = holds and float(above.max()) <= 16 * torch.finfo(a.dtype).eps * float(heights.abs().max())
        if float(above.max()) > worst:
            worst, segment, position = float(above.max()), row, float(t[1 + int(above.argmax())])
    return ConvexityCheck(holds, worst, segment, position, (num_points + 2) * (row + 1))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
