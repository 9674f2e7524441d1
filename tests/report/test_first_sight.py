"""What one sees first: the verdict, judged tiles, causes as cards, and the charts with the findings marked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from pullback.advisor import verdict
from pullback.advisor.causes import ORDER
from pullback.charts.chart import PALETTE, SEVERITY, ramp_colour
from pullback.charts.numbers import extremes
from pullback.report.run.axes import axes_of
from pullback.report.run.groups import grouped
from pullback.report.run.line_figure import MOST_POINTS, Line, Metric, Panel, draw_lines
from pullback.report.run.marks import LOSS_CHART, SHOWN_BY, flattened, link
from pullback.report.run.notes import findings_of
from pullback.report.run.page import page_html
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import NamedRun, layer_colours, name_runs, skipped_by
from pullback.report.run.tiles import key_numbers
from pullback.runs import Record, Run, RunWriter, load_run
from tests.charts_in import charts_text


def a_run(*records, meta=None):
    return Run(
        Path("r"), meta or {}, tuple(Record(step, float(step), probe, values) for step, probe, values in records)
    )


def judged(*records, meta=None):
    named = NamedRun("r", a_run(*records, meta={"least_loss": 0.0} | (meta or {})))
    return {tile.label: tile.judgement for tile in key_numbers(named)}


def shown_in(run):
    return {chart.key: chart for section in SECTIONS for chart in charts_of(section, name_runs([run]))[0]}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A run that diverges at step 33 by a rate, 3, that the curvature (2 / 7.5) does not bear; 100 steps."""
    with RunWriter(tmp_path_factory.mktemp("wrong") / "run", {"least_loss": 0.0, "model": {"layers": ["a"]}}) as writer:
        for step in range(1, 101):
            loss = 2.3 if step < 32 else 2.3 * 1.5 ** (step - 31)
            writer.course.add(step, {"loss": loss, "learning_rate": 3.0})
            if step % 10 == 0:
                writer.append(step, "loss", {"loss": loss, "constant_loss": 2.3, "form": "other"})
                limit = {"limit": 2 / 3, "learning_rate": 3.0, "optimizer": "SGD"}
                writer.append(step, "sharpness", {"hessian": 7.5} | limit)
    return load_run(writer.path)


def test_the_verdict_stands_directly_under_the_title(wrong):
    page = page_html(name_runs([wrong]))
    said = re.search(r"<h1>run</h1>\s*<p class=\"verdict critical\">(.*?)\.</p>", page)
    assert said is not None
    assert said.group(1) == verdict(wrong)
    assert said.group(1).startswith(
        "Diverges from step 33: the learning rate, 3, is beyond what the curvature bears, 0.267"
    )


def test_then_the_loss_then_the_causes(wrong):
    page = page_html(name_runs([wrong]))
    places = [page.index(part) for part in ('class="verdict', 'id="losses"', 'id="findings"', 'id="training"')]
    assert places == sorted(places)


def test_the_loss_has_every_step_and_the_findings_at_theirs(wrong):
    page = page_html(name_runs([wrong]))
    chart = shown_in(wrong)[LOSS_CHART]
    (every,) = [trace for trace in chart.figure["data"] if trace["name"] == "every step"]
    steps, losses = wrong.course("loss")
    assert every["x"] == steps.tolist()
    np.testing.assert_allclose(every["y"], losses, rtol=1e-6)
    (constant,) = [trace for trace in chart.figure["data"] if trace["name"] == "one constant answer"]
    assert (constant["x"], constant["y"]) == ([1, 100], [2.3, 2.3])
    drawn = charts_text(page)
    assert '"mark":true}' in drawn
    assert re.search(r'"x0":33,"x1":33,"y0":0,"y1":1,"line":\{"color":"#D0402B"', drawn)


def test_a_cause_is_a_card_with_what_follows_folded_under_it(wrong):
    causes = findings_of(name_runs([wrong]))
    assert causes[0]["key"] == "learning-rate-too-high"
    assert "divergence" in [each["key"] for each in causes[0]["consequences"]]
    numbers = [each["number"] for each in flattened(causes)]
    assert numbers == list(range(1, len(numbers) + 1)) == list(range(1, len(wrong.findings) + 1))
    page = page_html(name_runs([wrong]))
    assert page.index('<details class="follows">') < page.index('id="finding-2"')
    assert 'href="#sharpness">See “Sharpness of the loss' in page
    for each in flattened(causes):
        assert each["summary"]
        assert each["evidence"]
    links = re.findall(r'<p class="seen"><a href="#([\w-]+)">', page)
    assert len(links) == len(numbers)
    assert {"sharpness", "loss"} <= set(links) <= set(re.findall(r'id="([\w-]+)"', page))


