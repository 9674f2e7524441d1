"""The heat map of cosines between the gradients of samples, with a slider over the stored steps."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pullback.charts.chart import (
    DIVERGING,
    Cell,
    Chart,
    Figure,
    Frame,
    Table,
    axis,
    base_layout,
    below_colour_bar,
    colour_bar,
)
from pullback.charts.numbers import drawable, evenly
from pullback.charts.text import number, percent
from pullback.report.run.series import NamedRun

MOST_CELLS = 128
MOST_FRAMES = 12
MOST_OF_ALL = 50_000  # cells of all frames together, a byte and a third each on the page
MOST_CLASSES = 20


@dataclass(frozen=True)
class Matrix:
    """A stored cosine matrix with what was stored beside it.

    Attributes:
        cosine: (N, N), rows and columns sorted by class.
        labels: (N,) class of each sample, or None if it is unknown.
    """

    step: int
    cosine: np.ndarray
    labels: np.ndarray | None


def cosine_chart(named: NamedRun) -> Chart | None:
    """The heat map, the last stored step first; None if no matrix was stored."""
    steps = named.run.array_steps("alignment", "cosine")
    read = (_read(named, steps[place]) for place in evenly(len(steps), MOST_FRAMES))
    stored = [each for each in read if each is not None]
    cells = max((min(len(each.cosine), MOST_CELLS) ** 2 for each in stored), default=1)
    stored = [stored[place] for place in evenly(len(stored), max(2, MOST_OF_ALL // cells))]
    if not stored:
        return None
    last = stored[-1]
    data = [_heat(each) | {"visible": each is last} for each in stored]
    layout = below_colour_bar(base_layout(480)) | _axes(last)
    frames = tuple(Frame(f"step {each.step:,}", [other is each for other in stored], _axes(each)) for each in stored)
    block = -(-len(last.cosine) // MOST_CELLS)
    coarse = f" Each cell is the mean over about {block} by {block} samples." if block > 1 else ""
    return Chart(
        "cosine",
        "Cosine between the gradients of every two samples",
        "Blue: the two samples pull the same way, orange: against each other. Samples are sorted by class: "
        "blocks on "
        f"the diagonal are pairs within a class.{coarse}",
        _summary(stored),
        {"data": data, "layout": layout},
        (_class_table(last),),
        frames if len(frames) > 1 else (),
        partial(_full_table, last),
    )


def _read(named: NamedRun, step: int) -> Matrix | None:
    """One stored matrix, or None if it is damaged."""
    cosine, labels = named.run.array("alignment", step, "cosine"), None
    if cosine is None or cosine.ndim != 2 or cosine.shape[0] != cosine.shape[1] or not cosine.size:
        return None
    if cosine.dtype.kind not in "fiu":
        return None
    if step in named.run.array_steps("alignment", "labels"):
        labels = named.run.array("alignment", step, "labels")
    fits = labels is not None and labels.shape == cosine.shape[:1] and labels.dtype.kind in "iufb"
    return Matrix(step, cosine.astype(float), labels if fits else None)


def _edges(count: int) -> np.ndarray:
    """Where the cells of the drawn matrix begin; cells are single samples up to a size, blocks beyond."""
    return np.linspace(0, count, min(count, MOST_CELLS) + 1).round().astype(int)[:-1]


def _heat(matrix: Matrix) -> dict[str, Any]:
    """The trace of one matrix. Whole hundredths take a byte each; only gaps need the longer form."""
    starts = _edges(len(matrix.cosine))
    sums = np.add.reduceat(np.add.reduceat(matrix.cosine, starts, axis=0), starts, axis=1)
    sizes = np.diff(np.append(starts, len(matrix.cosine)))
    scaled = 100 * sums / np.outer(sizes, sizes)
    if np.isfinite(scaled).all():
        small = scaled.round().clip(-100, 100).astype(np.int8)
        z: Any = {
            "dtype": "i1",
            "bdata": base64.b64encode(small.tobytes()).decode(),
            "shape": f"{len(small)},{len(small)}",
        }
    else:
        z = [drawable([round(each) if np.isfinite(each) else each for each in row]) for row in scaled.tolist()]
    bar = colour_bar((-100, -50, 0, 50, 100), ("−1", "−0.5", "0", "0.5", "1"))
    return {
        "type": "heatmap",
        "x": starts.tolist(),
        "y": starts.tolist(),
        "z": z,
        "zmin": -100,
        "zmax": 100,
        "colorscale": DIVERGING,
        "colorbar": bar,
        "hovertemplate": "samples %{y} and %{x}<br>cosine %{z} / 100<extra></extra>",
    }


def _runs_of(labels: np.ndarray) -> list[tuple[int, int, str]]:
    """Stretches of one class: (first, end, name)."""
    starts = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist()]
    return [(a, b, f"{labels[a]:g}") for a, b in zip(starts, [*starts[1:], len(labels)], strict=True)]


def _axes(matrix: Matrix) -> Figure:
    """Axes and class boundaries of one matrix; named by class if there are few enough of them."""
    count = len(matrix.cosine)
    classes = _runs_of(matrix.labels) if matrix.labels is not None else []
    named = 1 < len(classes) <= MOST_CLASSES
    ticks = {"tickvals": [(a + b - 1) / 2 for a, b, _ in classes], "ticktext": [name for *_, name in classes]}
    looks = {"showgrid": False, "ticks": "", "constrain": "domain", **(ticks if named else {})}
    cell_size = count / min(count, MOST_CELLS)
    reach = [-cell_size / 2, count - cell_size / 2]
    title = "class of the sample" if named else "sample"
    looks_of_line = {"type": "line", "line": {"color": "rgba(20,24,28,0.55)", "width": 0.7}}
    shapes = []
    for start, *_ in classes[1:] if named else []:
        at = start - cell_size / 2
        shapes.append(looks_of_line | {"x0": at, "x1": at, "y0": reach[0], "y1": reach[1]})
        shapes.append(looks_of_line | {"x0": reach[0], "x1": reach[1], "y0": at, "y1": at})
    return {
        "shapes": shapes,
        "xaxis": axis(title, **looks, range=reach),
        "yaxis": axis(title, **looks, range=reach[::-1], scaleanchor="x", constraintoward="top"),
    }


def _summary(stored: list[Matrix]) -> tuple[str, ...]:
    """First and last matrix in a sentence each; pairs of a sample with itself do not count."""
    parts = []
    for each in (stored[0], stored[-1]) if len(stored) > 1 else stored:
        pairs = each.cosine[~np.eye(len(each.cosine), dtype=bool)]
        pairs = pairs[np.isfinite(pairs)]
        if not pairs.size:
            parts.append(f"Step {each.step:,}: no pair has a finite cosine.")
            continue
        parts.append(
            f"Step {each.step:,}, {len(each.cosine)} samples: mean cosine of two different samples "
            f"{number(float(pairs.mean()), 3)}, least {number(float(pairs.min()), 3)}, greatest "
            f"{number(float(pairs.max()), 3)}, {percent(float((pairs < 0).mean()))} of the pairs negative."
        )
    return tuple(parts)


def _class_table(matrix: Matrix) -> Table:
    """Mean cosine within and between classes; without labels, between stretches of samples."""
    count = len(matrix.cosine)
    stretches = _runs_of(matrix.labels) if matrix.labels is not None else []
    if not 1 < len(stretches) <= MOST_CLASSES:
        edges = np.linspace(0, count, min(count, 10) + 1).round().astype(int).tolist()
        stretches = [(a, b, f"samples {a} to {b - 1}") for a, b in itertools.pairwise(edges)]
    others = np.where(np.eye(count, dtype=bool), np.nan, matrix.cosine)
    rows: list[list[Cell]] = []
    for a, b, name in stretches:
        blocks = [others[a:b, c:d] for c, d, _ in stretches]
        rows.append([name, *(_finite_mean(block) for block in blocks)])
    caption = f"Mean cosine between classes at step {matrix.step:,}, without pairs of a sample with itself"
    return Table(caption, ("Class", *(name for *_, name in stretches)), rows)


def _finite_mean(block: np.ndarray) -> float | None:
    found = block[np.isfinite(block)]
    return round(float(found.mean()), 3) if found.size else None


def _full_table(matrix: Matrix) -> Table:
    """The whole matrix, for the data file."""
    count = len(matrix.cosine)
    labels = matrix.labels.tolist() if matrix.labels is not None else [None] * count
    rows = matrix.cosine.round(4).tolist()
    cells: list[list[Cell]] = [[place, labels[place], *rows[place]] for place in range(count)]
    return Table(f"Cosines at step {matrix.step}", ("Sample", "Class", *map(str, range(count))), cells)
