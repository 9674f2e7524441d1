"""A run that goes on: what a resumed training makes anew takes the place of what it left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pullback as pb
from pullback.runs import RunWriter, load_run
from pullback.runs.schema import RECORDS_FILE

MODEL = {"model": {"num_params": 10, "layers": ["a", "b"]}}


def write(folder: Path, steps: range, value: float, resume: int | None = None, meta: dict[str, Any] = MODEL) -> None:
    with RunWriter(folder, meta, resume=resume) as writer:
        for step in steps:
            writer.append(step, "loss", {"loss": value})
            writer.write_array(step, "alignment", "cosine", np.full((2, 2), value))


def test_steps_made_anew_supersede(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 7), 1.0)
    write(tmp_path / "run", range(5, 7), 2.0, resume=4)
    write(tmp_path / "run", range(3, 4), 3.0, resume=2)
    run = load_run(tmp_path / "run")
    assert run.series("loss", "loss") == ([1, 2, 3], [1.0, 1.0, 3.0])
    assert run.superseded == 2 + 4
    assert run.resumed == (2,)  # the first resumption, from 4, is given up too
    assert run.array_steps("alignment", "cosine") == [1, 2, 3]
    arrays = [run.array("alignment", step, "cosine") for step in (1, 2, 3)]
    assert [float(a[0, 0]) for a in arrays if a is not None] == [1.0, 1.0, 3.0]
    kept = (tmp_path / "run" / RECORDS_FILE).read_text().count('"loss":1.0')
    assert kept == 6  # nothing is removed from the file
    assert len(list((tmp_path / "run").glob("arrays/alignment/*.left-*"))) == 2 + 4


def test_time_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 3), 1.0)
    before = load_run(tmp_path / "run").records[-1].time
    write(tmp_path / "run", range(3, 5), 1.0, resume=2)
    times = [record.time for record in load_run(tmp_path / "run").records]
    assert times == sorted(times)
    assert times[2] >= before


def test_the_description_stays(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 3), 1.0, meta=MODEL | {"note": "first"})
    created = load_run(tmp_path / "run").meta
    write(tmp_path / "run", range(3, 4), 1.0, resume=2, meta=MODEL | {"note": "second"})
    assert load_run(tmp_path / "run").meta == created


def test_a_torn_line_is_not_glued_to_the_next(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 3), 1.0)
    with (tmp_path / "run" / RECORDS_FILE).open("ab") as file:
        file.write(b'{"step":3,"probe":"loss","val')
    with pytest.warns(UserWarning, match="1 damaged lines"):
        write(tmp_path / "run", range(3, 4), 2.0, resume=2)
    with pytest.warns(UserWarning, match="1 damaged lines"):
        run = load_run(tmp_path / "run")
    assert run.series("loss", "loss") == ([1, 2, 3], [1.0, 1.0, 2.0])


def test_a_line_that_was_taken_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write is finished; one that cannot be is closed off before the next line."""
    writer, real = RunWriter(tmp_path / "run", {}), os.write
    monkeypatch.setattr(os, "write", lambda file, content: real(file, content[:7]))
    writer.append(1, "loss", {"loss": 1.0})
    assert load_run(tmp_path / "run").series("loss", "loss") == ([1], [1.0])
    calls: list[int] = []

    def full_after_a_part(file: int, content: bytes) -> int:
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(file, content[:9])

    monkeypatch.setattr(os, "write", full_after_a_part)
    with pytest.raises(OSError, match="No space left"):
        writer.append(2, "loss", {"loss": 2.0})
    monkeypatch.setattr(os, "write", real)
    writer.append(3, "loss", {"loss": 3.0})
    writer.close()
    with pytest.warns(UserWarning, match="1 damaged lines"):
        assert load_run(tmp_path / "run").series("loss", "loss") == ([1, 3], [1.0, 3.0])


def test_an_array_takes_the_place_of_one_of_the_same_step(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {}) as writer:
        for value in (1.0, 2.0):
            writer.write_array(1, "alignment", "cosine", np.full((2, 2), value))
    found = load_run(tmp_path / "run").array("alignment", 1, "cosine")
    assert found is not None
    assert float(found[0, 0]) == 2.0


def test_nothing_to_resume_is_a_new_run(tmp_path: Path) -> None:
    write(tmp_path / "run", range(6, 8), 1.0, resume=5)
    assert load_run(tmp_path / "run").steps == [6, 7]


def test_another_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 3), 1.0)
    before = (tmp_path / "run" / RECORDS_FILE).read_bytes()
    for change, message in (
        ({"num_params": 11, "layers": ["a", "b"]}, "10 trainable parameters as the run that is continued, got 11"),
        ({"num_params": 10, "layers": ["a", "c"]}, "the same layers as the run that is continued, got others"),
    ):
        with pytest.raises(pb.InputError, match=message):
            RunWriter(tmp_path / "run", {"model": change}, resume=2)
    assert (tmp_path / "run" / RECORDS_FILE).read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(pb.InputError, match="one that is not empty"):
        RunWriter(tmp_path / "mine", {}, resume=2)


def test_until(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 7), 1.0)
    assert load_run(tmp_path / "run").until(3).steps == [1, 2, 3]
