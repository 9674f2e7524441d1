"""What the pages share: lines beside what was found, numbers typed, heights of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.charts.chart import Chart
from pullback.report.dynamics.charts import FOUND
from pullback.report.theory.charts import Line, line_chart
from pullback.report.theory.page import TheoryPage, theory_text, write_theory_page

F64 = torch.float64
SHOWN = 24  # points of a line
GRID = 81
Lines = list[Line]


def chart(line: Line, key: str, reading: str, **axes: Any) -> Chart:
    """``line_chart`` of what was simulated."""
    return line_chart(replace(line, points=FOUND), key, reading, **axes)


def show(page: TheoryPage, path: Path) -> None:
    """Print the numbers and write the page."""
    typer.echo(theory_text(page))
    typer.echo(f"Page: {write_theory_page(page, path)}")


def page_of(title: str, facts: tuple[str, ...], keys: Any, place: str, lines: Lines, charts: Any) -> TheoryPage:
    """A page of ``pullback dynamics``."""
    return TheoryPage(title, facts, tuple(keys), place, lines, tuple(charts), FOUND, "dynamics")


def numbers(text: str, option: str) -> list[float]:
    """Numbers typed by commas.

    Raises:
        InputError: they are none.
    """
    try:
        typed = [float(part) for part in text.split(",")]
    except ValueError:
        typed = []
    if not typed:
        raise input_error("dynamics", f"`--{option}`: numbers by commas", repr(text), "Pass them as 100,1")
    return typed


def some(count: int, most: int = SHOWN) -> list[int]:
    """Places of a line, evenly chosen."""
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def beside(name: str, theory: Tensor, simulated: Tensor, errors: Tensor | None = None) -> Line:
    """Theory at every step, and what was found at some."""
    places = some(len(theory))
    zero = torch.zeros(len(theory)) if errors is None else errors
    return Line(
        name, list(range(len(theory))), theory.tolist(), places, [float(simulated[k]) for k in places],
        [float(zero[k]) for k in places],
    )  # fmt: skip


def heights(function: Any, bounds: Any) -> tuple[list[float], list[float], list[list[float]]]:
    """A function over the first two coordinates."""
    x, y = (torch.linspace(low, high, GRID, dtype=F64) for low, high in bounds)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return x.tolist(), y.tolist(), function(places).tolist()


def digits(count: int | None, *, pooled: bool = False, test: bool = False) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits as vectors of 64 pixels, or of 16 that are means of four, in float64; and their classes."""
    from pullback.functional import load_digits

    data = load_digits(0)
    x, y = (data.x_test, data.y_test) if test else (data.x_train, data.y_train)
    images = x[:count].double().reshape(-1, 1, 8, 8)
    return (nn.functional.avg_pool2d(images, 2) if pooled else images).flatten(1), y[:count]


def tanh_network(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Layers of tanh units as torch draws them, in float64; the random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*layers[:-1]).double().eval()
