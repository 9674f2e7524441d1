"""The record of a run: what is written is read, whatever happens in between."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.runs import Record, Run, RunWriter, load_run
from pullback.runs.schema import META_FILE, RECORDS_FILE, WITHOUT_BLOCKS, decode, encode, parse_line


def make_run(folder: Path, lines: int = 5) -> Path:
    with RunWriter(folder, {"model": {"class": "Net"}}) as writer:
        for step in range(lines):
            writer.append(step, "loss", {"loss": 1.0 / (step + 1), "by_layer": {"a": step, "b": [1.0, 2.0]}})
    return folder


def test_round_trip(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {"data": "x", "bad": math.inf}) as writer:
        writer.append(
            3, "kernel", {"M1": math.nan, "list": [1.0, -math.inf], "name": "text", "flag": True, "none": None}
        )
        writer.append_error(4, "flow", ValueError("no"))
        writer.write_array(3, "alignment", "cosine", np.arange(6.0).reshape(2, 3))
    run = load_run(tmp_path / "run")
    assert run.meta["schema"] == WITHOUT_BLOCKS
    assert run.meta["bad"] == "Infinity"
    first, second = run.records
    assert math.isnan(first.values["M1"])
    assert first.values["list"] == [1.0, -math.inf]
    assert (first.values["name"], first.values["flag"], first.values["none"]) == ("text", True, None)
    assert (second.probe, second.error, second.values) == ("flow", "ValueError: no", {})
    assert run.array_steps("alignment", "cosine") == [3]
    np.testing.assert_array_equal(run.array("alignment", 3, "cosine"), np.arange(6.0).reshape(2, 3))
    assert run.array_steps("kernel", "none") == []
    with pytest.warns(UserWarning, match="array alignment/9/cosine cannot be read"):
        assert run.array("alignment", 9, "cosine") is None


def test_table_and_series(tmp_path: Path) -> None:
    """S0-26: columns of equal length, JSON-serialisable, layers as columns."""
    run = load_run(make_run(tmp_path / "run", 3))
    table = run.table()
    assert list(table) == ["step", "loss.loss", "loss.by_layer.a", "loss.by_layer.b"]
    assert table["loss.loss"] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert json.dumps(table)
    assert run.series("loss", "loss") == ([0, 1, 2], table["loss.loss"])
    assert run.series("loss", "nothing") == ([], [])
    assert run.steps == [0, 1, 2]
    assert run.findings == []


def test_readable_while_it_is_written(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {})
    for step in range(3):
        writer.append(step, "loss", {"loss": 1.0})
        assert len(load_run(tmp_path / "run").records) == step + 1
    writer.close()
    writer.close()


def test_a_run_begins_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between its first and its last file there is no run, and the folder can be begun again."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "_open", interrupt)
        with pytest.raises(KeyboardInterrupt):
            RunWriter(path, {"model": "mlp"})
    assert not (path / META_FILE).exists()
    with pytest.raises(pb.InputError, match="a run folder with run.json, got none"):
        load_run(path)
    with RunWriter(path, {"model": "mlp"}) as writer:
        writer.append(1, "loss", {"loss": 1.0})
    assert load_run(path).steps == [1]


def interrupt(self: RunWriter) -> int:
    raise KeyboardInterrupt


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that sees half of it is neither warned nor left without it."""
    path = make_run(tmp_path / "run")
    content = (path / RECORDS_FILE).read_bytes()
    (path / RECORDS_FILE).write_bytes(content[:-9])
    monkeypatch.setattr(time, "sleep", lambda _: (path / RECORDS_FILE).write_bytes(content))
    run = load_run(path)
    assert (len(run.records), run.skipped) == (5, 0)


