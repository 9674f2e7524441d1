"""``CurvatureSpectrum``: what ``curvature_spectrum`` found, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pullback._results import Drawn
from pullback.diagnostics.curvature_spectrum.routes import Route


@dataclass(frozen=True)
class CurvatureSpectrum(Drawn):
    """Non-zero eigenvalues of a curvature matrix A (P, P) of the mean loss, and how they were found.

    Attributes:
        values: above ``noise_floor``, descending; (m,), m <= k.
        vectors: eigenvectors in parameter space, (P, m), orthonormal; None if they were not asked for.
        residuals: (m,): bounds on |A v - value v|, so on the error of each value. They follow from the residuals of
            the Gram matrix, and one product with the returned vectors, combined with random signs, confirms them;
            where either is above ``tol`` every vector is measured. "lanczos": measured on every vector. Without
            vectors those of the Gram matrix, and ``noise_floor`` for a whole spectrum.
        noise_floor: what lies at or below it is rounding error of the dtype, and not returned: 4 eps tr(A), or 10 eps
            times the largest eigenvalue where only products were taken.
        num_below: how many of the eigenvalues asked for were at or below the floor, or exactly zero because A has
            no more rows.
        matrix: "gauss_newton", "empirical_fisher" or "true_fisher".
        method: "gram" or "lanczos".
        reason: why that one.
        routes: every way that was considered, with its estimated seconds and bytes, cheapest first.
        num_matvecs: products with A or the Gram matrix.
        converged: whether every residual is within ``tol`` times the largest eigenvalue (of a whole spectrum, within
            ``noise_floor`` if that is larger).
        num_samples: N.
        num_params: P.
    """

    values: Tensor
    vectors: Tensor | None
    residuals: Tensor
    noise_floor: float
    num_below: int
    matrix: str
    method: str
    reason: str
    routes: tuple[Route, ...] = field(repr=False)
    num_matvecs: int
    converged: bool
    num_samples: int
    num_params: int

    def __str__(self) -> str:
        shown = ", ".join(f"{v:.6g}" for v in self.values[:5].tolist()) + (", …" if len(self.values) > 5 else "")
        worst = float(self.residuals.max()) if len(self.residuals) else 0.0
        end = "converged" if self.converged else "not converged"
        lines = [
            f"{self.matrix} of {self.num_samples} samples, {self.num_params} parameters: {len(self.values)} non-zero "
            f"eigenvalues{': ' if shown else ''}{shown}",
            f"residuals up to {worst:.2g}, {self.num_matvecs} products, {end}; {self.num_below} at or below "
            f"{self.noise_floor:.2g}, where rounding begins",
            f"method {self.method}: {self.reason}",
        ]
        return "\n".join(lines)
