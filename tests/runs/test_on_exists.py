"""A run that exists: refused, continued or left beside a new one; never overwritten."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.runs import RunWriter, load_run
from pullback.runs.folder import next_free
from pullback.runs.schema import META_FILE

META: dict[str, Any] = {"model": {"num_params": 3, "layers": ["a"]}}


def write(folder: Path, steps: range = range(1, 4), **options: Any) -> RunWriter:
    with RunWriter(folder, META, **options) as writer:
        for step in steps:
            writer.append(step, "loss", {"loss": 1.0})
            writer.course.add(step, {"loss": 1.0})
    return writer


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [None, 2])
def test_refuse(tmp_path: Path, resume: int | None) -> None:
    write(tmp_path / "run")
    before = everything(tmp_path)
    with pytest.raises(pb.InputError, match="one that holds a run. Choose another folder, or pass on_exists='number'"):
        RunWriter(tmp_path / "run", META, on_exists="refuse", resume=resume)
    assert everything(tmp_path) == before


def test_number_takes_the_next_free_name(tmp_path: Path) -> None:
    assert write(tmp_path / "run", on_exists="number").path == tmp_path / "run"
    assert write(tmp_path / "run", on_exists="number").path == tmp_path / "run-2"
    (tmp_path / "run-3").write_text("mine")
    (tmp_path / "run-4").mkdir()
    (tmp_path / "run-4" / "notes.txt").write_text("mine")
    (tmp_path / "run-5").mkdir()  # empty: as good as new
    before = everything(tmp_path)
    made = write(tmp_path / "run", on_exists="number", resume=7)
    assert (made.path, made.made, made.earlier) == (tmp_path / "run-5", 7, None)
    after = everything(tmp_path)
    assert {name: after[name] for name in before} == before
    assert load_run(made.path).resumed == ()


def test_number_of_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert next_free(Path()) == tmp_path / "run"
    assert next_free(Path()) == tmp_path / "run-2"


def test_several_processes_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with get_context("fork").Pool(4) as pool:
        found = pool.map(next_free, [tmp_path / "run"] * 12, chunksize=1)
    assert len(set(found)) == 12
    assert sorted(tmp_path.iterdir()) == sorted(found)


def test_resume_goes_on_after_the_last_step_that_is_known(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 4), on_exists="resume")
    made = write(tmp_path / "run", range(4, 6), on_exists="resume")
    assert made.made == 3
    run = load_run(tmp_path / "run")
    assert (run.steps, run.resumed, run.superseded, run.last_step) == ([1, 2, 3, 4, 5], (3,), 0, 5)
    assert write(tmp_path / "run", range(3, 4), on_exists="resume", resume=2).made == 2
    run = load_run(tmp_path / "run")
    assert (run.steps, run.superseded, run.course("loss")[0].tolist()) == ([1, 2, 3], 3, [1, 2, 3])


def test_the_last_step_is_that_of_the_loop_where_nothing_was_measured(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", META) as writer:
        writer.append(2, "loss", {"loss": 1.0})
        writer.course.add(9, {"loss": 1.0})
    assert load_run(tmp_path / "run").last_step == 9
    with RunWriter(tmp_path / "none", META):
        pass
    assert load_run(tmp_path / "none").last_step == 0


def test_resume_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(pb.InputError, match="one that is not empty"):
        RunWriter(tmp_path / "mine", META, on_exists="resume")
    assert everything(tmp_path) == {"mine/thesis.txt": b"years of work"}


def test_other_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match="on_exists"):
        RunWriter(tmp_path / "run", META, on_exists="overwrite")
    assert not (tmp_path / "run").exists()


class NeverBuilt(nn.Linear):
    """Says when anybody looks at its parameters."""

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        raise AssertionError


def monitor(folder: Path, **options: Any) -> pb.Monitor:
    torch.manual_seed(0)
    return pb.Monitor(nn.Linear(2, 3), nn.CrossEntropyLoss(), folder, every=1, probes=["loss"], **options)


def steps_of(watch: pb.Monitor, count: int) -> list[int]:
    with watch:
        for _ in range(count):
            watch.step(torch.ones(4, 2), torch.arange(4) % 3, loss=1.0)
    return load_run(watch.run_dir).steps


def test_the_monitor_refuses_before_it_looks_at_the_model(tmp_path: Path) -> None:
    steps_of(monitor(tmp_path / "run"), 2)
    for options in ({}, {"on_exists": "refuse"}, {"on_exists": "refuse", "resume": 2}):
        with pytest.raises(pb.InputError, match="one that holds a run"):
            pb.Monitor(NeverBuilt(2, 3), nn.CrossEntropyLoss(), tmp_path / "run", **options)  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match=r"on_exists.*refuse.*resume.*number"):
        monitor(tmp_path / "new", on_exists="replace")
    assert not (tmp_path / "new").exists()


def test_the_monitor_goes_on_or_beside(tmp_path: Path) -> None:
    assert steps_of(monitor(tmp_path / "run", on_exists="resume"), 2) == [1, 2]
    assert steps_of(monitor(tmp_path / "run", on_exists="resume"), 2) == [1, 2, 3, 4]
    assert steps_of(monitor(tmp_path / "run", on_exists="resume", resume=3), 1) == [1, 2, 3, 4]
    assert load_run(tmp_path / "run").superseded > 0
    with pytest.warns(UserWarning, match=r"run is taken, so that the record is written to .*run-2; training goes on"):
        beside = monitor(tmp_path / "run", on_exists="number", resume=7)
    assert (beside.run_dir, beside.num_steps) == (tmp_path / "run-2", 7)
    assert steps_of(beside, 1) == [8]
    assert load_run(tmp_path / "run").steps == [1, 2, 3, 4]
    first = monitor(tmp_path / "other", on_exists="number")  # says nothing where nothing is in its way
    assert first.run_dir == tmp_path / "other"
    first.close()
    assert (tmp_path / "other" / META_FILE).is_file()
