"""The charts of ``pullback theory``: predictions as lines, networks as points with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pullback.charts.chart import PALETTE, Cell, Chart
from pullback.charts.maps import heat_map
from pullback.charts.plots import Curve, curves
from pullback.charts.text import counted

THEORY, NETWORKS, LINE = PALETTE[0], PALETTE[1], PALETTE[3]
DEEPEST = 4.0  # decades of depth on the map


@dataclass(frozen=True)
class Line:
    """A quantity along an axis, predicted and found.

    Attributes:
        name: in titles and tables.
        at: where it is predicted.
        theory: the prediction there.
        found_at: where networks were measured, all of them in ``at``.
        found: mean over networks there.
        stderr: its standard error.
        points: what was measured, in the legend.
    """

    name: str
    at: Sequence[float]
    theory: Sequence[float]
    found_at: Sequence[float]
    found: Sequence[float]
    stderr: Sequence[float]
    points: str = "networks"

    @classmethod
    def by_layer(cls, name: str, theory: Sequence[float], measured: Sequence[float], stderr: Sequence[float]) -> Line:
        """Of layers 1 to L, both predicted and found."""
        layers = list(range(1, len(theory) + 1))
        return cls(name, layers, theory, layers, measured, stderr)

    @property
    def known(self) -> dict[float, float]:
        """Predictions by place."""
        return dict(zip(self.at, self.theory, strict=True))

    def rows(self, most: int = 8) -> list[list[Cell]]:
        """Name, place, prediction, finding and its error at up to ``most`` of the places measured, evenly chosen."""
        last, known = len(self.found_at) - 1, self.known
        kept = sorted({round(k * last / (most - 1)) for k in range(most)})
        return [[self.name, self.found_at[k], known[self.found_at[k]], self.found[k], self.stderr[k]] for k in kept]


def line_chart(
    line: Line,
    key: str,
    reading: str,
    *,
    x: str,
    y: str,
    log: str = "",
    level: float | None = None,
) -> Chart:
    """One line with its points, and a dashed line at ``level``; ``log``: the axes in powers, "y", "x" or "xy"."""
    drawn = [
        Curve("theory", line.at, line.theory, "plain", THEORY),
        Curve(line.points, line.found_at, line.found, "points", NETWORKS, line.stderr),
    ]
    if level is not None:
        drawn.append(Curve(f"{level:g}", line.at, [level] * len(line.at), "dash"))
    known, count = line.known, len(line.found)
    pairs = zip(line.found_at, line.found, line.stderr, strict=True)
    near = sum(abs(value - known[at]) <= 3 * error + 1e-9 * abs(value) for at, value, error in pairs)
    summary = f"{near} of {counted(count, 'point')} lie within three standard errors of theory."
    title = line.name[0].upper() + line.name[1:]
    return curves(key, title, reading, drawn, x=x, y=y, log_x="x" in log, log_y="y" in log, summary=(summary,))


def phase_chart(
    sigma_w: Sequence[float],
    sigma_b: Sequence[float],
    scale: Sequence[Sequence[float]],
    critical: Sequence[float],
    asked: tuple[float, float],
) -> Chart:
    """The map of how deep signals go, with the critical line and the point that was asked for.

    Args:
        sigma_w: columns, (W,).
        sigma_b: rows, (B,).
        scale: depth scale of correlations (of gradients, where lengths vanish), (B, W); nan where there is none.
        critical: sigma_w of the critical line at each row, nan where there is none.
        asked: (sigma_w, sigma_b).
    """
    decades = [[_decades(6 * xi) for xi in row] for row in scale]
    line = [(w, b) for w, b in zip(critical, sigma_b, strict=True) if sigma_w[0] <= w <= sigma_w[-1]]
    style = "plain" if len(line) > 1 else "points"  # ReLU has a critical point and no line
    drawn = [Curve("critical", [w for w, _ in line], [b for _, b in line], style, LINE)] if line else []
    drawn.append(Curve("asked for", [asked[0]], [asked[1]], "points", NETWORKS))
    reading = (
        "Colour: decades of 6 ξ_c, the number of layers over which two inputs can be told apart (Schoenholz et al. "
        "2017). Left of the line gradients vanish, right of it they explode."
    )
    if any(math.isnan(each) for row in decades for each in row):
        reading += " Where it is blank, lengths grow without bound."
    with_line = sum(w == w for w in critical)
    summary = f"At {with_line} of the {len(sigma_b)} values of σ_b there is a critical point that layers settle at."
    return heat_map(
        "phase", "How deep signals go", reading, ("σ_w", sigma_w), ("σ_b", sigma_b), ("log₁₀ 6 ξ_c", decades),
        bounds=(0.0, DEEPEST), drawn=drawn, summary=(summary,),
    )  # fmt: skip


def _decades(layers: float) -> float:
    """log10 of a depth within the map's colours; nan where lengths grow without bound and there is none."""
    return layers if math.isnan(layers) else min(DEEPEST, math.log10(max(layers, 1.0)))


