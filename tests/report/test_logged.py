"""What a user logs gets a chart."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from pullback.monitor import PROBES, Monitor
from pullback.report.run.logged import DRAWN, MOST_CHARTS, logged_charts
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import name_runs
from pullback.runs import Record, Run, load_run


def a_run(*records: tuple[int, str, dict[str, object]]) -> Run:
    return Run(Path("run"), {}, tuple(Record(step, 0.0, probe, values) for step, probe, values in records))


def test_every_probe_is_known_and_all_else_is_the_users() -> None:
    assert set(PROBES) <= DRAWN
    own = [(k, "validation", {"bleu": 0.1 * k, "words": "no", "flag": True}) for k in (10, 20)]
    run = a_run((10, "loss", {"loss": 1.0}), *own, (20, "mine", {"ratio": 3}))
    charts = logged_charts(name_runs([run]))
    assert [chart.title for chart in charts] == ["validation.bleu", "mine.ratio"]
    assert "1 at step 10, 2 at step 20" in charts[0].summary[0]
    assert len({chart.key for chart in charts}) == 2
    assert logged_charts(name_runs([a_run((1, "loss", {"loss": 1.0}))])) == []


def test_no_more_charts_than_a_page_holds() -> None:
    """The first ones, in the order in which they appear."""
    run = a_run(*((step, "mine", {f"number {k}": float(k) for k in range(30)}) for step in (1, 2)))
    charts = logged_charts(name_runs([run]))
    assert [chart.title for chart in charts] == [f"mine.number {k}" for k in range(24)]
    assert MOST_CHARTS == 24


def test_a_monitor_logs_nothing_in_the_users_name(tmp_path: Path) -> None:
    """Whatever it records, also of a loss that leaps and leaves the finite numbers, and of targets that broadcast."""
    for name, rate, loss_fn in (("apart", 1e30, nn.CrossEntropyLoss()), ("broadcast", 0.1, nn.MSELoss())):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1 if name == "broadcast" else 3))
        optimizer = torch.optim.SGD(model.parameters(), rate)
        x, y = torch.randn(16, 4), torch.arange(16) % 3 if name == "apart" else torch.randn(16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Monitor(model, loss_fn, tmp_path / name, optimizer=optimizer, probes="full") as monitor:
                for _ in range(6):
                    optimizer.zero_grad()
                    loss = loss_fn(model(x), y)
                    loss.backward()
                    optimizer.step()
                    monitor.step(x, y, loss=loss)
        run = load_run(tmp_path / name)
        assert next(run.of({"apart": "not_finite", "broadcast": "targets_broadcast"}[name]), None) is not None
        assert logged_charts(name_runs([run])) == []


def test_held_out_numbers_stand_beside_those_of_training() -> None:
    run = a_run((10, "loss", {"loss": 1.0, "accuracy": 0.5}), (10, "test", {"loss": 2.0, "accuracy": 0.25, "f1": 0.1}))
    charts = {chart.key: chart for section in SECTIONS for chart in charts_of(section, name_runs([run]))[0]}
    assert any("held out: 2 " in line for line in charts["loss"].summary)
    assert any("held out: 25" in line for line in charts["accuracy"].summary)
    assert [chart.title for key, chart in charts.items() if key.startswith("logged")] == ["test.f1"]


def test_there_is_an_end_to_it() -> None:
    run = a_run(*[(1, f"p{k}", {"a": 1.0}) for k in range(50)])
    assert len(logged_charts(name_runs([run]))) == MOST_CHARTS
