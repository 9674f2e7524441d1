"""Each chart on its own: what it draws, what it says, and what it does with values that cannot be drawn."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from pullback.charts import chart
from pullback.charts.numbers import evenly
from pullback.report.run import cosine, courses, line_figure
from pullback.report.run import depth as layers
from pullback.report.run import single_numbers as curves
from pullback.report.run.line_charts import line_chart
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import name_runs, read_series
from pullback.runs import Run, RunWriter, load_run

KEYS = (
    *("loss", "accuracy", "sharpness", "gradients", "alignment", "cosine"),
    *("spectrum", "moments", "conditioning", "depth", "flow", "share"),
)


def charts(*runs: Run):
    return {each.key: each for section in SECTIONS for each in charts_of(section, name_runs(runs))[0]}


def make_run(path: Path, probe: str, values: list[dict], meta: dict | None = None) -> Run:
    with RunWriter(path, meta or {}) as writer:
        for place, each in enumerate(values):
            writer.append(10 * place, probe, each)
    return load_run(path)


def test_a_full_run_has_every_chart(full_run):
    assert tuple(charts(full_run)) == KEYS


@pytest.mark.parametrize("kind", ["full_run", "nasty_run"])
def test_figures_are_valid_plotly(kind, request):
    for each in charts(request.getfixturevalue(kind)).values():
        go.Figure(each.figure)  # refuses attributes and values that Plotly does not know
        assert each.title
        assert each.reading.endswith((".", "?"))
        assert each.summary
        assert each.tables[0].rows
        assert all(len(row) == len(each.tables[0].header) for row in each.tables[0].rows)


def test_an_empty_run_has_none_and_says_so_for_each(empty_run):
    assert charts(empty_run) == {}
    absent = [sentence for section in SECTIONS for sentence in charts_of(section, name_runs([empty_run]))[1]]
    assert len(absent) == len(KEYS)
    assert "Sharpness was not measured (probe “sharpness”)." in absent


def test_a_line_holds_the_values_and_the_summary_names_them(tmp_path):
    run = make_run(tmp_path / "r", "loss", [{"loss": value} for value in (2.0, 3.5, 0.25, 0.5)])
    made = courses.loss_chart(name_runs([run]))
    assert made.figure["data"][0]["x"] == [0, 10, 20, 30]
    assert made.figure["data"][0]["y"] == [2.0, 3.5, 0.25, 0.5]
    said = "measured samples: 2 at step 0, 0.5 at step 30; least 0.25 at step 20; greatest 3.5 at step 10."
    assert made.summary == (said,)


def test_the_tangent_kernel_has_a_chart_where_a_run_measured_it(tmp_path):
    """S4-30: what moved in one panel, the condition number in another."""
    values = [{"drift": d, "distance": 2 * d, "condition": 10 + d, "delta_k": d} for d in (0.0, 0.1, 0.3)]
    made = charts(make_run(tmp_path / "r", "tangent", values))["tangent"]
    lines = {trace["name"]: trace["y"] for trace in made.figure["data"] if trace.get("y")}
    assert lines["kernel, |K - K₀| / |K₀|"] == [0.0, 0.1, 0.3]
    assert lines["weights, |w - w₀|"] == [0.0, 0.2, 0.6]
    assert lines["condition number of K"] == [10.0, 10.1, 10.3]
    assert {trace.get("yaxis", "y") for trace in made.figure["data"]} == {"y", "y2"}
    assert not any("ball" in said for said in made.summary)


@pytest.mark.parametrize(("distance", "said"), [(5.9, "inside"), (6.1, "outside")])
def test_distances_are_told_against_the_ball(tmp_path, distance, said):
    """S4-10: (w - 3)^2 / 2 from 0 has beta = mu = 1, L0 = 4.5 and R = 6; of other numbers the largest and the least."""
    steps = [
        {"drift": 0.0, "distance": d, "loss": loss, "pl": pl} for d, loss, pl in ((0, 4.5, 1.0), (distance, 2.0, 3.0))
    ]
    with RunWriter(tmp_path / "r", {}) as writer:
        for place, each in enumerate(steps):
            writer.append(10 * place, "tangent", each)
            writer.append(10 * place, "sharpness", {"hessian": 1.0 - 0.5 * place})
    made = charts(load_run(tmp_path / "r"))["tangent"]
    (line,) = [text for text in made.summary if "ball" in text]
    assert f"{said} the ball of radius R = 2 √(2 β L₀) / μ = 6," in line
    assert f"moved by {distance:.3g} at most" in line
    assert {trace["name"]: trace["y"] for trace in made.figure["data"] if trace.get("y")}["|dL/dw|² / 2L"] == [1.0, 3.0]


def test_values_that_are_no_numbers_are_gaps_and_are_counted(tmp_path):
    run = make_run(tmp_path / "r", "loss", [{"loss": value} for value in (2.0, math.nan, math.inf, 1.0)])
    made = courses.loss_chart(name_runs([run]))
    assert made.figure["data"][0]["y"] == [2.0, None, None, 1.0]
    assert "; not drawn: 2 values NaN or infinite, the first at step 10." in made.summary[0]


def test_zeros_on_a_logarithmic_axis_are_gaps_and_are_counted(tmp_path):
    run = make_run(tmp_path / "r", "kernel", [{"M1": value} for value in (1.0, 0.0, 1e-3)])
    made = line_chart(curves.MOMENTS, name_runs([run]))
    assert made.figure["layout"]["yaxis"]["type"] == "log"
    assert made.figure["data"][0]["y"] == [1.0, None, 1e-3]
    assert "; not drawn: 1 value at or below zero." in made.summary[0]


def test_a_step_measured_twice_counts_once(tmp_path):
    with RunWriter(tmp_path / "r", {}) as writer:
        for value in (1.0, 2.0):
            writer.append(7, "loss", {"loss": value})
    assert read_series(load_run(tmp_path / "r"), "loss", "loss") == ([7], [2.0])


def test_several_runs_differ_by_colour_and_metrics_by_dash(full_run, small_run):
    drawn = charts(full_run, small_run)["loss"].figure["data"]
    looks = {(t["name"], t["line"]["color"], t["line"]["dash"]) for t in drawn if t["x"] != [None]}
    assert looks == {
        (name, colour, dash)
        for name, colour in (("full", chart.PALETTE[0]), ("small", chart.PALETTE[1]))
        for dash in line_figure.DASHES[:2]
    }
    entries = [trace["name"] for trace in drawn if trace["showlegend"]]
    assert entries == ["full", "small", "measured samples", "test set"]


def test_charts_of_one_run_each_name_it(full_run, small_run):
    made = charts(full_run, small_run)
    assert made["cosine-1"].title.endswith(": full")
    assert made["flow-2"].title.endswith(": small")


def test_equal_folder_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name / "run", "loss", [{"loss": 1.0}]) for name in ("a", "b")]
    assert [named.name for named in name_runs(runs)] == ["a/run", "b/run"]
    assert [named.name for named in name_runs([runs[0], runs[0]])] == ["a/run (1)", "a/run (2)"]


@pytest.mark.parametrize(
    ("name", "said"), [("SGD", "Momentum m makes that limit 2 (1 + m)"), ("AdamW", "Here AdamW made the steps")]
)
def test_sharpness_says_for_which_optimizer_the_limit_holds(tmp_path, name, said):
    run = make_run(tmp_path / "r", "sharpness", [{"hessian": 3.0, "limit": 20.0, "optimizer": name}])
    assert said in curves.sharpness_chart(name_runs([run])).reading


def test_noise_scale_beside_the_batch_size(tmp_path):
    run = make_run(tmp_path / "r", "noise", [{"noise_scale": 40.0, "batch_size": 32}, {"batch_size": 32}])
    made = charts(run)
    assert list(made) == ["noise"]
    assert {trace["name"]: trace["y"] for trace in made["noise"].figure["data"]} == {
        "noise scale": [40.0],
        "batch size": [32.0, 32.0],
    }


def test_a_line_for_each_layer(tmp_path):
    layers = [f"fc{place}" for place in range(12)]
    values = [
        {"effective_rank": dict.fromkeys(layers, 3.0 + step), "dead": dict.fromkeys(layers[:2], 0.25)}
        for step in range(3)
    ]
    made = charts(make_run(tmp_path / "r", "activations", values))
    assert list(made) == ["activations", "dead"]
    drawn = made["activations"].figure["data"]
    places = (0, 2, 3, 5, 6, 8, 9, 11)  # k 11 / 7, rounded
    assert [trace["name"] for trace in drawn] == [layers[place] for place in places]
    assert drawn[0]["y"] == [3.0, 4.0, 5.0]
    assert made["activations"].reading.endswith("8 of 12 layers are drawn.")
    assert made["activations"].tables[0].header == ("Step", *layers)
    go.Figure(made["dead"].figure)


def test_tokens_and_rows_of_attention_by_layer(tmp_path):
    values = [{"relative_residual": {"a": 0.8, "b": 0.1}, "entropy": {"a": 0.9, "b": 0.2}}] * 2
    made = charts(make_run(tmp_path / "r", "attention", values))
    assert list(made) == ["tokens", "attention"]
    assert [trace["y"] for trace in made["tokens"].figure["data"]] == [[0.8, 0.8], [0.1, 0.1]]
    assert [trace["name"] for trace in made["attention"].figure["data"]] == ["a", "b"]


def test_effective_rates_by_layer(tmp_path):
    made = charts(
        make_run(tmp_path / "r", "effective_lr", [{"effective": {"conv": 0.5}}, {"effective": {"conv": 0.25}}])
    )
    assert list(made) == ["effective-rate"]
    assert made["effective-rate"].figure["data"][0]["y"] == [0.5, 0.25]


def test_the_map_of_norms_is_drawn_in_powers_of_ten(tmp_path):
    """As its colour bar counts: 0.01, 1 and 1000 lie at -2, 0 and 3."""
    norms = [{"a": 0.01, "b": 1.0}, {"a": 1000.0, "b": 0.0}]
    made = charts(make_run(tmp_path / "r", "flow", [{"gradient_norm": each} for each in norms]))["flow"]
    (heat,) = made.figure["data"]
    assert heat["z"] == [[-2.0, 3.0], [0.0, None]]
    places = dict(zip(heat["colorbar"]["ticktext"], heat["colorbar"]["tickvals"], strict=True))
    assert all(place == pytest.approx(round(place)) for place in places.values())
    assert {-2, 0, 2} <= {round(place) for place in places.values()}


def test_the_depth_chart_says_which_layer_is_first(tmp_path):
    norms = [{"a": 0.25, "b": 8.0, "c": 2.0}, {"a": 0.5, "b": 0.125, "c": 4.0}]
    made = charts(make_run(tmp_path / "r", "flow", [{"gradient_norm": each} for each in norms]))["depth"]
    assert made.summary == (
        "Step 0: 0.25 in the first layer, 2 in the last; greatest 8 in b.",
        "Step 10: 0.5 in the first layer, 4 in the last; least 0.125 in b.",
    )


def test_the_most_opposed_pairs_are_the_last_ones(tmp_path):
    pairs = [[[1, 2, -0.5]], [[3, 4, -0.9], [5, 6, -0.25]], []]
    values = [{"mean_cosine": 0.1, "conflict_fraction": 0.2, "worst_pairs": each} for each in pairs]
    made = charts(make_run(tmp_path / "r", "alignment", values))["alignment"]
    assert made.tables[1].caption == "Most opposed pairs of samples at step 10"
    assert made.tables[1].rows == [[3, 4, -0.9], [5, 6, -0.25]]


def test_adam_s_own_curvature_has_its_own_panel(tmp_path):
    values = [
        {"hessian": 3.0, "limit": 20.0, "preconditioned": 90.0, "preconditioned_limit": 380.0, "optimizer": "Adam"}
    ]
    made = charts(make_run(tmp_path / "r", "sharpness", values))["sharpness"]
    assert {trace["name"]: trace["yaxis"] for trace in made.figure["data"]} == {
        "Hessian": "y",
        "limit": "y",
        "preconditioned Hessian": "y2",
        "its limit": "y2",
    }


def test_the_spectrum_thins_with_rank_and_stops_at_twelve(tmp_path):
    values = [{"eigenvalues": [1 / (rank + 1) for rank in range(30)]}] * 2
    made = curves.spectrum_chart(name_runs([make_run(tmp_path / "r", "kernel", values)]))
    widths = [trace["line"]["width"] for trace in made.figure["data"]]
    assert len(widths) == curves.MOST_EIGENVALUES
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 2


def test_worst_pairs_are_the_second_table_of_alignment(full_run):
    table = charts(full_run)["alignment"].tables[1]
    assert table.rows[0] == [3, 200, -0.61]


def test_worst_pairs_are_those_of_the_last_step_that_has_any(tmp_path):
    pairs = ([[1, 2, -0.9]], [[3, 4, -0.8], [5, 6]], [])
    run = make_run(tmp_path / "r", "alignment", [{"mean_cosine": 0.1, "worst_pairs": each} for each in pairs])
    table = curves.worst_pairs(name_runs([run])[0], several=False)
    assert table.caption == "Most opposed pairs of samples at step 10"
    assert table.rows == [[3, 4, -0.8]]  # what is no triple is left out


def test_the_heat_map_has_the_decimal_logarithm_of_each_norm(tmp_path):
    norms = [{"a": 0.01, "b": 5.0}, {"a": 1000.0, "b": 0.0}]
    made = charts(make_run(tmp_path / "r", "flow", [{"gradient_norm": each} for each in norms]))["flow"]
    (heat,) = made.figure["data"]
    assert heat["z"] == [[-2.0, 3.0], [0.699, None]]
    assert heat["text"][0] == ["a: 0.01", "a: 1,000"]
    places, words = heat["colorbar"]["tickvals"], heat["colorbar"]["ticktext"]
    assert [10**place for place in places] == pytest.approx([float(word.replace(",", "")) for word in words])
    assert (
        made.summary[0]
        == "2 layers at 2 steps, from 0.01 to 1,000. Left blank: 1 value at or below zero, NaN or infinite."
    )


def test_what_is_said_of_the_depth(tmp_path):
    """First and last layer, and extremes only where they lie between."""
    norms = [{"a": 1.0, "b": 9.0, "c": 0.5, "d": 2.0}, {"a": 4.0, "b": 3.0, "c": 2.5, "d": 2.0}]
    made = charts(make_run(tmp_path / "r", "flow", [{"gradient_norm": each} for each in norms]))["depth"]
    assert made.summary == (
        "Step 0: 1 in the first layer, 2 in the last; least 0.5 in c; greatest 9 in b.",
        "Step 10: 4 in the first layer, 2 in the last.",
    )


def test_layers_keep_their_order_and_are_drawn_at_three_steps(full_run):
    made = charts(full_run)["depth"]
    assert made.figure["layout"]["yaxis"]["ticktext"][0] == "conv1.weight"
    assert made.tables[0].header[1:] == tuple(full_run.meta["model"]["layers"])
    assert len(made.figure["data"]) == 3
    assert "Verdict at the last step: vanishing" in made.summary[-1]


def test_many_layers_are_added_up_and_nothing_is_lost(tmp_path):
    share = {f"layer{place}": 1 / 40 for place in range(40)}
    made = layers.share_chart(name_runs([make_run(tmp_path / "r", "flow", [{"trace_share": share}] * 3)])[0])
    drawn = made.figure["data"]
    assert len(drawn) == layers.MOST_BANDS
    assert sum(trace["y"][0] for trace in drawn) == pytest.approx(1)
    assert len(made.tables[0].header) == 41


def decode(z: dict) -> np.ndarray:
    rows, columns = map(int, z["shape"].split(","))
    return np.frombuffer(base64.b64decode(z["bdata"]), dtype=np.int8).reshape(rows, columns)


def test_the_cosine_map_holds_hundredths_and_its_last_step_first(full_run):
    made = charts(full_run)["cosine"]
    stored = full_run.array("alignment", 590, "cosine")
    assert [trace["visible"] for trace in made.figure["data"]] == [False, False, True]
    means = stored.reshape(128, 2, 128, 2).mean((1, 3))
    np.testing.assert_allclose(decode(made.figure["data"][-1]["z"]) / 100, means, atol=0.00501)
    assert [frame.label for frame in made.frames] == [
        "step 0",
        "step 390",
        "step 590",
    ]  # of four, as many as a page has room for
    assert len(made.figure["layout"]["shapes"]) == 2 * 9  # two lines between each two of ten classes
    assert made.figure["layout"]["xaxis"]["ticktext"] == [str(label) for label in range(10)]


def test_large_matrices_are_averaged_in_blocks(tmp_path):
    half = np.where(np.arange(600) < 300, 1.0, -1.0)
    with RunWriter(tmp_path / "r", {}) as writer:
        writer.write_array(0, "alignment", "cosine", np.outer(half, half).astype(np.float32))
    made = cosine.cosine_chart(name_runs([load_run(tmp_path / "r")])[0])
    drawn = decode(made.figure["data"][0]["z"])
    assert drawn.shape == (128, 128)
    assert (drawn[0, 0], drawn[0, -1], drawn[-1, -1]) == (100, -100, 100)
    assert "mean over about 5 by 5 samples" in made.reading
    assert made.frames == ()


def test_a_matrix_that_is_none_is_left_out(tmp_path):
    with RunWriter(tmp_path / "r", {}) as writer:
        writer.write_array(0, "alignment", "cosine", np.zeros((3, 4), dtype=np.float32))
    assert cosine.cosine_chart(name_runs([load_run(tmp_path / "r")])[0]) is None


def test_gaps_in_a_matrix_stay_gaps(nasty_run):
    made = cosine.cosine_chart(name_runs([nasty_run])[0])
    assert made.figure["data"][0]["z"] == [[None] * 3] * 3
    assert made.summary == ("Step 2: no pair has a finite cosine.",)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1e-9, 1.0], ["10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]),
        ([0.3, 4.0], ["0.5", "1", "2"]),
        ([1.1, 1.9], ["1.5"]),
        ([20.0, 90000.0], ["100", "1,000", "10,000", "100,000"]),
    ],
)
def test_logarithmic_axes_have_readable_ticks(values, ticks):
    made = chart.log_axis("", values)
    low, high = made["range"]
    marks = zip(made["tickvals"], made["ticktext"], strict=True)
    assert [text for value, text in marks if low <= math.log10(value) <= high] == ticks


def test_logarithmic_axes_cope_with_what_has_no_logarithm():
    assert chart.log_axis("", [0.0, -1.0, math.nan]).get("type") is None
    low, high = chart.log_axis("", [1e-300, 1.0, 0.0, math.inf])["range"]
    assert -13 < low < high < 1


def test_logarithmic_axes_follow_what_falls_far_by_itself():
    """A mean square of eigenvalues over a training, sixteen decades; one wild value far above all others."""
    falling = [10.0**-k for k in range(17)]
    low, high = chart.log_axis("", falling)["range"]
    assert low < -16 < 0 < high
    low, high = chart.log_axis("", [1e12, *[1e-6, 1e-7, 1e-8] * 3])["range"]
    assert low < -8 < 12 < high


def test_even_selections_keep_the_ends():
    assert evenly(5, 60) == [0, 1, 2, 3, 4]
    assert evenly(1000, 3) == [0, 500, 999]
    assert len(evenly(100_000, 2000)) == 2000


def contrast(one: str, two: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#171b20"])
def test_lines_stand_out_on_light_and_on_dark(background):
    assert all(contrast(colour, background) >= 3 for colour in chart.PALETTE)
