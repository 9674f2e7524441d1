"""The kinds of stationary point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.operators.operator import Operator
from pullback.spectral.arguments import DENSE_LIMIT, square_operator, work_dtype
from pullback.spectral.inertia import LANCZOS_TOL, morse_index, smallest_sign
from pullback.spectral.lanczos import eigenvalues


@dataclass(frozen=True)
class StationaryPoint(Shown):
    """The kind of a stationary point, as far as the second derivative decides it.

    Attributes:
        kind: "minimum" (all eigenvalues positive), "maximum" (all negative), "saddle" (some of both, zeros or not), or
            "degenerate": some zeros and no two signs, where higher derivatives decide and the Hessian does not.
        negative: number of negative eigenvalues, None where the operator is too large to count them.
        zero: number of eigenvalues within ``tolerance`` of zero, or None.
        positive: number of positive eigenvalues, or None.
        tolerance: what counts as zero, absolute.
        gradient_norm: |gradient|.
        num_matvecs: products used.
    """

    kind: str
    negative: int | None
    zero: int | None
    positive: int | None
    tolerance: float
    gradient_norm: float
    num_matvecs: int

    @property
    def decided(self) -> bool:
        """Whether the second derivative tells what kind it is."""
        return self.kind != "degenerate"

    def __str__(self) -> str:
        counts = f"{self.negative} negative, {self.zero} zero, {self.positive} positive eigenvalues"
        kind = self.kind if self.decided else "degenerate: undecided by the second derivative"
        return f"{kind} ({counts} at a tolerance of {self.tolerance:.2g})".replace("None", "uncounted")


def classify_stationary_point(
    op: Any,
    gradient: Tensor,
    *,
    tol: float | None = None,
    gradient_tol: float = 1e-6,
    dense_limit: int = DENSE_LIMIT,
    seed: int = 0,
) -> StationaryPoint:
    """Kind of a stationary point from the Hessian there: minimum, maximum, saddle or degenerate.

    Args:
        op: the Hessian, a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        gradient: the gradient at the same point, (n,); it must be zero to within ``gradient_tol``.
        tol: what counts as a zero eigenvalue, relative to the largest absolute one; None means what rounding leaves.
        gradient_tol: largest |gradient| that counts as zero.
        dense_limit: rows up to which the matrix is formed and all signs are counted; beyond, Lanczos finds the two ends
            of the spectrum, which decide the kind as well.
        seed: of Lanczos' start vector.

    Returns:
        StationaryPoint.

    Raises:
        InputError: the gradient is not zero, the operator is not symmetric, or Lanczos has not converged.

    Cost: n products and n^3 operations up to ``dense_limit``; beyond, those of Lanczos.

    References: Grosse (2021), section 3.1, with the cases of zeros beside two signs, and of no positive eigenvalue.

    Example:
        >>> import torch
        >>> kinds = [torch.tensor(d) for d in ([1.0, 2.0], [-1.0, -2.0], [1.0, -1.0], [1.0, 0.0])]
        >>> [classify_stationary_point(torch.diag(d), torch.zeros(2)).kind for d in kinds]
        ['minimum', 'maximum', 'saddle', 'degenerate']
    """
    where = "classify_stationary_point"
    operator = square_operator(op, where)
    n = operator.shape[0]
    for name, value in (("tol", tol), ("gradient_tol", gradient_tol)):
        if value is not None:
            check_positive(where, name, value)
    if not isinstance(gradient, Tensor) or tuple(gradient.shape) != (n,):
        got = f"shape {tuple(gradient.shape)}" if isinstance(gradient, Tensor) else type(gradient).__name__
        raise input_error(where, f"`gradient` ({n},)", got, "Pass the flat gradient at the Hessian's point")
    size = float(gradient.detach().double().norm())
    if not size <= gradient_tol:
        remedy = "Go on to a stationary point, or pass the `gradient_tol` that counts as zero"
        raise input_error(where, f"a gradient of at most {gradient_tol:g}", f"|gradient| = {size:.3g}", remedy)
    if n > dense_limit:
        return _by_ends(operator, tol, size, seed, where)
    counts = morse_index(operator, tol=tol, dense_limit=dense_limit)
    kind = _kind(counts.index > 0, counts.nullity != 0, counts.positive != 0)
    return StationaryPoint(
        kind, counts.index, counts.nullity, counts.positive, counts.tolerance, size, counts.num_matvecs
    )


def _kind(negative: bool, zero: bool, positive: bool) -> str:
    if negative and positive:
        return "saddle"
    if zero:
        return "degenerate"
    return "maximum" if negative else "minimum"


def _by_ends(op: Operator, tol: float | None, size: float, seed: int, where: str) -> StationaryPoint:
    """The kind from the largest and the smallest eigenvalue alone."""
    n, precision = op.shape[0], LANCZOS_TOL[work_dtype(op)]
    ends = eigenvalues(op, 1, "both", tol=precision if tol is None else min(precision, tol), seed=seed)
    high, low = float(ends.values[0]), float(ends.values[-1])
    tolerance = (2 * precision if tol is None else tol) * max(abs(high), abs(low))
    least = smallest_sign(low, float(ends.residuals[-1]), tolerance)
    most = smallest_sign(-high, float(ends.residuals[0]), tolerance)  # of -A
    if least is None or most is None:
        got = f"{low:.3g} to {high:.3g} with residuals up to {float(ends.residuals.max()):.2g}"
        raise input_error(where, "converged ends of the spectrum", got, "Pass a larger `tol`")
    kind = _kind(least < 0, least <= 0 <= -most, most < 0)
    known = {"minimum": (0, 0, n), "maximum": (n, 0, 0)}
    negative, zero, positive = known.get(kind, (None, None, None))
    return StationaryPoint(kind, negative, zero, positive, tolerance, size, ends.num_matvecs)