def test_the_chart_of_a_finding_marks_its_steps(wrong):
    drawn = charts_text(page_html(name_runs([wrong])))
    sharp = drawn[drawn.index('"sharpness":{"data"') :]
    sharp = sharp[: sharp.index('"frames"')]
    shapes = re.findall(r'"name":"finding 1","x0":(\d+),"x1":(\d+)', sharp)
    first, last = wrong.findings[0]["steps"]
    assert shapes == [(str(first), str(first)), (str(first), str(last))]
    assert re.findall(r'"marks":\[\{"x":(\d+),"run":0,"number":1,', sharp) == [str(first)]


def test_of_several_runs_findings_are_points_on_the_run_s_line_in_its_colour(wrong):
    """The second of two runs diverges; on the line of the first nothing is marked."""
    fine = a_run(*((step, "loss", {"loss": 2.3 - step / 100}) for step in range(10, 101, 10)))
    charts = json.loads(charts_text(page_html(runs := grouped([fine, wrong]))))
    (points,) = [trace for trace in charts["loss"]["data"] if trace.get("meta", {}).get("mark")]
    colour = runs[1].look.colour
    assert set(points["meta"]["runs"]) == {1}
    assert set(points["marker"]["color"]) == {colour} != {runs[0].look.colour}
    assert points["text"][0].startswith("run: 1 Learning rate too high")
    losses = dict(zip(*(each.tolist() for each in wrong.course("loss")), strict=True))
    assert [losses[x] for x in points["x"]] == pytest.approx(points["y"], 1e-6)
    marks = charts["loss"]["layout"]["meta"]["marks"]
    assert [each["number"] for each in marks] == list(range(1, len(marks) + 1))
    assert {(each["run"], each["colour"]) for each in marks} == {(1, colour)}
    assert charts["loss"]["layout"]["shapes"] == []
    assert "Diamonds are findings, in the colour of their run" in page_html(runs)
    many = json.loads(charts_text(page_html(grouped([fine, *[wrong] * 6]))))
    assert many["loss"]["layout"]["meta"]["marks"] == []
    (points,) = [trace for trace in many["loss"]["data"] if trace.get("meta", {}).get("mark")]
    assert set(points["meta"]["runs"]) == {1, 2, 3, 4, 5, 6}


def test_every_finding_that_is_shown_elsewhere_is_one_of_the_advisor_s():
    assert set(SHOWN_BY) <= set(ORDER)
    finding = {"key": "dead-units", "place": 0, "evidence": [], "consequences": []}
    link([finding], {"loss": "Loss", "dead": "Dead units"})
    assert (finding["chart"], finding["chart_title"]) == ("dead", "Dead units")
    link([finding], {"loss": "Loss"})
    assert finding["chart"] == "loss"
    link([finding], {})
    assert finding["chart"] == ""
    of_several = {"key": "dead-units", "place": 2, "evidence": [], "consequences": []}
    link([of_several], {"loss": "Loss", "dead-1": "1", "dead-2": "2"})
    assert of_several["chart"] == "dead-2"


@pytest.mark.parametrize(
    ("evidence", "chart"),
    [("sharpness", "sharpness"), ("curvature over its limit", "sharpness"), ("|dw| / |w|", "updates")],
)
def test_a_finding_leads_to_the_chart_of_its_evidence(evidence, chart):
    finding = {"key": "learning-rate-too-high", "place": 0, "evidence": [(evidence, 2.0)], "consequences": []}
    link([finding], {"loss": "Loss", "sharpness": "Sharpness", "updates": "Updates", "learning-rate": "Rate"})
    assert finding["chart"] == chart


@pytest.mark.parametrize(
    ("last", "word"), [(0.1, "good"), (0.69, "good"), (1.0, "look"), (2.2, "bad"), (math.nan, "bad")]
)
def test_the_loss_is_judged_against_one_constant_answer(last, word):
    """Of 2.3: up to three tenths, up to nine, and beyond."""
    values = {"loss": last, "constant_loss": 2.3, "form": "other"}
    assert judged(*((step, "loss", values) for step in range(1, 21)))["Final loss"] == word


