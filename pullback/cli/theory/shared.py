"""What the commands of ``pullback theory`` share: numbers as lists, and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from pullback._results import Estimate
    from pullback.charts.chart import Chart
    from pullback.measure import NetworkSpec, Profile
    from pullback.report.theory.charts import Line
    from pullback.theory import MeanField

_ROUNDING = 1e-24  # of squared singular values, relative to the largest
_DECADES = 8  # of the histogram


def numbers(profile: Profile) -> tuple[list[float], list[float]]:
    """A profile as lists: values and standard errors."""
    return profile.value.tolist(), profile.stderr.tolist()


def estimates(measured: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """Values and standard errors."""
    return [float(each.value) for each in measured], [float(each.stderr) for each in measured]


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


def training_lines(spec: NetworkSpec, seeds: int, seed: int, steps: int) -> tuple[Line, Line, Line]:
    """Mean loss, and mean and variance of one output, of the limit and of networks that are trained.

    Eight inputs on a circle, with a sine of the angle as targets, and one input between two of them.
    """
    import torch

    import pullback as pb
    from pullback import theory
    from pullback.modules import WideNetwork
    from pullback.report.theory.charts import Line

    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    at = torch.cat([angle, angle[:1] + math.pi / 8])  # the last is no sample
    x, y = torch.stack([at.cos(), at.sin()], 1) * math.sqrt(2), torch.sin(angle)[:, None]

    def network(width: int, number: int) -> WideNetwork:
        sizes = [width] * spec.depth
        return WideNetwork(2, sizes, spec.activation, train_output=True, seed=number, dtype=torch.float64).eval()

    limit = theory.limit_of(network(2, seed), weights={f"layers.{k}.weight": 1.0 for k in range(spec.depth)})
    inner, between, whole = limit(x[:8]), limit(x, x[:8]), limit(x)
    rate = 0.5 * pb.linear_dynamics(inner[1], y).max_lr
    times = sorted({round(steps * k / 8) for k in range(9)})
    known = pb.ensemble_dynamics(inner, y, cross=between, test=whole, lr=rate, time=times)
    mean, spread = known.mean[:, :, 0], known.stddev**2
    loss = ((mean[:, :8] - y[:, 0]) ** 2 + spread[:, :8]).mean(1) / 2
    losses, outputs = [], []
    for number in range(seed, seed + seeds):
        model, seen = network(spec.width, number), []
        optimizer = torch.optim.SGD(model.parameters(), rate)
        for step in range(steps + 1):
            found = model(x)
            if step in times:
                seen.append(found.detach()[:, 0])
            optimizer.zero_grad()
            (((found[:8] - y) ** 2).mean() / 2).backward()
            optimizer.step()
        outputs.append(torch.stack(seen))
        losses.append(((outputs[-1][:, :8] - y[:, 0]) ** 2).mean(1) / 2)
    last = torch.stack(outputs)[:, :, 8]
    rows = (
        ("loss", loss, torch.stack(losses)), ("mean output", mean[:, 8], last),
        ("variance of the output", spread[:, 8], (last - mean[:, 8]) ** 2),
    )  # fmt: skip
    first, second, third = (
        Line(name, times, expected.tolist(), times, *numbers(_over_seeds(samples))) for name, expected, samples in rows
    )
    return first, second, third


def _over_seeds(samples: Tensor) -> Profile:
    from pullback.measure import Profile

    return Profile.over_seeds(samples)


def finish(
    path: Path, title: str, spec: NetworkSpec, seeds: int, place: str, lines: Sequence[Line], charts: tuple[Chart, ...]
) -> None:
    """Print the numbers and write the page."""
    from pullback.report.theory.page import TheoryPage, theory_text, write_theory_page

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
