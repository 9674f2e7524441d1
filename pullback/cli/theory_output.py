"""What the commands of ``pullback theory`` share: where the page goes, progress, numbers as lists, and the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pullback._results import Estimate
    from pullback.measure import NetworkSpec, Profile
    from pullback.report.chart import Chart
    from pullback.report.theory_charts import Line
    from pullback.theory import MeanField

_ROUNDING = 1e-24  # of squared singular values, relative to the largest
_DECADES = 8  # of the histogram


def free_path(out: Path | None, kind: str, *, force: bool) -> Path:
    """Where the page goes; refused before anything is computed."""
    from pullback.report.document import check_free

    path = out or Path("runs") / "theory" / f"{kind}.html"
    check_free(f"theory {kind}", path, "Pass --force to replace it, or another --out", overwrite=force)
    return path


def check_counts(**counts: int) -> None:
    """Refuse counts of which there must be two."""
    from pullback._checks import input_error

    for name, count in counts.items():
        if count < 2:
            raise input_error("theory", f"`--{name}` of at least 2", str(count), "Pass a larger number")


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Say what is being computed, on a terminal; nothing in a pipe."""
    from rich.console import Console

    with Console(stderr=True).status(f"Computing {what} …") as status:
        yield lambda now: status.update(f"Computing {now} …")


def numbers(profile: Profile) -> tuple[list[float], list[float]]:
    """A profile as lists: values and standard errors."""
    return profile.value.tolist(), profile.stderr.tolist()


def estimates(found: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """Values and standard errors."""
    return [float(each.value) for each in found], [float(each.stderr) for each in found]


def distribution(
    spec: NetworkSpec, squares: list[float]
) -> tuple[list[float], list[float], tuple[list[float], list[float]] | None, str]:
    """Borders and heights of the bars, theory's density if it has one, and a sentence on it."""
    import numpy as np

    from pullback._checks import InputError
    from pullback.theory import jacobian_density

    values = np.array(squares)
    lost = values <= _ROUNDING * values.max()  # cut off by an activation of slope zero
    logs = np.log10(values[~lost])
    edges = np.linspace(max(logs.min(), logs.max() - _DECADES), logs.max() + 1e-9, 41)
    shares = np.histogram(logs, edges)[0] / (len(values) * np.diff(edges))
    below = (logs < edges[0]).sum() / len(values)
    where = f"Of the networks' values {100 * lost.mean():.1f} percent are zero and {100 * below:.1f} left of the bars"
    try:
        density = jacobian_density(spec.theory(), spec.depth, spec.weights)
    except InputError as error:
        return edges.tolist(), shares.tolist(), None, f"{where}. No line for the density: {error}"
    note = (
        f"{where}; theory has {100 * density.zero:.1f} percent there and {100 * density.top:.1f} at its largest value."
    )
    at, inside = np.log10(density.squares), density.squares > 10 ** edges[0]
    line = (at[inside].tolist(), (density.density * density.squares * math.log(10))[inside].tolist())
    return edges.tolist(), shares.tolist(), line, note


def finish(
    path: Path, title: str, spec: NetworkSpec, seeds: int, place: str, lines: Sequence[Line], charts: tuple[Chart, ...]
) -> None:
    """Print the numbers and write the page."""
    from pullback.report.theory_page import TheoryPage, theory_text, write_theory_page

    facts = (
        f"{spec.theory().phi.name}", f"σ_w = {spec.sigma_w:g}", f"σ_b = {spec.sigma_b:g}", f"{spec.weights} weights",
        f"{seeds} networks of width {spec.width} and depth {spec.depth}",
    )  # fmt: skip
    page = TheoryPage(title, facts, _keys(spec.theory()), place, lines, charts)
    typer.echo(theory_text(page))
    typer.echo(f"Page: {write_theory_page(page, path)}")


def _keys(net: MeanField) -> tuple[tuple[str, float | str, str], ...]:
    """What theory says of the network."""
    from pullback.theory import critical_points

    settled = math.isfinite(net.q_star) or net.phi.homogeneous  # else correlations have no limit
    critical = [point.sigma_w for point in critical_points(net.phi, net.sigma_b) if point.reached]
    return (
        ("phase", net.phase, "of gradients"),
        ("length q*", net.q_star, "that layers settle at"),
        ("χ₁", net.chi, "factor of mean squared gradients a layer"),
        ("correlation c*", net.c_star if settled else math.nan, "that pairs of inputs settle at"),
        ("ξ_c", net.xi_c if settled else math.nan, "layers over which correlations settle"),
        ("ξ_grad", net.xi_grad, "layers over which gradients fall by e; negative: grow"),
        ("critical σ_w", critical[0] if critical else "none", f"at σ_b = {net.sigma_b:g}"),
    )
