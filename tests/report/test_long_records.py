"""A long record is read as arrays: what is read value by value, and what a page holds, does not grow with it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pullback as pb
from pullback.report.live.folders import Folders
from pullback.report.live.pages import Pages
from pullback.report.run.line_figure import MOST_POINTS
from pullback.report.run.page import page_html
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import NamedRun
from pullback.runs import RunWriter, block_file, writer
from pullback.runs.block_file import Block
from pullback.runs.one_record import Record, Values

META = {"least_loss": 0.0, "loss": "CrossEntropyLoss", "optimizer": {"class": "SGD", "learning_rate": 0.1}}
LAYERS = ("a", "b", "c")


def by_layer(value: float) -> dict[str, float]:
    return {name: value * (place + 1) for place, name in enumerate(LAYERS)}


def measured(step: int, share: float) -> dict[str, dict[str, Any]]:
    """Of all that charts and rules look at, in a run in which all is well, a little of each."""
    loss = 2.0 * (1 - share) + 0.02 * np.sin(step)
    return {
        "loss": {"loss": loss, "batch_loss": loss, "accuracy": 0.5 + 0.4 * share, "constant_accuracy": 0.1,
                 "constant_loss": 2.3, "form": "cross-entropy", "outputs": "scores"},
        "gradients": {"rms_gradient_norm": 1.0, "mean_gradient_norm": 0.5},
        "updates": {"median": 1e-3, "shrink": 0.1, "norm": 5.0, "ratio": by_layer(1e-3)},
        "kernel": {"M1": 1.0, "M2": 2.0, "num_samples": 64, "effective_rank": 8.0, "conditioning": 9.0,
                   "eigenvalues": [1.0 / k for k in range(1, 9)]},
        "noise": {"signal_to_noise": 0.02, "signal_to_noise_stderr": 0.001, "batch_size": 64, "noise_scale": 50.0},
        "alignment": {"mean_cosine": 0.2, "conflict_fraction": 0.1, "worst_pairs": [[1, 2, -0.5]]},
        "classes": {"within": 0.5, "between": 0.1, "labels": [0, 1], "cosine": [[1.0, 0.1], [0.1, 1.0]]},
        "flow": {"gradient_norm": by_layer(0.1 + share), "trace_share": by_layer(1 / 6), "slope": 0.1,
                 "balance": 3.0, "verdict": "steady"},
        "activations": {"effective_rank": by_layer(9.0), "width": by_layer(32.0), "dead": by_layer(0.01),
                        "saturated": by_layer(0.01), "kind": dict.fromkeys(LAYERS, "tanh")},
        "sharpness": {"hessian": 5.0, "limit": 20.0, "learning_rate": 0.1, "optimizer": "SGD", "smallest": -0.1},
        "targets": {"counts": {"0": 32, "1": 32}, "num_samples": 64},
        "inputs": {"largest_abs": 2.0, "std_ratio": 3.0, "largest_mean_over_std": 1.0, "num_far": 0, "far_samples": []},
        "samples": {"num_samples": 64, "num_suspects": {"label": 1}, "suspects": [[3, 5.0, "label"]],
                    "num_classes": 10, "label_ranks": {"1": 60, "2": 4}},
        "cost": {"seconds": 0.01},
    }  # fmt: skip


def long_run(folder: Path, count: int) -> Path:
    """A run of many measurements, in blocks; steps lie three apart, and one probe leaves some out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MOST_BYTES", 2**15)
        with RunWriter(folder, META) as made:
            for place in range(count):
                for probe, values in measured(3 * place, place / count).items():
                    if probe != "sharpness" or place % 10:
                        made.append(3 * place, probe, values)
            for step in range(3 * count):
                made.course.add(step, {"loss": 2 - 2 * step / count / 3, "learning_rate": 0.1, "gradient_norm": 0.5})
    assert len(list((folder / block_file.BLOCKS_FOLDER).iterdir())) > 1
    return folder


def counted(run: pb.Run, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Records that are made, and values that are taken out of one, for the findings and the page of a run."""
    seen: Counter[str] = Counter()
    records, get = Block.records, Values.get

    def noted(self: Block, places: np.ndarray) -> Any:
        for record in records(self, places):
            seen["records"] += 1
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(Block, "records", noted)
        patch.setattr(Values, "get", lambda *args: (seen.update(["values"]), get(*args))[1])
        pb.diagnose(run)
        page_html([NamedRun("run", run)])
    return seen


def test_rules_and_charts_ask_no_record_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (pb.load_run(long_run(tmp_path / str(count), count)) for count in (50, 150))
    few, many = counted(short, monkeypatch), counted(long, monkeypatch)
    assert 0 < few["records"] < 20
    assert many == few


def test_a_page_holds_what_a_screen_can_show(tmp_path: Path) -> None:
    values = np.sin(np.arange(2500) / 50)
    records = [
        Record(step, 0.1 * step, probe, found)
        for step, value in enumerate(values.tolist())
        for probe, found in (("loss", {"loss": 2 + value}), ("flow", {"trace_share": by_layer(0.1 + 0.05 * value)}))
    ]
    named = NamedRun("run", pb.Run(tmp_path, META, records))
    charts = {chart.key: chart for section in SECTIONS for chart in charts_of(section, [named])[0]}
    for chart in charts.values():
        assert all(len(trace["x"]) <= MOST_POINTS for trace in chart.figure["data"])
    bands = charts["share"].figure["data"]
    assert all(trace["x"] == bands[0]["x"] for trace in bands)
    assert max(bands[0]["y"]) == pytest.approx(0.15, abs=1e-5)
    assert min(bands[0]["y"]) == pytest.approx(0.05, abs=1e-5)
    assert len(charts["share"].tables[0].rows) == 2500
    assert charts["share"].tables[0].rows[-1] == [2499, *by_layer(0.1 + 0.05 * values[-1]).values()]


def test_a_watched_page_reads_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = long_run(tmp_path / "run", 50)
    pages = Pages(Folders([folder]))
    read: list[str] = []
    whole = block_file.read_member
    monkeypatch.setattr(
        block_file, "read_member", lambda path, members, name: (read.append(name), whole(path, members, name))[1]
    )
    feed = pages.of("run")
    assert feed is not None
    first, count = feed.current(), len(read)
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps({"step": 150, "probe": "loss", "time": 99.0, "values": {"loss": -43210.0}}) + "\n")
    read.clear()
    block_file._columns.cache_clear()  # what arrays were made of need not be there any more
    monkeypatch.setattr(feed, "_next", 0.0)
    shown = feed.current()
    assert shown.version != first.version
    assert "-43210" in shown.html
    assert "-43210" not in first.html
    assert 4 * len(read) < count  # single records, which are told in full
    shutil.rmtree(folder)
    long_run(folder, 50)  # another run at the same place
    monkeypatch.setattr(feed, "_next", 0.0)
    assert "-43210" not in feed.current().html
