"""Runs side by side, as rows and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import pullback as pb
from pullback.runs import RunWriter, compare_runs, differing_settings, load_run
from tests.command import Done, run


def make(folder: Path, losses: dict[int, float], rate: float, layer: str = "a") -> Path:
    meta = {"model": {"layers": [layer], "num_params": 3}, "optimizer": {"class": "SGD", "learning_rate": rate}}
    with RunWriter(folder, meta) as writer:
        for step, loss in losses.items():
            writer.append(step, "loss", {"loss": loss})
            writer.append(step, "flow", {"verdict": "steady", "gradient_norm": {layer: 2 * loss}})
    return folder


def test_the_last_common_step(tmp_path: Path) -> None:
    a = load_run(make(tmp_path / "a", {10: 3.0, 20: 2.0, 30: 1.0}, 0.1))
    b = load_run(make(tmp_path / "b", {10: 3.5, 20: 2.5}, 0.2))
    rows = {row.name: row for row in compare_runs([a, b])}
    assert (rows["loss.loss"].values, rows["loss.loss"].steps) == ((2.0, 2.5), (20, 20))
    assert rows["flow.gradient_norm.a"].values == (4.0, 5.0)
    (row,) = compare_runs([a, b], ["loss.loss"], step=19)
    assert (row.values, row.steps) == ((3.0, 3.5), (10, 10))


def test_no_common_step_and_no_value(tmp_path: Path) -> None:
    a = load_run(make(tmp_path / "a", {10: 3.0, 30: 1.0}, 0.1))
    b = load_run(make(tmp_path / "b", {20: 2.5}, 0.1, layer="z"))
    rows = {row.name: row for row in compare_runs([a, b])}
    assert (rows["loss.loss"].values, rows["loss.loss"].steps) == ((1.0, 2.5), (30, 20))
    assert (rows["flow.gradient_norm.z"].values, rows["flow.gradient_norm.z"].steps) == ((None, 5.0), (None, 20))


def test_what_was_set_differently(tmp_path: Path) -> None:
    a = load_run(make(tmp_path / "a", {1: 1.0}, 0.1))
    b = load_run(make(tmp_path / "b", {1: 1.0}, 0.2))
    assert differing_settings([a, b]) == {"optimizer.learning_rate": (0.1, 0.2)}
    assert differing_settings([a, a]) == {}


def test_a_rate_that_the_caller_tells_too_is_told_once(tmp_path: Path) -> None:
    def told(name: str, rate: float, **more: float) -> pb.Run:
        with RunWriter(tmp_path / name, {"optimizer": {"learning_rate": rate}, **more}) as writer:
            writer.append(1, "loss", {"loss": 1.0})
        return load_run(writer.path)

    once = [told("a", 0.1, lr=0.1, width=0.1), told("b", 0.2, lr=0.2, width=0.2)]
    assert list(differing_settings(once)) == ["optimizer.learning_rate", "width"]
    other = [told("c", 0.1, lr=0.1), told("d", 0.2, lr=0.3)]  # the optimizer did not get what the caller says
    assert list(differing_settings(other)) == ["optimizer.learning_rate", "lr"]


def test_columns_that_no_run_has(tmp_path: Path) -> None:
    a = load_run(make(tmp_path / "a", {1: 1.0}, 0.1))
    with pytest.raises(pb.InputError, match="columns among loss.loss, .* got 'loss.nothing'"):
        compare_runs([a], ["loss.nothing"])


def command(*arguments: str | Path) -> Done:
    return run("compare", *arguments)


def test_the_command(tmp_path: Path) -> None:
    a = make(tmp_path / "first", {10: 3.0, 20: 2.0, 30: 1.0}, 0.1)
    b = make(tmp_path / "second", {10: 3.5, 20: 2.5}, 0.2)
    done = command(a, b)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [
        ["first", "second"],
        ["Set", "differently:"],
        ["optimizer.learning_rate", "0.1", "0.2"],
        ["Measured:"],
        ["loss", "2", "@20", "2.5", "@20"],
        ["gradient", "flow", "steady", "@20", "steady", "@20"],
    ]
    done = command(a, b, "--metric", "flow.gradient_norm.a", "--step", "10")
    assert done.stdout.splitlines()[-1].split() == ["flow.gradient_norm.a", "6", "@10", "7", "@10"]
    assert "\x1b[" not in done.stdout


def test_texts_of_a_run_are_text(tmp_path: Path) -> None:
    """Nothing in a run steers the terminal or breaks the table."""
    a = make(tmp_path / "a", {1: 1.0}, 0.1)
    b = make(tmp_path / "b", {1: 1.0}, 0.1)
    meta = (b / "run.json").read_text().replace('"SGD"', '"S\\u001b[2J\\nGD"')
    (b / "run.json").write_text(meta)
    done = command(a, b)
    assert "\x1b" not in done.stdout
    assert "S\ufffd[2J GD" in done.stdout


def test_bad_input(tmp_path: Path) -> None:
    done = command(tmp_path / "nothing")
    assert done.returncode == 2
    assert "a run folder with run.json, got none" in done.stderr
    a = make(tmp_path / "a", {1: 1.0}, 0.1)
    done = command(a, "--metric", "no.such")
    assert done.returncode == 2
    assert "columns among loss.loss" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_setting_that_one_run_does_not_have_is_told_under_both_names() -> None:
    told = {"lr": 0.1, "optimizer": {"learning_rate": 0.1}}
    runs = [pb.Run(Path(name), meta, ()) for name, meta in (("a", told), ("b", {}))]
    assert differing_settings(runs) == {"lr": (0.1, None), "optimizer.learning_rate": (0.1, None)}