def test_a_torn_last_line_is_skipped_with_a_warning(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    with (path / RECORDS_FILE).open("ab") as file:
        file.write(b'{"step":9,"probe":"loss","val')
    with pytest.warns(UserWarning, match="1 damaged lines in records.jsonl were skipped"):
        run = load_run(path)
    assert (len(run.records), run.skipped) == (5, 1)


ORIGINAL = b"".join(
    json.dumps({"step": s, "time": 0.5, "probe": "loss", "values": {"loss": 0.25 * s}}).encode() + b"\n"
    for s in range(4)
)


def read_bytes(content: bytes) -> pb.Run:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / META_FILE).write_text('{"schema": 1}')
        (folder / RECORDS_FILE).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = load_run(folder)
            run.table()
            json.dumps(encode(run.table()))
        return run
    finally:
        shutil.rmtree(folder)


@given(st.integers(0, len(ORIGINAL)))
def test_truncated_anywhere(cut: int) -> None:
    """Every whole line before the cut is read, and nothing else."""
    run = read_bytes(ORIGINAL[:cut])
    whole = ORIGINAL[:cut].count(b"\n")
    complete_without_newline = cut < len(ORIGINAL) and ORIGINAL[cut : cut + 1] == b"\n"
    assert len(run.records) == whole + complete_without_newline
    assert [record.values["loss"] for record in run.records] == [0.25 * s for s in range(len(run.records))]


@given(st.lists(st.tuples(st.integers(0, len(ORIGINAL) - 1), st.integers(0, 255)), max_size=8))
def test_altered_bytes(changes: list[tuple[int, int]]) -> None:
    content = bytearray(ORIGINAL)
    for place, value in changes:
        content[place] = value
    run = read_bytes(bytes(content))
    assert len(run.records) + run.skipped <= 4 + len(changes)
    assert all(isinstance(record.step, int) and isinstance(record.values, dict) for record in run.records)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["step", "time", "probe", "values", "error", "x"]), json_values))
def test_any_json_object_as_a_line(record: dict[str, object]) -> None:
    run = read_bytes(json.dumps(record).encode() + b"\n")
    assert len(run.records) + run.skipped == 1


def test_hostile_lines() -> None:
    deep = b"[" * 100_000
    huge = b'{"step":' + b"9" * 10_000 + b',"probe":"loss","values":{}}'
    run = read_bytes(b"\n".join([deep, huge, b"\xff\xfe", b"null", ORIGINAL.splitlines()[1]]))
    assert (len(run.records), run.skipped) == (1, 4)


@given(json_values)
def test_encoding_keeps_numbers(value: object) -> None:
    again = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert repr(again) == repr(value) or "NaN" in repr(value) or "Infinity" in repr(value)


def test_lines_that_are_no_records() -> None:
    good = {"step": 1, "probe": "p", "values": {"a": 1}}
    assert parse_line(json.dumps(good).encode()) is not None
    for change in (
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"probe": 3},
        {"values": []},
        {"time": "x"},
        {"values": {"a": [[[1]]]}},
    ):
        assert parse_line(json.dumps(good | change).encode()) is None, change


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    with pytest.raises(pb.InputError, match="an empty or new folder, got one that holds a run"):
        RunWriter(path, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(pb.InputError, match="got one that is not empty"):
        RunWriter(tmp_path / "other", {})
    with pytest.raises(pb.InputError, match="got a file"):
        RunWriter(tmp_path / "other" / "notes.txt", {})
    (tmp_path / "empty").mkdir()
    RunWriter(tmp_path / "empty", {}).close()


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match="a run folder with run.json, got none"):
        load_run(tmp_path / "nothing")
    (tmp_path / META_FILE).write_text("{torn")
    with pytest.raises(pb.InputError, match="a readable run.json, got damaged JSON"):
        load_run(tmp_path)
    for content, got in (
        ('{"schema": 99}', "99"),
        ("[]", "None"),
        ('{"schema": "1"}', "'1'"),
        ('{"schema": true}', "True"),
    ):
        (tmp_path / META_FILE).write_text(content)
        with pytest.raises(pb.InputError, match=f"schema 1 to 2, got {got}. Update pullback"):
            load_run(tmp_path)
    (tmp_path / META_FILE).write_text('{"schema": 1}')
    assert load_run(tmp_path).records == ()


