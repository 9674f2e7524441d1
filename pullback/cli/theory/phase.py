"""The page of ``pullback theory phase``: how deep signals go, and networks along one row of the diagram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pullback import theory
from pullback.charts.chart import Chart
from pullback.measure import NetworkSpec, signal_propagation
from pullback.report.theory.charts import Line, cut_charts, phase_chart


def phase_lines(
    spec: NetworkSpec, points: int, seeds: int, seed: int, say: Callable[[str], None]
) -> tuple[list[Line], tuple[Chart, ...]]:
    """Correlations and gradients of networks against sigma_w, with the map of the diagram above the cut through it.

    Args:
        spec: of the networks; the map is around its two sigmas.
        points: values of sigma_w at which networks are measured.
        seeds: networks drawn at each.
        seed: of the first.
        say: called with what is being done.
    """
    near = [each.sigma_w for each in theory.critical_points(spec.activation, spec.sigma_b) if each.reached]
    near.append(spec.sigma_w)
    columns, rows = np.linspace(0.4 * min(near), 1.8 * max(near), 61), np.linspace(0, max(1.0, 1.5 * spec.sigma_b), 41)
    measured = columns[np.linspace(0, len(columns) - 1, points).round().astype(int)].tolist()
    along, profiles = sorted({*columns[::2].tolist(), *measured}), []
    diagram = theory.phase_diagram(spec.activation, columns.tolist(), rows.tolist())
    nets = [theory.MeanField(spec.activation, w, spec.sigma_b) for w in along]
    known = [theory.signal_profile(net, spec.depth) for net in nets]
    for place, w in enumerate(measured):
        say(f"networks, {place + 1} of {points} values of sigma_w")
        profiles.append(signal_propagation(replace(spec, sigma_w=w), seeds=seeds, seed=seed + place * seeds))
    power = 1 / (spec.depth - 1)  # of the gradients in the first layer: the factor of one layer
    first = [(float(p.gradients.value[0]), float(p.gradients.stderr[0])) for p in profiles]
    correlations = Line(
        f"correlation after {spec.depth} layers", along, [float(p.c[-1]) for p in known],
        measured, [float(p.c.value[-1]) for p in profiles], [float(p.c.stderr[-1]) for p in profiles],
    )  # fmt: skip
    gradients = Line(
        "gradient factor of a layer", along, [float(p.gradients[0]) ** power for p in known],
        measured, [g**power for g, _ in first], [power * g ** (power - 1) * error for g, error in first],
    )  # fmt: skip
    scale = np.where(diagram.q_star == 0, np.abs(diagram.xi_grad), diagram.xi_c)  # where lengths vanish, signals do
    grid = columns.tolist(), rows.tolist(), scale.tolist(), diagram.critical.tolist()
    asked = (spec.sigma_w, spec.sigma_b)
    return [correlations, gradients], (phase_chart(*grid, asked=asked), *cut_charts(correlations, gradients, asked[1]))
