"""``pullback dynamics hessians``: the semicircle, and the index against the energy."""

from __future__ import annotations

import math

import torch

from pullback import dynamics
from pullback.cli.dynamics_pages.parts import F64, chart, page_of
from pullback.report.dynamics_charts import FOUND
from pullback.report.plots import Curve, curves
from pullback.report.theory_charts import Line
from pullback.report.theory_page import TheoryPage


def hessians_page(size: int, seeds: int, points: int) -> TheoryPage:
    """The semicircle, and the index of a spin glass against its energy."""
    values = torch.linalg.eigvalsh(dynamics.random_hessians(size, seeds)).flatten()
    edges = torch.linspace(-2.4, 2.4, 49, dtype=F64)
    middle = (edges[1:] + edges[:-1]) / 2
    heights = torch.histogram(values, edges)[0] / len(values) / (edges[1] - edges[0])
    drawn = [
        Curve(FOUND, middle.tolist(), heights.tolist(), "bars"),
        Curve("semicircle", middle.tolist(), dynamics.semicircle(middle).tolist(), "plain"),
    ]
    reading = "Eigenvalues of symmetric matrices with independent normal entries, half of them below zero."
    charts = [curves("semicircle", "Eigenvalues of random Hessians", reading, drawn, x="eigenvalue", y="density")]
    energies = torch.linspace(-1.8, 1.0, points, dtype=F64).tolist()
    shares, errors, known = [], [], []
    for place, energy in enumerate(energies):
        centre, radius = dynamics.spin_glass_spectrum(energy)
        known.append(float(dynamics.negative_share(centre, radius)))
        drawn_here = dynamics.random_hessians(size, seeds, shift=2 * centre / radius, seed=place + 1)
        share = (torch.linalg.eigvalsh(drawn_here) < 0).double().mean(1)
        shares.append(float(share.mean()))
        errors.append(float(share.std()) / math.sqrt(seeds))
    line = Line("index over dimension", energies, known, energies, shares, errors)
    reading = (
        "Share of directions that lead down at a critical point: none below a threshold, so only minima are there."
    )
    charts.append(chart(line, "index", reading, x="energy a dimension", y="share of negative eigenvalues"))
    keys = [
        ("threshold", -2 * math.sqrt(2 / 3), "energy below which critical points are minima"),
        *((f"P(minimum), {n} dimensions", dynamics.all_positive_probability(n), "around zero") for n in (2, 3, 10)),
    ]
    return page_of("Random Hessians", (f"{seeds} of {size} rows a point",), keys, "energy", [line], charts)
