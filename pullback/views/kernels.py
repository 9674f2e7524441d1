"""Kernels: a heat map of the samples sorted by class, and the eigenvalues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.charts.chart import DIVERGING, Chart, Figure, Table, axis, base_layout, log_axis
from pullback.charts.numbers import evenly
from pullback.charts.plots import Curve, curves, short
from pullback.charts.text import counted, number, plotly_text
from pullback.kernels import Kernel, KernelStore, SketchedKernel
from pullback.views.view import View, drawing

MOST_CELLS = 200  # along a side of a map
WHOLE = 1000  # samples up to which all eigenvalues are computed: half a second
HIDDEN = 0.99  # quantile of |K| at which the colours end: single samples with large gradients hide all others


@drawing.register
def kernel_view(kernel: Kernel, *, labels: Any = None) -> View:
    """Sorted by ``labels``, one a row, or by those the kernel has kept."""
    plan, matrix = kernel.plan, _by_sample(kernel)
    of_rows = kernel.labels if labels is None else _checked(labels, len(matrix))
    outputs = f", {plan.num_outputs} outputs ({plan.contract})" if plan.num_outputs > 1 else ""
    facts = [f"{counted(kernel.num_params, 'parameter')} in {counted(len(kernel.layers), 'layer')}{outputs}"]
    charts = [heat_map(matrix, of_rows, symmetric=kernel.symmetric)]
    if kernel.symmetric and len(matrix) <= WHOLE and bool(torch.isfinite(matrix).all()):
        values = torch.linalg.eigvalsh(matrix.double().cpu()).flip(0)
        charts.append(spectrum_chart("eigenvalues", values))
        facts.append(moments_of(values))
    elif kernel.symmetric:
        facts.append(f"Of more than {WHOLE:,} samples no eigenvalues are drawn: pb.spectrum(kernel) computes them.")
    return View(f"Kernel of {plan.samples[0]:,} × {plan.samples[1]:,} samples", tuple(facts), charts=tuple(charts))


@drawing.register
def sketch_view(kernel: SketchedKernel, *, labels: Any = None) -> View:
    """The estimate as a kernel, and how far it is known."""
    rows, columns = kernel.total.shape
    sure = float((kernel.stderr / kernel.total.abs().clamp(min=1e-300)).median())
    facts = (
        f"{len(kernel.layers) - len(kernel.exact_layers)} of {counted(len(kernel.layers), 'layer')} sketched, size "
        f"{kernel.size}, {counted(kernel.repeats, 'repeat')}",
        f"Standard errors: {number(sure, 2)} of the entry in the median.",
    )
    of_rows = None if labels is None else _checked(labels, rows)
    chart = heat_map(
        kernel.total, of_rows, symmetric=rows == columns and bool(torch.equal(kernel.total, kernel.total.T))
    )
    return View(f"Sketched kernel of {rows:,} × {columns:,} samples", facts, charts=(chart,))


@drawing.register
def store_view(store: KernelStore) -> View:
    """What a store knows without reading a tile."""
    facts = (
        f"{store.path}: tiles of {store.tile_size} × {store.tile_size}, {store.dtype}",
        f"trace {number(store.trace)}, Frobenius norm {number(store.frobenius_norm)}",
    )
    rows: list[list[Any]] = [
        [name, layer.num_params, layer.trace, layer.frobenius_norm] for name, layer in store.layers.items()
    ]
    table = Table("Layers", ("layer", "parameters", "trace", "Frobenius norm"), rows)
    return View(f"Kernel on disk, {store.shape[0]:,} × {store.shape[1]:,} samples", facts, tables=(table,))


def _by_sample(kernel: Kernel) -> Tensor:
    """The kernel with the outputs contracted, (N1, N2)."""
    total = kernel.total.detach()
    if total.dim() == 4:
        return total.diagonal(dim1=2, dim2=3).sum(-1)
    return total.sum(2) if total.dim() == 3 else total


def _checked(labels: Any, rows: int) -> Tensor:
    tensor = torch.as_tensor(labels).detach().cpu()
    if tensor.shape != (rows,):
        remedy = "Pass the class of every sample"
        raise input_error("plot", f"`labels` of shape ({rows},)", f"{tuple(tensor.shape)}", remedy)
    return tensor


def heat_map(matrix: Tensor, labels: Tensor | None, *, symmetric: bool) -> Chart:
    """Entries of a kernel as colours, samples of a class beside each other, thinned evenly where there are many."""
    rows, columns = matrix.shape
    order = torch.arange(rows) if labels is None else torch.argsort(labels, stable=True)
    across = order if symmetric else torch.arange(columns)
    down, right = (each[evenly(len(each), MOST_CELLS)] for each in (order, across))
    cells = matrix.detach().double().cpu()[down][:, right]
    sizes = cells[torch.isfinite(cells)].abs()
    end = float(sizes.quantile(HIDDEN)) if len(sizes) else 1.0
    end = end or float(sizes.max()) if len(sizes) else end
    end = end or 1.0
    by_class = ", sorted by class" if labels is not None else ""
    title = f"Inner products of gradients{by_class}"
    some = f" {len(down)} of {rows:,} samples are drawn." if len(down) < rows else ""
    reading = f"Blue: the samples pull the same way; brown: against each other. Colours end at ±{number(end, 2)}.{some}"
    names = [str(int(each)) for each in down], [str(int(each)) for each in right]
    trace: Figure = {
        "type": "heatmap",
        "z": [[short(value) if value == value else None for value in row] for row in cells.tolist()],
        "zmin": -end,
        "zmax": end,
        "colorscale": DIVERGING,
        "customdata": [[[a, b] for b in names[1]] for a in names[0]] if len(down) * len(right) <= 10_000 else None,
        "hovertemplate": "%{z:.4g}<extra></extra>",
    }
    if trace["customdata"] is None:
        del trace["customdata"]
    else:
        trace["hovertemplate"] = "samples %{customdata[0]} and %{customdata[1]}: %{z:.4g}<extra></extra>"
    layout = base_layout(420)
    up, side = _ticks(labels, down, "sample"), _ticks(labels if symmetric else None, right, "sample")
    layout["xaxis"] = axis(side[0], showgrid=False, range=[-0.5, len(right) - 0.5], **side[1])
    layout["yaxis"] = axis(up[0], showgrid=False, range=[len(down) - 0.5, -0.5], **up[1])
    table = Table("Entries", ("rows", "columns", "colours end at"), [[rows, columns, end]])
    return Chart("kernel", title, reading, (reading,), {"data": [trace], "layout": layout}, (table,))


def _ticks(labels: Tensor | None, kept: Tensor, what: str) -> tuple[str, Figure]:
    """Title and ticks of an axis: classes at the middle of their samples, else the samples' numbers."""
    if labels is None:
        at = evenly(len(kept), 5)
        return what, {"tickvals": at, "ticktext": [str(int(kept[each])) for each in at]}
    classes = labels[kept]
    found = classes.unique().tolist()
    middles = [float((classes == each).nonzero().double().mean()) for each in found]
    return "class", {"tickvals": middles, "ticktext": [plotly_text(each) for each in found]}


