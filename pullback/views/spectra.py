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
def density_view(density: Density) -> View:
    """The smoothed density with three standard errors on both sides."""
    grid, value, error = (each.detach().cpu().double() for each in (density.grid, density.density, density.stderr))
    lines = [
        Curve("density", grid.tolist(), value.tolist(), "plain", PALETTE[0]),
        Curve("three standard errors above", grid.tolist(), (value + 3 * error).tolist(), "dash"),
        Curve("and below", grid.tolist(), (value - 3 * error).clamp(min=0).tolist(), "dash", legend=False),
    ]
    reading = (
        f"Share of the {density.num_eigenvalues:,} eigenvalues per unit, smoothed over {number(density.width, 2)}."
    )
    chart = curves(
        "density", "Density of eigenvalues", reading, lines, x="eigenvalue", y="density", summary=(str(density),)
    )
    return View("Spectral density", (str(density),), charts=(chart,))


@drawing.register
def curvature_view(spectrum: CurvatureSpectrum) -> View:
    """Eigenvalues by rank above the floor, and what was considered."""
    return View(
        "Spectrum of a curvature matrix",
        tuple(str(spectrum).splitlines()),
        charts=(spectrum_chart("curvature", spectrum.values, spectrum.noise_floor),),
    )


@drawing.register
def kernel_spectrum_view(spectrum: Spectrum) -> View:
    """Eigenvalues of a kernel by rank."""
    facts = (
        f"{spectrum.rank} of {len(spectrum.eigenvalues)} eigenvalues above rounding error, "
        f"{number(spectrum.noise_floor, 2)}",
        f"condition number {number(spectrum.condition_number)}, of those {number(spectrum.nonzero_condition_number)}",
    )
    chart = spectrum_chart("kernel-spectrum", spectrum.eigenvalues, spectrum.noise_floor)
    return View("Spectrum of a kernel", facts, charts=(chart,))


@drawing.register
def eigenpairs_view(pairs: Eigenpairs) -> View:
    """Eigenvalues of either sign, each with its residual as a bar."""
    values = pairs.values.detach().cpu().double().tolist()
    errors = pairs.residuals.detach().cpu().double().tolist()
    points = Curve("eigenvalues", list(range(1, len(values) + 1)), values, "points", stderr=errors)
    reading = "By rank; the bars are residuals: an eigenvalue lies within."
    chart = curves("eigenpairs", "Eigenvalues", reading, [points], x="rank", y="eigenvalue", summary=(str(pairs),))
    return View("Eigenvalues", (str(pairs),), charts=(chart,))


@drawing.register
def predicted_view(predicted: JacobianDensity) -> View:
    """Density of squared singular values; the masses at the ends cannot be drawn and are said."""
    line = Curve("density", predicted.squares.tolist(), predicted.density.tolist(), "plain", PALETTE[0])
    said = f"mass {number(predicted.zero, 3)} at zero, {number(predicted.top, 3)} at the edge {number(predicted.edge)}"
    reading, below = f"Not drawn: {said}.", "squared singular value"
    chart = curves(
        "jacobian", "Density", reading, [line], x=below, y="density", log_x=True, log_y=True, summary=(said,)
    )
    return View("Jacobian spectrum, predicted", (said,), charts=(chart,))


@drawing.register
def measured_view(measured: JacobianSpectrum) -> View:
    """Squared singular values by rank, the mean over the Jacobians."""
    chart = spectrum_chart("jacobian", measured.squares.mean(0), what="squared singular value")
    return View("Jacobian spectrum, measured", tuple(str(measured).splitlines()), charts=(chart,))
