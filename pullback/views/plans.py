"""Plans: the table, and a picture of what takes longest or most."""

from __future__ import annotations

from typing import Any

from pullback._text import count, duration
from pullback.charts.chart import PALETTE, Chart, Table
from pullback.charts.plots import Curve, curves
from pullback.charts.text import plotly_text
from pullback.influence import InfluencePlan
from pullback.kernels import KernelPlan, StorePlan
from pullback.views.view import View, drawing


@drawing.register
def plan_view(plan: KernelPlan) -> View:
    """The table, and where the time goes."""
    header = ("parameters", "rule", "form", "GFLOP", "MB held", "seconds")
    names = [", ".join(a.parameters) for a in plan.layers]
    rows: list[list[Any]] = [
        [name, a.rule, a.form, a.flops / 1e9, a.held_bytes / 2**20, a.seconds]
        for name, a in zip(names, plan.layers, strict=True)
    ]
    reading = "Estimated seconds of products for each block, in the order of the forward pass."
    chart = bar_chart(
        "Where the time goes", reading, dict(zip(names, (a.seconds for a in plan.layers), strict=True)), "seconds"
    )
    said = str(plan).splitlines()[1 + len(plan.layers) :]
    return View("Plan of a kernel", tuple(said), charts=(chart,), tables=(Table("Layers", header, rows),))


@drawing.register
def store_plan_view(plan: StorePlan) -> View:
    """What it says as text, the seconds of its parts, and its bytes."""
    times = {"start": plan.start_seconds, "tiles": plan.tile_seconds}
    if plan.capture_seconds is not None:
        times["captures"] = plan.capture_seconds
    sizes = {
        "finished store": plan.finished_bytes,
        "factors, while it lasts": plan.disk_bytes - plan.finished_bytes,
        "memory, at the peak": plan.peak_bytes,
    }
    rows: list[list[Any]] = [[name, count(size, "B")] for name, size in sizes.items()]
    rows.append(["tiles", f"{plan.num_tiles:,}, about {duration(plan.tile_seconds)}"])
    chart = bar_chart("Where the time goes", "Of the worker that has most to do.", times, "seconds")
    table = Table("Costs", ("what", "how much"), rows)
    return View("Plan of a kernel on disk", tuple(str(plan).splitlines()), charts=(chart,), tables=(table,))


@drawing.register
def influence_plan_view(plan: InfluencePlan) -> View:
    """The routes, and the operations of each."""
    header = ("route", "solves", "products", "GFLOP", "MB")
    rows: list[list[Any]] = [[r.name, r.solves, r.products, r.flops / 1e9, r.num_bytes / 1e6] for r in plan.routes]
    reading = "Operations of each way to the same answer."
    chart = bar_chart("Ways to the answer", reading, {r.name: r.flops / 1e9 for r in plan.routes}, "GFLOP")
    facts = (str(plan).splitlines()[0], f"cheapest: {plan.cheapest.name}")
    return View("Plan of influences", facts, charts=(chart,), tables=(Table("Routes", header, rows),))


def bar_chart(title: str, reading: str, heights: dict[str, float], unit: str) -> Chart:
    """A bar for each name; few names stand under the axis, many only where the pointer is."""
    names, at = [plotly_text(name, 40) for name in heights], list(range(len(heights)))
    bars = Curve(unit, at, list(heights.values()), "bars", PALETTE[0])
    chart = curves("bars", title, reading, [bars], x="", y=unit, summary=(reading,))
    shown = {"text": names, "textposition": "none", "hovertemplate": f"%{{text}}: %{{y:.3g}} {unit}<extra></extra>"}
    chart.figure["data"][0] |= shown
    few = len(names) <= 6
    ticks = {"tickvals": at, "ticktext": [plotly_text(name, 16) for name in heights]} if few else {}
    title_below = {"text": "" if few else "layer, in order"}
    chart.figure["layout"]["xaxis"] |= {"title": title_below, **ticks}
    return chart
