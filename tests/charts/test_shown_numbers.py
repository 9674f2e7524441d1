"""Numbers on their way to a reader: rows of a table, colours of a map, bytes of a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pullback.charts.chart import Table
from pullback.charts.document import thinned
from pullback.report.dynamics.charts import landscape_chart
from pullback.report.run.cosine import Matrix, _summary
from pullback.report.run.tables import _pixels, _shown
from pullback.report.theory.charts import phase_chart


@pytest.mark.parametrize(("columns", "rows"), [(2, 40), (100, 10), (1000, 8)])
def test_a_page_shows_a_thousand_cells_of_a_table(columns: int, rows: int) -> None:
    """At most 40 rows, at least 8; the caption says of how many."""
    table = Table("Numbers", tuple(map(str, range(columns))), [[k] for k in range(60)])
    caption, kept = thinned(table)
    assert (caption, len(kept)) == (f"Numbers ({rows} of 60 rows)", rows)
    assert (kept[0], kept[-1]) == ([0], [59])


def test_a_landscape_is_coloured_over_six_decades() -> None:
    """Below the highest place of the map: the minimum itself has no logarithm."""
    chart = landscape_chart([0.0, 1.0], [0.0, 1.0], [[2.0, 3.0], [12.0, 1002.0]], {"a": ([0.5], [0.5])}, [[0.0, 0.0]])
    (heat,) = (trace for trace in chart.figure["data"] if trace["type"] == "heatmap")
    assert np.array(heat["z"]) == pytest.approx(np.array([[-3.0, 0.0], [1.0, 3.0]]))


def test_depths_below_one_layer_have_the_lowest_colour() -> None:
    """Six depth scales: of 1/10 of a layer it would be a negative decade."""
    scale = [[0.1, 100 / 6, math.nan]] * 2
    chart = phase_chart([1.0, 2.0, 3.0], [0.0, 0.1], scale, [math.nan] * 2, (1.0, 0.0))
    (heat,) = (trace for trace in chart.figure["data"] if trace["type"] == "heatmap")
    assert heat["z"][0][:2] == pytest.approx([0.0, 2.0])
    assert heat["z"][0][2] is None


def test_a_picture_goes_from_black_to_white() -> None:
    """Sixteen equal steps: 255 / 15 = 17."""
    pixels = _pixels(np.linspace(-1.0, 3.0, 16).reshape(4, 4))
    assert pixels is not None
    assert pixels.ravel().tolist() == [17 * k for k in range(16)]


def test_pairs_at_right_angles_are_not_negative() -> None:
    """One of three pairs is, and a sample with itself is none."""
    cosine = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, 0.2], [-0.5, 0.2, 1.0]])
    (said,) = _summary([Matrix(3, cosine, None)])
    assert said.endswith(
        "mean cosine of two different samples −0.1, least −0.5, greatest 0.2, 33.3% of the pairs negative."
    )


def test_a_column_in_percent_holds_percentages() -> None:
    assert _shown("dead, %", {"a": 0.25}) == {"a": 25.0}
    assert _shown("rank", {"a": 0.25}) == {"a": 0.25}