@pytest.mark.parametrize("kind", ["float32", ">f8", "float16", "int64", "uint8", "bool", "complex64", "<U3"])
def test_arrays_are_read_as_they_were_written(kind: str, tmp_path: Path) -> None:
    """Also with nan, and in place of earlier ones."""
    writer, numbers = RunWriter(tmp_path / "run", {}), np.array([[1, 0, 2.5], [-3, np.nan, 100.0]])
    array = np.nan_to_num(numbers).clip(0).astype(kind) if kind in ("int64", "uint8", "bool") else numbers.astype(kind)
    for stored in (array[:1, :2], array.T):
        writer.write_array(3, "own", "numbers", stored)
    writer.close()
    found = load_run(tmp_path / "run").array("own", 3, "numbers")
    assert found is not None
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array.T)
    assert load_run(tmp_path / "run").array_steps("own", "numbers") == [3]


def test_arrays_of_earlier_versions_are_read_and_set_aside(tmp_path: Path) -> None:
    """Runs whose arrays are one Zarr group; a run that goes on from there has both."""
    path, earlier = make_run(tmp_path / "run"), {1: 1.0, 4: 4.0}
    group = zarr.open_group(path / "arrays.zarr", mode="a")
    for step, value in earlier.items():
        group.create_array(f"own/{step}/numbers", shape=(2, 3), dtype="float64")[:] = value
    assert load_run(path).array_steps("own", "numbers") == [1, 4]
    with RunWriter(path, {}, resume=3) as writer:
        writer.write_array(5, "own", "numbers", np.full((2, 3), 5.0))
    run = load_run(path)
    assert run.array_steps("own", "numbers") == [1, 5]
    for step in (1, 5):
        np.testing.assert_array_equal(run.array("own", step, "numbers"), np.full((2, 3), float(step)))
    with pytest.warns(UserWarning, match="own/4/numbers cannot be read"):
        assert run.array("own", 4, "numbers") is None


def test_nothing_read_is_executed(tmp_path: Path) -> None:
    """No pickle: an object array where an array should be is refused, and its code does not run."""
    path = make_run(tmp_path / "run")
    flag = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {flag}",)

    file = path / "arrays" / "alignment" / "1" / "cosine.npy"
    file.parent.mkdir(parents=True)
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert load_run(path).array("alignment", 1, "cosine") is None
    assert not flag.exists()


def test_a_run_says_where_it_was_measured_without_what_the_loop_logged():
    cost = [Record(step, 1.0, "cost", {"seconds": 0.1}) for step in (1, 2)]
    logged = [Record(step, 1.0, "epoch", {"epoch": step}) for step in range(1000, 3000)]
    assert repr(Run(Path("r"), {}, (*cost, *logged))) == "Run('r', measured at 2 steps, 1 to 2)"
    assert Run(Path("r"), {}, tuple(logged)).extent == "measured at 2,000 steps, 1,000 to 2,999"
    assert Run(Path("r"), {}, (cost[0],)).extent == "measured at 1 step, 1 to 1"
    assert Run(Path("r"), {}, ()).extent == "no measurement"


def test_what_is_no_run_is_told_where_runs_are(tmp_path: Path) -> None:
    for name in ("b", "a"):
        RunWriter(tmp_path / name, {}).close()
    with pytest.raises(pb.InputError, match="got a folder of 2 runs. Pass one of its runs, .*/a say"):
        load_run(tmp_path)
    with pytest.raises(pb.InputError, match="load_run: expected the path of a run folder, got int. Pass the folder"):
        load_run(3)  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="an empty or new folder, got one below a file"):
        RunWriter(tmp_path / "a" / "run.json" / "c", {})