def cut_charts(correlations: Line, gradients: Line, sigma_b: float) -> tuple[Chart, Chart]:
    """The cut through the diagram at one sigma_b."""
    return (
        line_chart(
            correlations, "correlation", f"Two inputs that begin with correlation 0.5, at σ_b = {sigma_b:g}: where it "
            "is 1 they can no longer be told apart.", x="σ_w", y="c",
        ),
        line_chart(
            gradients, "gradients", f"What a layer multiplies mean squared gradients by, at σ_b = {sigma_b:g}: where "
            "it is 1 they keep their size, and there correlations begin to fall below 1.",
            x="σ_w", y="factor", log="y", level=1,
        ),
    )  # fmt: skip


def depth_charts(length: Line, correlation: Line, gradients: Line) -> tuple[Chart, ...]:
    """Signals layer by layer."""
    return (
        line_chart(length, "length", "Mean square q of the pre-activations; it settles at q*.", x="layer", y="q"),
        line_chart(
            correlation, "correlation", "Correlation c of the pre-activations of two inputs; it settles at c*.",
            x="layer", y="c",
        ),
        line_chart(
            gradients, "gradients", "Mean squared gradient in a layer relative to that in the last one: where lengths "
            "have settled, a straight line with the factor χ₁ a layer.", x="layer", y="g", log="y",
        ),
    )  # fmt: skip


def training_charts(loss: Line, mean: Line, variance: Line) -> tuple[Chart, ...]:
    """A training by formula, step by step."""
    return (
        line_chart(loss, "loss", "Mean loss over networks, by formula in the limit.", x="step", y="loss", log="y"),
        line_chart(mean, "mean", "Mean over networks of the output at an input between two samples.", x="step", y="f"),
        line_chart(
            variance, "variance", "Mean squared deviation of that output from theory's mean: what the start leaves.",
            x="step", y="variance",
        ),
    )  # fmt: skip


def spectrum_charts(
    edges: Sequence[float],
    shares: Sequence[float],
    density: tuple[Sequence[float], Sequence[float]] | None,
    note: str,
    mean: Line,
    variance: Line,
) -> tuple[Chart, ...]:
    """The distribution of squared singular values and its moments.

    Args:
        edges: borders of the bars, in log10 s^2, (K + 1,).
        shares: mass of each bar per decade, (K,).
        density: places and mass per decade of theory's density, where it has one.
        note: what is at zero, or why there is no density.
        mean: of s^2 against layers.
        variance: of s^2 over the mean squared.
    """
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    drawn = [Curve("networks", centres, shares, "bars", PALETTE[5])]
    if density is not None:
        drawn.append(Curve("theory", *density, "plain", NETWORKS))
    spectrum = curves(
        "spectrum", "Squared singular values of the Jacobian", "Mass per decade: narrow is well-conditioned, and a "
        "tail to the left is directions in which gradients are lost.",
        drawn, x="log₁₀ s²", y="mass per decade", summary=(note,),
    )  # fmt: skip
    return (
        spectrum,
        line_chart(
            mean, "mean", "χ₁ to the power of the layers: gradients keep their mean size at 1.",
            x="layers", y="mean s²", log="y",
        ),
        line_chart(
            variance, "variance", "0 is dynamical isometry: all directions keep their size; every layer adds to it.",
            x="layers", y="variance / mean²",
        ),
    )  # fmt: skip


def circle_charts(lines: Sequence[Line]) -> tuple[Chart, ...]:
    """Of Euclidean metric, curvature, Gauss metric and the two lengths, in this order."""
    said = (
        ("euclidean", "g^E / N", "Squared speed of the image per unit: it grows by χ₁ a layer."),
        (
            "curvature",
            "N κ²",
            "Squared curvature times the width: in the chaotic phase it settles, a little higher in narrow networks.",
        ),
        (
            "gauss",
            "g^G",
            "Squared speed of the unit tangent, κ² g^E: an image that grows and stays as curved turns more.",
        ),
        ("length", "L^E / √N", "Length of the image: 2π times the root of g^E / N."),
        ("gauss-length", "L^G", "Length of the unit tangent's path: 2π for the circle, more for every turn."),
    )
    return tuple(
        line_chart(line, key, reading, x="layer", y=y, log="" if key == "curvature" else "y")
        for line, (key, y, reading) in zip(lines, said, strict=True)
    )
