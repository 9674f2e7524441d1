"""Spectra: densities with their errors, eigenvalues with their residuals."""

from __future__ import annotations

from pullback.charts.chart import PALETTE
from pullback.charts.plots import Curve, curves
from pullback.charts.text import number
from pullback.diagnostics import CurvatureSpectrum, Spectrum
from pullback.measure import JacobianSpectrum
from pullback.spectral import Density, Eigenpairs
from pullback.theory import JacobianDensity
from pullback.views.kernels import spectrum_chart
from pullback.views.view import View, drawing


@drawing.register
def density_view(found: Density) -> View:
    """The smoothed density with three standard errors on both sides."""
    grid, value, error = (each.detach().cpu().double() for each in (found.grid, found.density, found.stderr))
    lines = [
        Curve("density", grid.tolist(), value.tolist(), "plain", PALETTE[0]),
        Curve("three standard errors above", grid.tolist(), (value + 3 * error).tolist(), "dash"),
        Curve("and below", grid.tolist(), (value - 3 * error).clamp(min=0).tolist(), "dash", legend=False),
    ]
    reading = f"Share of the {found.num_eigenvalues:,} eigenvalues per unit, smoothed over {number(found.width, 2)}."
    chart = curves(
        "density", "Density of eigenvalues", reading, lines, x="eigenvalue", y="density", summary=(str(found),)
    )
    return View("Spectral density", (str(found),), charts=(chart,))


@drawing.register
def curvature_view(found: CurvatureSpectrum) -> View:
    """Eigenvalues by rank above the floor, and what was considered."""
    return View(
        "Spectrum of a curvature matrix",
        tuple(str(found).splitlines()),
        charts=(spectrum_chart("curvature", found.values, found.noise_floor),),
    )


@drawing.register
def kernel_spectrum_view(found: Spectrum) -> View:
    """Eigenvalues of a kernel by rank."""
    facts = (
        f"{found.rank} of {len(found.eigenvalues)} eigenvalues above rounding error, {number(found.noise_floor, 2)}",
        f"condition number {number(found.condition_number)}, of those {number(found.nonzero_condition_number)}",
    )
    chart = spectrum_chart("kernel-spectrum", found.eigenvalues, found.noise_floor)
    return View("Spectrum of a kernel", facts, charts=(chart,))


@drawing.register
def eigenpairs_view(found: Eigenpairs) -> View:
    """Eigenvalues of either sign, each with its residual as a bar."""
    values = found.values.detach().cpu().double().tolist()
    errors = found.residuals.detach().cpu().double().tolist()
    points = Curve("eigenvalues", list(range(1, len(values) + 1)), values, "points", stderr=errors)
    reading = "By rank; the bars are residuals: an eigenvalue lies within."
    chart = curves("eigenpairs", "Eigenvalues", reading, [points], x="rank", y="eigenvalue", summary=(str(found),))
    return View("Eigenvalues", (str(found),), charts=(chart,))


@drawing.register
def predicted_view(found: JacobianDensity) -> View:
    """Density of squared singular values; the masses at the ends cannot be drawn and are said."""
    line = Curve("density", found.squares.tolist(), found.density.tolist(), "plain", PALETTE[0])
    said = f"mass {number(found.zero, 3)} at zero, {number(found.top, 3)} at the edge {number(found.edge)}"
    reading, below = f"Not drawn: {said}.", "squared singular value"
    chart = curves(
        "jacobian", "Density", reading, [line], x=below, y="density", log_x=True, log_y=True, summary=(said,)
    )
    return View("Jacobian spectrum, predicted", (said,), charts=(chart,))


@drawing.register
def measured_view(found: JacobianSpectrum) -> View:
    """Squared singular values by rank, the mean over the Jacobians."""
    chart = spectrum_chart("jacobian", found.squares.mean(0), what="squared singular value")
    return View("Jacobian spectrum, measured", tuple(str(found).splitlines()), charts=(chart,))