def test_without_one_answer_s_loss_nothing_is_judged():
    assert judged((1, "loss", {"loss": 1.0}))["Final loss"] == ""


@pytest.mark.parametrize(("accuracy", "word"), [(0.9, "good"), (0.8, "look"), (0.54, "bad"), (0.5, "bad")])
def test_accuracy_is_judged_against_the_most_frequent_class(accuracy, word):
    """Which half of the samples have: of the other half seven tenths are good, a tenth is the least."""
    counts = {"counts": {"0": 5, "1": 3, "2": 2}}
    assert judged((1, "targets", counts), (1, "epoch", {"test_accuracy": accuracy}))["Test accuracy"] == word
    assert judged((1, "targets", counts), (1, "test", {"accuracy": accuracy}))["Test accuracy"] == word


@pytest.mark.parametrize(
    ("sharpness", "works", "word"), [(19.0, False, "good"), (21.0, True, "look"), (21.0, False, "bad")]
)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_sharpness_is_judged_against_the_limit_of_the_optimizer(sharpness, works, word, optimizer):
    own = {"preconditioned": sharpness, "preconditioned_limit": 20.0, "hessian": 1e6, "limit": 1.0}
    values = own if optimizer == "Adam" else {"hessian": sharpness, "limit": 20.0}
    losses = [(k, "loss", {"loss": 0.5 if works and k else 2.3, "accuracy": 0.95 if works else 0.1}) for k in range(20)]
    assert judged(*losses, (40, "sharpness", values | {"optimizer": optimizer}))["Sharpness"] == word


def test_a_limit_that_is_not_known_judges_nothing():
    assert judged((40, "sharpness", {"hessian": 5.0, "limit": 2.0, "optimizer": "LBFGS"}))["Sharpness"] == ""


def test_no_line_leads_over_a_measurement_that_was_left_out():
    """Sharpness at steps 1, 3 and 4 of the measured 1, 2, 3, 4: no line from 1 to 3."""
    costs = [(step, "cost", {"seconds": 1.0}) for step in (1, 2, 3, 4)]
    run = a_run(*costs, *((step, "sharpness", {"hessian": 2.0 * step}) for step in (1, 3, 4)))
    assert skipped_by(run, "sharpness", "hessian") == (2,)
    logged = a_run(*costs, *((step, "epoch", {"train_loss": 1.0}) for step in (1, 4)))
    assert skipped_by(logged, "epoch", "train_loss") == ()  # a loop logs when it likes
    (trace,) = shown_in(run)["sharpness"].figure["data"]
    assert trace["x"] == [1, 2, 3, 4]
    assert trace["y"] == [2.0, None, 6.0, 8.0]
    assert trace["mode"] == "lines+markers"