def spectrum_chart(key: str, values: Tensor, floor: float | None = None, what: str = "eigenvalue") -> Chart:
    """Eigenvalues by rank, on a logarithmic axis; those at or below zero cannot be drawn there."""
    numbers = values.detach().double().cpu().tolist()
    places = [float(place) for place in range(1, len(numbers) + 1)]
    drawn = [value if value > 0 else float("nan") for value in numbers]
    kept = evenly(len(numbers), 2 * MOST_CELLS)
    lines = [
        Curve(
            f"{what}s", [places[at] for at in kept], [drawn[at] for at in kept], "points" if len(kept) < 30 else "line"
        )
    ]
    if floor is not None and floor > 0 and numbers:
        lines.append(Curve("rounding begins", [1.0, places[-1]], [floor, floor], "dash"))
    below = sum(not value > 0 for value in numbers)
    left = f" {below} at or below zero are not drawn." if below else ""
    reading = f"By rank, largest first.{left}"
    chart = curves(
        key,
        f"{what.capitalize()}s",
        reading,
        lines,
        x="rank",
        y=what,
        log_y=any(v > 0 for v in numbers),
        summary=(reading,),
    )
    shown = [value for value in drawn if value > 0]
    if shown:
        chart.figure["layout"]["yaxis"] = log_axis(what, [*shown, *([floor] if floor and floor > 0 else [])])
    return chart


def moments_of(values: Tensor) -> str:
    """Trace, largest eigenvalue and effective rank in a line."""
    squares, trace = float(values.square().sum()), float(values.sum())
    rank = f", effective rank {number(trace**2 / squares, 3)}" if squares > 0 else ""
    top = f", largest eigenvalue {number(float(values[0]))}" if len(values) else ""
    return f"trace {number(trace)}{top}{rank}"
