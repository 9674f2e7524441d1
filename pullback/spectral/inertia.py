"""How many eigenvalues are negative, zero and positive: the Morse index, and the order of symmetric operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.operators.operator import Operator
from pullback.spectral.arguments import DENSE_LIMIT, check_symmetric, dense, square_operator, work_dtype
from pullback.spectral.lanczos import Eigenpairs, eigenvalues

LANCZOS_TOL = {torch.float64: 1e-8, torch.float32: 1e-5}  # relative residual, and so the least tolerance for a zero
MOST = 64  # eigenvalues looked for at the lower end of an operator too large to be formed


@dataclass(frozen=True)
class MorseIndex(Shown):
    """Counts of eigenvalues by sign.

    Attributes:
        index: number below minus ``tolerance``: the directions in which a stationary point is a maximum.
        nullity: number within ``tolerance`` of zero; None where they could not be counted.
        positive: number above ``tolerance``; None where they could not be counted.
        tolerance: the bound used, absolute.
        decided: whether all three counts are certain: complete, and no eigenvalue within its error of a bound.
            The index of a degenerate point (nullity above 0) says nothing about the function along its null space.
        num_matvecs: products used.
    """

    index: int
    nullity: int | None
    positive: int | None
    tolerance: float
    decided: bool
    num_matvecs: int


def morse_index(op: Any, *, tol: float | None = None, dense_limit: int = DENSE_LIMIT, seed: int = 0) -> MorseIndex:
    """Number of negative eigenvalues of a symmetric operator, with the numbers of zero and of positive ones.

    Up to ``dense_limit`` rows the matrix is formed and all eigenvalues are computed. Beyond, Lanczos finds the smallest
    ones, up to 64, until one is above the tolerance; where it meets a zero first, the index is known and the nullity is
    not, and where all 64 are negative, the index is at least that.

    Args:
        op: a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        tol: eigenvalues of at most ``tol`` times the largest absolute one count as zero. None means what rounding
            leaves: n (at least 100) units of precision and the asymmetry seen; by Lanczos 1e-8 (float32: 1e-5).
        dense_limit: rows up to which the matrix is formed.
        seed: of Lanczos' start vector.

    Returns:
        MorseIndex.

    Raises:
        InputError: the operator is not square or not symmetric, or ``tol`` is not positive.

    Cost: n products and n^3 operations up to ``dense_limit``; beyond, those of Lanczos.

    References: Milnor (1963), Morse Theory, section 2.

    Example:
        >>> counts = morse_index(torch.diag(torch.tensor([-2.0, -4.0, 6.0])))
        >>> counts.index, counts.nullity, counts.positive, counts.decided
        (2, 0, 1, True)
    """
    where = "morse_index"
    operator = square_operator(op, where)
    if tol is not None:
        check_positive(where, "tol", tol)
    if operator.shape[0] > dense_limit:
        return _by_lanczos(operator, tol, seed)
    values, error = dense_spectrum(operator, where)
    scale = float(values.abs().max())
    tolerance = error if tol is None else tol * scale
    negative, positive = int((values < -tolerance).sum()), int((values > tolerance).sum())
    # a default tolerance is the error, and what it calls zero is zero as far as can be told
    near = (values.abs() - tolerance).abs() < (error if tol is not None else 0.0)
    count = len(values)
    return MorseIndex(negative, count - negative - positive, positive, tolerance, not bool(near.any()), count)


def dense_spectrum(op: Operator, where: str) -> tuple[torch.Tensor, float]:
    """All eigenvalues, ascending in float64 on the CPU, and a bound on what rounding has done to them."""
    matrix = dense(op)
    check_symmetric(matrix, op, where)
    exact = matrix.double().cpu()
    values = torch.linalg.eigvalsh((exact + exact.T) / 2)
    precision = torch.finfo(op.dtype if op.dtype.is_floating_point else torch.float64).eps
    error = max(len(values), 100) * precision * float(values.abs().max()) + float((exact - exact.T).norm()) / 2
    return values, error


def _by_lanczos(op: Operator, tol: float | None, seed: int) -> MorseIndex:
    """Counts from the lower end, as far as they can be known."""
    n, precision = op.shape[0], LANCZOS_TOL[work_dtype(op)]
    top = eigenvalues(op, tol=1e-3, seed=seed)
    used = top.num_matvecs
    for accuracy in (1e-3, precision if tol is None else min(precision, tol)):  # most signs need little
        k = 4
        while True:
            k = min(2 * k, MOST, n)
            low = eigenvalues(op, k, "smallest", tol=accuracy, seed=seed)
            used += low.num_matvecs
            scale = max(float(low.values.abs().max()), float(top.values[0].abs()))
            tolerance = (2 * precision if tol is None else tol) * scale
            if float(low.values[0]) >= -tolerance or k == min(MOST, n):
                break
        counts = _counts(low, n, tolerance, used)
        if counts.decided or float(low.values[0]) < -tolerance:  # or there are more than will be looked for
            break
    return counts


def _counts(low: Eigenpairs, n: int, tolerance: float, used: int) -> MorseIndex:
    values, errors = low.values.double(), low.residuals.double()
    negative = int((values < -tolerance).sum())
    certain = low.converged and not bool(((values.abs() - tolerance).abs() < 10 * errors).any())
    if float(values[0]) > tolerance or len(values) == n:  # everything else is above this one
        zero = len(values) - negative - int((values > tolerance).sum())
        return MorseIndex(negative, zero, n - negative - zero, tolerance, certain, used)
    return MorseIndex(negative, None, None, tolerance, False, used)


def is_positive_definite(
    op: Any, *, semi: bool = False, tol: float | None = None, dense_limit: int = DENSE_LIMIT, seed: int = 0
) -> bool:
    """Whether all eigenvalues of a symmetric operator are above zero (``semi``: not below it), up to a tolerance.

    Args:
        op: a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        semi: ask for positive semi-definite: smallest eigenvalue at least minus the tolerance, not above it.
        tol: what counts as zero, relative to the largest absolute eigenvalue; None as for ``morse_index``.
        dense_limit: rows up to which the matrix is formed; beyond, Lanczos finds the smallest eigenvalue.
        seed: of Lanczos' start vector.

    Returns:
        The answer. A zero eigenvalue makes it False without ``semi`` and does not matter with it.

    Raises:
        InputError: the operator is not symmetric, or Lanczos cannot tell the smallest eigenvalue from zero.

    Cost: n products and n^3 operations up to ``dense_limit``; beyond, those of Lanczos.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> is_positive_definite(A), is_positive_definite(A - torch.eye(2))
        (True, False)
        >>> is_positive_definite(A - torch.eye(2), semi=True)
        True
    """
    where = "is_positive_definite"
    operator = square_operator(op, where)
    if tol is not None:
        check_positive(where, "tol", tol)
    if operator.shape[0] <= dense_limit:
        values, error = dense_spectrum(operator, where)
        tolerance = error if tol is None else tol * float(values.abs().max())
        sign: int | None = int(values[0] > tolerance) - int(values[0] < -tolerance)
    else:
        precision = LANCZOS_TOL[work_dtype(operator)]
        ends = eigenvalues(operator, 1, "both", tol=precision if tol is None else min(precision, tol), seed=seed)
        smallest, spread = float(ends.values[-1]), float(ends.residuals[-1])
        tolerance = (2 * precision if tol is None else tol) * float(ends.values.abs().max())
        sign = smallest_sign(smallest, spread, tolerance)
        if sign is None:
            got = (
                f"a smallest eigenvalue of {smallest:.3g} with residual {spread:.2g} and a tolerance of {tolerance:.2g}"
            )
            raise input_error(where, "a smallest eigenvalue that can be told from zero", got, "Pass another `tol`")
    return sign is not None and sign >= (0 if semi else 1)


def smallest_sign(value: float, residual: float, tolerance: float) -> int | None:
    """Sign of the smallest eigenvalue from a Ritz value, which is never below it; None where it is not clear."""
    if value < -tolerance:
        return -1
    if value - 10 * residual > tolerance:  # it has settled, far above zero
        return 1
    return 0 if value <= tolerance and residual <= tolerance else None


def loewner_order(first: Any, second: Any, *, tol: float | None = None) -> str:
    """How two symmetric operators compare: A > B where A - B is positive definite, A >= B where semi-definite.

    Args:
        first: A, a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        second: B, of the same shape.
        tol: what counts as a zero eigenvalue of A - B, relative to its largest; None as for ``morse_index``.

    Returns:
        ">", ">=", "=", "<=", "<", or "none": the order is partial, and most pairs do not compare.

    Raises:
        InputError: shapes differ, an operator is not symmetric, or it is too large for all signs to be counted.

    Cost: that of ``morse_index`` of the difference.

    References: Grosse (2021), section 2.2.

    Example:
        >>> loewner_order(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2))
        '>='
    """
    where = "loewner_order"
    a, b = square_operator(first, where), square_operator(second, where)
    counts = morse_index(a + (-1.0) * b, tol=tol)
    if counts.nullity is None or counts.positive is None:
        got = f"a difference with {counts.index} negative eigenvalues, and others that could not be counted"
        raise input_error(where, f"at most {DENSE_LIMIT} rows", got, "Compare blocks, or ask is_positive_definite")
    if counts.index and counts.positive:
        return "none"
    if not counts.index and not counts.positive:
        return "="
    side = ">" if counts.positive else "<"
    return side + ("=" if counts.nullity else "")
