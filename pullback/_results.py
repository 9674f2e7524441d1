"""What algorithms return: an answer together with its error. Imports no torch at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A random estimate with its standard error.

    Attributes:
        value: the estimate, a number or a tensor.
        stderr: its standard error, of the same shape. With few probes it is widened by Student's distribution, so that
            three of it cover what three of a normal standard error would.
        num_matvecs: products with the operator that were used.

    Example:
        >>> print(Estimate(12.3456, 0.0123, 40))
        12.346 ± 0.012 (40 products)
    """

    value: Any
    stderr: Any
    num_matvecs: int

    def __str__(self) -> str:
        cost = f"({self.num_matvecs} products)"
        if not isinstance(self.value, float):
            return f"{describe(self.value)} ± {describe(self.stderr)} {cost}"
        return f"{rounded(self.value, self.stderr)} ± {self.stderr:.2g} {cost}"


@dataclass(frozen=True)
class Solution:
    """The solution of a linear system with its error.

    Attributes:
        x: (n,), or (n, K) for K right-hand sides; of the right-hand side's kind (tensor or NumPy array).
        residual: |b - A x| / |b|, recomputed from x; the largest one of several right-hand sides.
        iterations: made; one product each (and one more for ``residual``).
        converged: whether ``residual`` reached the tolerance that was asked for.
        history: |b - A x| / |b| before the first and after every iteration, (iterations + 1,) or (iterations + 1, K).
        curvature: p^T A p / p^T p <= 0 of the search direction it stopped at with ``indefinite="stop"``; else None.

    Example:
        >>> print(Solution(x=None, residual=3.2e-7, iterations=12, converged=True, history=None))
        converged in 12 iterations, relative residual 3.2e-07
    """

    x: Any
    residual: float
    iterations: int
    converged: bool
    history: Any
    curvature: float | None = None

    def __str__(self) -> str:
        how = "converged in" if self.converged else "not converged after"
        return f"{how} {self.iterations} iterations, relative residual {self.residual:.2g}"


def rounded(value: float, stderr: float) -> str:
    """A number to the second digit of its standard error."""
    if not 0 < stderr < float("inf"):
        return f"{value:.6g}"
    places = 1 - int(f"{stderr:e}".split("e")[1])
    return f"{value:.{places}f}" if 0 <= places <= 12 else f"{value:.6g}"


def describe(values: Tensor) -> str:
    """A tensor in a word: its shape."""
    return f"tensor{tuple(values.shape)}"