def test_long_lines_keep_their_extremes():
    values = np.sin(np.arange(100_000) / 50.0)
    values[77_777], values[5], values[40_000] = 9.0, -9.0, np.nan
    kept = extremes(values, 2000)
    assert len(kept) <= 2000
    assert {0, 5, 40_000, 77_777, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    line = Line(0, "r", 0, Metric("p", "a", "a"), list(range(100_000)), values.tolist())
    (drawn,) = draw_lines([line], (Panel("y"),), several=False)["data"]
    assert len(drawn["x"]) <= MOST_POINTS
    assert {9.0, -9.0, None} <= set(drawn["y"])
    assert extremes(np.arange(5.0), 10).tolist() == [0, 1, 2, 3, 4]
    assert extremes(np.full(1000, np.nan), 10)[[0, -1]].tolist() == [0, 999]


@pytest.mark.parametrize("kind", ["full_run", "small_run", "nasty_run"])
def test_no_value_lies_outside_its_axis(kind, request):
    for chart in shown_in(request.getfixturevalue(kind)).values():
        layout = chart.figure["layout"]
        for trace in chart.figure["data"]:
            scale = layout.get("yaxis" + trace.get("yaxis", "y")[1:], {})
            if trace["type"] != "scatter" or "range" not in scale:
                continue
            ends = sorted(scale["range"])
            for y in trace["y"]:
                at = math.log10(y) if y is not None and scale.get("type") == "log" else y
                assert at is None or ends[0] <= at <= ends[1], (chart.key, trace["name"], y)


def test_what_lies_below_the_axis_is_said(tmp_path):
    run = a_run(*((k, "kernel", {"M1": value}) for k, value in enumerate([1.0, 1e-3, 1e-30])))
    made = shown_in(run)["moments"]
    assert made.figure["data"][0]["y"] == [1.0, 1e-3, None]
    assert made.figure["data"][0]["meta"]["all"] == [1.0, 1e-3, 1e-30]
    assert "; not drawn: 1 value below the end of the axis." in made.summary[0]


@pytest.mark.parametrize("kind", ["full_run", "small_run"])
def test_a_thing_has_one_colour_in_the_whole_page(kind, request):
    colours: dict[str, set[str]] = {}
    for chart in shown_in(request.getfixturevalue(kind)).values():
        for trace in chart.figure["data"]:
            colour = trace.get("fillcolor") or trace.get("line", {}).get("color")
            if colour and trace.get("name"):
                colours.setdefault(trace["name"], set()).add(colour)
    assert len(colours) > 15
    assert {name: found for name, found in colours.items() if len(found) > 1} == {}


def test_a_layer_s_colour_is_that_of_its_place_in_the_model():
    run = a_run(meta={"model": {"layers": ["a", "b", "c", "d"]}})
    assert layer_colours(run, ["d", "b"]) == {"d": ramp_colour(3, 4), "b": ramp_colour(1, 4)}
    assert layer_colours(run, ["x", "y"]) == {"x": ramp_colour(0, 2), "y": ramp_colour(1, 2)}


def contrast(one: str, two: str) -> float:
    """Of WCAG 2.1."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def schemes() -> list[dict[str, str]]:
    style = (Path(__file__).parents[2] / "pullback" / "charts" / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root(?::not\(\.paper\))? \{(\n.*?)\}", style, re.S)
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks)
    return [light, light | dark]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out(scheme):
    """4.5 for text and 3 for lines, on the page and on its cards."""
    colours = schemes()[scheme]
    for name in ("ink", "quiet", "link", "critical", "warning", "info", "good"):
        assert min(contrast(colours[name], colours[ground]) for ground in ("page", "card")) >= 4.5, name
    ramps = [ramp_colour(place, count) for count in (1, 2, 5, 9, 30, 100) for place in range(count)]
    for colour in (*PALETTE, *SEVERITY.values(), *ramps):
        assert contrast(colour, colours["card"]) >= 3, colour


def test_the_ramp_tells_neighbours_apart():
    assert len({ramp_colour(place, 100) for place in range(100)}) == 100


def test_steps_are_epochs_and_seconds_where_the_record_has_them():
    run = a_run((10, "epoch", {"epoch": 1}), (20, "epoch", {"epoch": 2}), (20, "loss", {"loss": 1.0}))
    found = axes_of(name_runs([run]))
    assert found["names"] == ["epoch", "time"]
    assert found["runs"] == '[{"epoch":[[0,10,20],[0.0,1.0,2.0]],"time":[[10,20],[10.0,20.0]]}]'
    bare = a_run((10, "loss", {"loss": 1.0}), (20, "loss", {"loss": 1.0}))
    assert axes_of(name_runs([bare]))["names"] == ["time"]
    assert axes_of([*name_runs([run]), *name_runs([bare])])["names"] == ["time"]  # what all have
    assert axes_of(name_runs([a_run()]))["names"] == []


def test_the_library_is_the_one_that_was_published():
    """plotly.js-cartesian-dist-min 4.1.1 of npm, byte for byte."""
    bundle = (Path(__file__).parents[2] / "pullback" / "charts" / "plotly-cartesian.min.js").read_bytes()
    assert b"plotly.js (cartesian - minified) v4.1.1" in bundle[:200]
    assert hashlib.sha256(bundle).hexdigest() == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"


def test_a_page_is_far_below_two_megabytes(full_run):
    """With every probe, 256 samples and four stored matrices of them; nothing but words where there is no chart."""
    assert len(page_html(name_runs([full_run])).encode()) <= 1_200_000
    assert len(page_html(name_runs([a_run()])).encode()) <= 60_000


def test_shares_that_are_all_nothing_lie_on_the_ground_of_their_axis():
    layers = {"dead": {"a": 0.0, "b": 0.0}}
    made = shown_in(a_run((1, "activations", layers), (2, "activations", layers)))["dead"]
    assert made.figure["layout"]["yaxis"]["range"] == [0, 1]
    assert shown_in(a_run((1, "activations", layers)))["dead"].summary[0] == "a: 0% at step 1."
