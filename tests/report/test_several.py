"""Several runs on one page: told apart by their settings, each number beside its spread over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev

import pytest

from pullback.charts.chart import PALETTE
from pullback.report.run.compared import compared
from pullback.report.run.groups import grouped, told_apart
from pullback.report.run.line_charts import unnamed
from pullback.report.run.page import page_html
from pullback.report.run.sections import MOST_EACH, SECTIONS, charts_of
from pullback.runs import Record, Run


def a_run(name, losses, rate=0.1, steps=None, **about):
    steps = range(10, 10 * len(losses) + 1, 10) if steps is None else steps
    meta = {"optimizer": {"class": "SGD", "learning_rate": rate}, "model": {"class": "MLP", "num_params": 5}} | about
    lines = [Record(step, 1.0, "loss", {"loss": loss}) for step, loss in zip(steps, losses, strict=True)]
    lines += [Record(step, 1.0, "flow", {"gradient_norm": {"a": 1.0}}) for step in steps]
    return Run(Path(name), {"created": name, "pullback": name} | meta, tuple(lines))


SWEEP = [a_run(f"{rate}-{seed}", [2.0, rate + seed], rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1, 2)]


def shown(row):
    return [{key: cell[key] for key in ("value", "spread", "note")} for cell in row["cells"]]


def test_a_label_says_only_what_differs():
    looks = [named.look for named in grouped(SWEEP)]
    assert [look.label for look in looks] == ["learning rate 0.1"] * 3 + ["learning rate 0.5"] * 3
    assert [look.colour for look in looks] == [PALETTE[0]] * 3 + [PALETTE[1]] * 3
    assert list(told_apart(SWEEP)) == ["optimizer.learning_rate"]


def test_what_follows_from_other_settings_is_not_told():
    wide = [a_run("a", [1.0], about={"width": 4}), a_run("b", [1.0], about={"width": 8})]
    wide[1].meta["model"]["num_params"] = 99
    assert [named.look.label for named in grouped(wide)] == ["width 4", "width 8"]
    models = [a_run("a", [1.0]), a_run("b", [1.0], model={"class": "CNN", "num_params": 5})]
    assert [named.look.label for named in grouped(models)] == ["MLP", "CNN"]


def test_runs_of_one_setting_go_by_their_names():
    looks = [named.look for named in grouped([a_run("a", [1.0], seed=0), a_run("b", [1.0], seed=1)])]
    assert [look.label for look in looks] == ["a", "b"]
    assert looks[0].colour != looks[1].colour
    (alone,) = grouped([a_run("a", [1.0])])
    assert alone.look is None


def test_many_settings_have_a_colour_each():
    looks = [named.look for named in grouped([a_run(f"{k}", [1.0], rate=k + 1.0) for k in range(40)])]
    assert len({look.colour for look in looks}) == len({look.label for look in looks}) == 40


def test_lines_of_a_setting_share_colour_and_name_and_stay_apart_in_the_table():
    chart = next(
        chart for section in SECTIONS for chart in charts_of(section, grouped(SWEEP))[0] if chart.key == "loss"
    )
    drawn = [trace for trace in chart.figure["data"] if trace["x"] != [None]]
    assert [trace["name"] for trace in drawn] == ["learning rate 0.1"] * 3 + ["learning rate 0.5"] * 3
    assert [trace["showlegend"] for trace in drawn] == [True, False, False] * 2
    assert [trace["meta"]["run"] for trace in drawn] == list(range(6))
    assert len(set(chart.tables[0].header)) == 7


def test_each_number_stands_beside_its_spread_over_seeds():
    found = compared(grouped(SWEEP))
    assert found["head"] == ["Loss at step 20"]
    assert found["seeds"]
    assert not found["nearest"]
    for row, rate in zip(found["rows"], (0.1, 0.5), strict=True):
        values = [rate, rate + 1, rate + 2]
        assert shown(row) == [{"value": f"{fmean(values):.1f}", "spread": f"{stdev(values):.1f}", "note": "3 seeds"}]
    page = page_html(grouped(SWEEP))
    assert "2 settings, each number beside its spread (standard deviation) over seeds" in page
    assert "1.1 ± 1.0" in page
    assert "nearest measured step" not in page


def test_the_setting_with_the_least_loss_is_named_and_whether_seeds_explain_it():
    page = page_html(grouped(SWEEP))
    assert (
        "Learning rate 0.1 has the least loss at step 20, 1.1; next is learning rate 0.5 with 1.5, "
        "no further than the seeds spread. 2 settings"
    ) in page
    apart = [
        a_run(f"{rate}-{seed}", [2.0, rate + seed / 99], rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1)
    ]
    assert compared(grouped(apart))["lowest"].endswith("next is learning rate 0.5 with 0.5051")
    measured = [a_run(f"{rate}", [rate], rate) for rate in (0.1, 0.5)]
    held = [
        Run(run.path, run.meta, (*run.records, Record(10, 1.0, "epoch", {"test_loss": loss})))
        for run, loss in zip(measured, (3.0, 2.0), strict=True)
    ]
    assert compared(grouped(held))["lowest"].startswith("learning rate 0.5 has the least held-out loss at step 10, 2;")
    broken = [a_run(f"{rate}", [loss], rate) for rate, loss in ((0.1, math.nan), (0.5, 1.0))]
    assert compared(grouped(broken))["lowest"] == ""


def test_other_schedules_are_compared_at_the_nearest_measured_step_which_is_said():
    """The last step that both reached is 20; the second run was measured at 7 and 23."""
    runs = grouped([a_run("a", [3.0, 2.0]), a_run("b", [5.0, 4.0, 1.0], rate=0.5, steps=(7, 23, 90))])
    found = compared(runs)
    assert found["head"] == ["Loss at step 20"]
    first, second = (row["cells"][0] for row in found["rows"])
    assert (first["value"], first["note"]) == ("2", "")
    assert (second["value"], second["note"]) == ("4", "measured at step 23")
    page = page_html(runs)
    assert "compared at the nearest measured step, which stands beside the number" in page
    assert "measured at step 23" in page


def test_what_a_run_has_not_measured_is_said():
    without = Run(Path("c"), {"optimizer": {"learning_rate": 9.0}}, (Record(5, 1.0, "mine", {"x": 1.0}),))
    found = compared(grouped([a_run("a", [3.0, math.nan]), without]))
    cells = [shown(row)[0] for row in found["rows"]]
    assert cells == [
        {"value": "NaN", "spread": "", "note": ""},
        {"value": "–", "spread": "", "note": "not measured"},
    ]


@pytest.mark.parametrize("count", [MOST_EACH, MOST_EACH + 1])
def test_charts_of_one_run_each_are_left_out_of_many_which_is_said(count):
    runs = grouped([a_run(f"{k}", [2.0, 1.0], rate=k + 1.0) for k in range(count)])
    page = page_html(runs)
    assert ('id="flow-1"' in page) == (count <= MOST_EACH)
    assert ("stand on the pages of the runs themselves" in page) == (count > MOST_EACH)


def test_findings_of_each_run_stand_under_its_verdict():
    page = page_html(grouped([a_run("good", [2.0, 1.0, 0.1]), a_run("bad", [2.0, math.nan], rate=9.0)]))
    part = page[page.index('id="findings"') : page.index('id="training"')]
    assert "<summary>bad: Diverges from step 20: the loss left the finite numbers" in part
    assert part.count("Divergence") == 1


@pytest.mark.slow
def test_a_hundred_runs_stay_small():
    """Each line has fewer points the more there are; of a page of 20 MB a library of 1.5 is the least."""
    losses = [2.0 + math.sin(k) for k in range(150)]
    page = page_html(grouped([a_run(f"{k}", losses, rate=k // 5 + 1.0, seed=k % 5) for k in range(100)]))
    assert len(page.encode()) < 5_000_000


def test_many_settings_are_named_by_the_table_and_not_by_every_chart():
    """Of thirteen settings a legend names none; the dashes of training and test sets stay in it."""
    few, many = (grouped([a_run(f"{k}", [2.0, 1.0], rate=k + 1.0) for k in range(count)]) for count in (12, 13))
    shown = [chart for section in SECTIONS for chart in charts_of(section, many)[0]]
    made = [unnamed(chart, many) for chart in shown]
    for chart, before in zip(made, shown, strict=True):
        if {trace.get("meta", {}).get("run") for trace in before.figure["data"]} != {0}:
            lines = [trace for trace in chart.figure["data"] if trace["x"] != [None]]
            assert not any(trace.get("showlegend", True) for trace in lines)
            assert chart.figure["layout"]["height"] < before.figure["layout"]["height"]
            assert chart.reading.endswith("Colours are those of the settings in the table at the top.")
    (loss,) = (chart for section in SECTIONS for chart in charts_of(section, few)[0] if chart.key == "loss")
    assert unnamed(loss, few) is loss
