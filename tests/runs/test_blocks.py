"""Records as columns: what is read is what was written, whatever befalls a block, and only what is asked for."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pullback as pb
from pullback.runs import Record, RunWriter, block_file, compare_runs, load_run, tail, write_block, writer
from pullback.runs.block_file import BLOCKS_FOLDER
from pullback.runs.column import Column, as_number
from pullback.runs.course_block import Block
from pullback.runs.course_file import COURSE_FILE
from pullback.runs.one_record import Values
from pullback.runs.packed_columns import pack, unpack
from pullback.runs.records import records_of
from pullback.runs.schema import META_FILE, RECORDS_FILE, SCHEMA_VERSION, WITHOUT_BLOCKS
from tests.command import HANGS

ROOM = 400  # bytes of lines that become a block here
META: dict[str, Any] = {"model": {"num_params": 3, "layers": ["a"]}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_BYTES", ROOM)


def measurement(step: int) -> dict[str, dict[str, Any]]:
    """Of every kind of value a record holds; some are there at some steps only, or of another kind."""
    return {
        "loss": {"loss": 1 / (step + 1), "outputs": "scores", "count": step} | ({"accuracy": 0.5} if step % 3 else {}),
        "flow": {
            "norm": {"a": math.pi * step, "b.c": -0.0, "ü/\ud800": math.inf},
            "verdict": None,
            "flag": step % 2 == 0,
        },
        "kernel": {
            "eigenvalues": [1.0 / k for k in range(1, 2 + step % 4)],
            "pairs": [[1, 2, 0.5 * step], [2**70, -1, 3]],
        },
        "odd": {"value": [step, float(step), str(step), {"x": step}][step % 4], "empty": [[], {}][step % 2]},
    }


def write(folder: Path, steps: Sequence[int], resume: int | None = None) -> Path:
    with RunWriter(folder, META, resume=resume) as made:
        for step in steps:
            for probe, values in measurement(step).items():
                made.append(step, probe, values)
            if step % 5 == 4:
                made.append_error(step, "flow", ValueError(f"no {step % 2}"))
    return folder


def in_lines(folder: Path, steps: Sequence[int], monkeypatch: pytest.MonkeyPatch, resume: int | None = None) -> Path:
    """The same, as lines alone."""
    with monkeypatch.context() as patch:
        patch.setattr(writer, "MOST_BYTES", 2**40)
        return write(folder, steps, resume)


def content(run: pb.Run) -> list[tuple[int, str, dict[str, Any], str | None]]:
    return [(record.step, record.probe, dict(record.values), record.error) for record in run.records]


def blocks(folder: Path) -> list[Path]:
    return sorted((folder / BLOCKS_FOLDER).glob("*.zip"))


def test_columns_and_lines_tell_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = range(40)
    one, other = write(tmp_path / "blocks", steps), in_lines(tmp_path / "lines", steps, monkeypatch)
    assert len(blocks(one)) > 5
    assert not (other / BLOCKS_FOLDER).exists()
    a, b = load_run(one), load_run(other)
    assert repr(content(a)) == repr(content(b))
    assert (len(a.records), a.steps, a.skipped, a.superseded) == (len(b.records), b.steps, 0, 0)
    assert sorted(a.table()) == sorted(b.table())
    assert json.dumps(a.table(), sort_keys=True) == json.dumps(b.table(), sort_keys=True)
    for probe, metric in b.metrics:
        assert repr(a.series(probe, metric)) == repr(b.series(probe, metric))
    assert sorted(a.metrics) == sorted(b.metrics)
    assert [repr(dict(each.values)) for each in a.of("odd")] == [repr(dict(each.values)) for each in b.of("odd")]
    assert {probe: at.tolist() for probe, at in a.measured.items()} == {p: at.tolist() for p, at in b.measured.items()}
    assert [(r.step, r.error) for r in a.failed] == [
        (step, f"ValueError: no {step % 2}") for step in steps if step % 5 == 4
    ]
    assert a.until(7).steps == b.until(7).steps == list(range(8))
    assert repr(content(a.until(7))) == repr(content(b.until(7)))
    assert a.until(2).table().keys() == b.until(2).table().keys()
    assert repr(compare_runs([a, b])) == repr(compare_runs([b, a]))
    assert a.seconds == max(record.time for record in a.records)


def test_rows_have_the_numbers_that_records_have_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(write(tmp_path / "blocks", range(40)), range(30, 50), resume=30)
    other = in_lines(in_lines(tmp_path / "lines", range(40), monkeypatch), range(30, 50), monkeypatch, resume=30)
    for run in (load_run(one), load_run(other), load_run(one).until(20)):
        for probe, metric in run.metrics:
            rows = records_of(run.records).of(probe)
            held = [dict(record.values) for record in run.records if record.probe == probe and record.error is None]
            assert [dict(record.values) for record in rows] == held
            assert dict(rows[-1].values) == held[-1]
            assert rows.cells(metric) == [values.get(metric) for values in held]
            numbers = [as_number(values.get(metric)) for values in held]
            np.testing.assert_array_equal(rows.numbers(metric), numbers)
            names, table = rows.layers(metric)
            cells = [values.get(metric) if isinstance(values.get(metric), dict) else {} for values in held]
            assert names == list(dict.fromkeys(name for cell in cells for name in cell))
            np.testing.assert_array_equal(table, [[as_number(cell.get(name)) for name in names] for cell in cells])
            some = rows.where(rows.steps % 3 == 0)[::-1]
            every_third = [n for k, n in zip(rows.steps, numbers, strict=True) if k % 3 == 0]
            np.testing.assert_array_equal(some.numbers(metric), every_third[::-1])


def test_times_come_back_to_the_digit(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", range(4))
    with monkeypatched_room(2**40):
        with RunWriter(tmp_path / "kept", META) as made:
            for step in range(30):
                made.append(step, "x", {"y": 1})
        written = [json.loads(line)["time"] for line in (tmp_path / "kept" / RECORDS_FILE).read_text().splitlines()]
    tail.make_block(tmp_path / "kept")
    assert [record.time for record in load_run(tmp_path / "kept").records] == written
    assert load_run(folder).records[0].time > 0


def monkeypatched_room(size: int) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(writer, "MOST_BYTES", size)

    class Context:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            patch.undo()

    return Context()


values_of_a_record = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b.c", ""]), values_of_a_record, max_size=3), max_size=8))
def test_any_values_come_back(rows: list[dict[str, Any]]) -> None:
    columns = unpack(pack(rows))
    again = [Values(columns, place) for place in range(len(rows))]
    assert [repr(dict(sorted(row.items()))) for row in rows] == [repr(dict(sorted(row.items()))) for row in again]
    for metric, column in columns.items():
        assert column.rows.tolist() == [place for place, row in enumerate(rows) if metric in row]
        assert repr(column.cells()) == repr([row[metric] for row in rows if metric in row])
        cells = [row[metric] for row in rows if metric in row]
        np.testing.assert_array_equal(column.numbers(), [as_number(cell) for cell in cells])
        names, table = column.layers()
        dicts = [cell if isinstance(cell, dict) else {} for cell in cells]
        np.testing.assert_array_equal(
            table, np.array([[as_number(each.get(name)) for name in names] for each in dicts]).reshape(table.shape)
        )
        for key in {None, "none", *(key for cell in cells if isinstance(cell, dict) for key in cell)}:
            inside = [
                (place, cell if key is None else cell[key])
                for place, row in enumerate(rows)
                if metric in row and isinstance(cell := row[metric], dict) == (key is not None)
                if key is None or key in cell
            ]
            places, found = column.under(key)
            told = found.cells() if isinstance(found, Column) else found
            assert repr((places.tolist(), told)) == repr(([p for p, _ in inside], [c for _, c in inside]))


def test_values_read_as_a_dict(tmp_path: Path) -> None:
    record = next(load_run(write(tmp_path / "run", range(9))).of("loss"))
    plain = measurement(0)["loss"]
    assert isinstance(record.values, Values)
    assert record.values == plain
    assert plain == record.values
    assert Record(0, record.time, "loss", plain) == record
    assert (len(record.values), list(record.values), repr(record.values)) == (3, list(plain), repr(plain))
    assert record.values | {"more": 1} == {"more": 1} | record.values == plain | {"more": 1}
    assert "accuracy" not in record.values
    assert record.values.get("accuracy", 7) == 7
    assert record.values.get("nothing") is None
    with pytest.raises(KeyError, match="accuracy"):
        record.values["accuracy"]


def test_records_are_a_sequence(tmp_path: Path) -> None:
    records = load_run(write(tmp_path / "run", range(20))).records
    every = list(records)
    assert records == tuple(every)
    assert records != every[:-1]
    assert [records[place] for place in (0, 33, -1)] == [every[place] for place in (0, 33, -1)]
    assert (records[3:70:9], records[::-1], records[500:]) == (tuple(every[3:70:9]), tuple(every[::-1]), ())
    with pytest.raises(IndexError, match="out of bounds"):
        records[len(records)]
    assert repr(records) == f"<{len(every)} records>"


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "run", range(30))
    read: list[str] = []
    real = block_file.read_member

    def noted(path: Path, members: dict[str, Any], name: str) -> bytes:
        read.append(name)
        return real(path, members, name)

    monkeypatch.setattr(block_file, "read_member", noted)
    run = load_run(folder)
    assert read == ["index"] * len(blocks(folder))
    assert run.steps == list(range(30))
    assert len(run.failed) == 6
    assert len(run.metrics) == 11
    assert run.measured["loss"].tolist() == list(range(30))
    assert "flow.norm.b.c" in run.table()
    assert read == ["index"] * len(blocks(folder))
    assert run.table()["loss.loss"] == run.series("loss", "loss")[1]
    loss = [block.probes.index("loss") for block in run._records.parts[:-1] if "loss" in block.probes]  # type: ignore[union-attr]
    assert read[len(blocks(folder)) :] == [str(code) for code in loss]
    list(run.of("loss"))
    run.table()["step"]
    run.series("loss", "outputs")
    seen = read.count("index"), len(read)
    run.series("loss", "accuracy")
    assert (read.count("index"), len(read)) == seen  # nothing twice


def test_eight_bytes_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that fill their digits, some of single precision, with the steps, times and names of their records."""
    monkeypatch.setattr(writer, "MOST_BYTES", 2**20)
    rng, count = np.random.default_rng(0), 0
    with RunWriter(tmp_path / "run", META) as made:
        while not blocks(tmp_path / "run"):
            made.append(count, "a", {"double": rng.random(4).tolist(), "single": np.float32(rng.random(4)).tolist()})
            made.append(count, "b", {"layers": dict(zip("abcdefgh", rng.random(8).tolist(), strict=True))})
            count += 1
    (block,) = blocks(tmp_path / "run")
    assert block.stat().st_size <= 8 * 16 * count
    assert (tmp_path / "run" / RECORDS_FILE).stat().st_size < 1000


class Killed(BaseException):
    """Ends the writer, as a signal would."""


@pytest.mark.parametrize("stage", ["within the block", "before the lines begin anew", "before the schema"])
def test_killed_while_a_block_is_made(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is there once, for a reader at that moment and for a writer that goes on."""
    folder = in_lines(tmp_path / "run", range(6), monkeypatch)
    expected = repr(content(load_run(folder)))

    def end(*_: object) -> None:
        raise Killed

    where = {"within the block": (write_block.os, "fsync"), "before the schema": (tail, "raise_schema")}
    with monkeypatch.context() as patch:
        patch.setattr(*where.get(stage, (tail, "_replace")), end)
        with pytest.raises(Killed):
            tail.make_block(folder)
    assert repr(content(load_run(folder))) == expected
    write(folder, range(6, 12), resume=5)
    assert len(blocks(folder)) > 1
    assert repr(content(load_run(folder))) == repr(content(load_run(in_lines(tmp_path / "b", range(12), monkeypatch))))


def test_a_full_disk_keeps_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(block_file.zipfile.ZipFile, "writestr", full)
        folder = write(tmp_path / "run", range(12))
    assert list((folder / BLOCKS_FOLDER).iterdir()) == []
    assert repr(content(load_run(folder))) == repr(content(load_run(in_lines(tmp_path / "b", range(12), monkeypatch))))


def test_a_damaged_block_costs_that_block_and_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", range(20))
    whole = content(load_run(folder))
    second = blocks(folder)[1]
    lost = list(block_file.Block.open(second).steps)
    second.write_bytes(second.read_bytes()[:-30])  # torn
    with pytest.warns(UserWarning, match="block 2 of its records is damaged; what it held is left out"):
        run = load_run(folder)
    assert (len(run.records), run.lost_blocks) == (len(whole) - len(lost), (2,))


def test_a_damaged_column_is_no_number(tmp_path: Path) -> None:
    """Bytes altered within a member: its checksum tells, and the records say so in place of their values."""
    folder = write(tmp_path / "run", range(20))
    path = blocks(folder)[0]
    altered = bytearray(path.read_bytes())
    with zipfile_of(path) as members:
        info = members.getinfo("0")
    altered[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    path.write_bytes(bytes(altered))
    run = load_run(folder)
    bad = [record for record in run.records if record.error == block_file.DAMAGED]
    assert bad
    assert {record.probe for record in bad} == {"loss"}
    assert len(run.records) == len(list(run.records))
    assert run.series("loss", "loss")[0] == [step for step in range(20) if step not in {record.step for record in bad}]


def zipfile_of(path: Path) -> Any:
    import zipfile

    return zipfile.ZipFile(path)


def altered_copies(folder: Path, count: int) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    for place in range(count):
        copy = Path(tempfile.mkdtemp()) / "run"
        shutil.copytree(folder, copy)
        chosen = blocks(copy)[place % 3]
        found = bytearray(chosen.read_bytes())
        for at in rng.integers(0, len(found), 1 + place % 4):
            found[at] = rng.integers(256)
        chosen.write_bytes(found if place % 5 else found[: rng.integers(len(found))])
        yield copy
        shutil.rmtree(copy.parent)


def test_altered_blocks_never_end_a_reader(tmp_path: Path) -> None:
    for copy in altered_copies(write(tmp_path / "run", range(16)), 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = load_run(copy)
            json.dumps(run.table())
            assert len(list(run.records)) == len(run.records)


def test_resumed_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tmp_path / "blocks", tmp_path / "lines"
    for steps, resume in ((range(12), None), (range(7, 20), 6), (range(3, 9), 2), (range(9, 30), 8)):
        write(folders[0], steps, resume)
        in_lines(folders[1], steps, monkeypatch, resume)
    a, b = map(load_run, folders)
    assert len(blocks(folders[0])) > 5
    assert (
        (a.resumed, a.superseded, a.steps)
        == (b.resumed, b.superseded, b.steps)
        == ((2, 8), b.superseded, list(range(30)))
    )
    assert repr(content(a)) == repr(content(b))
    assert a.metrics == b.metrics or sorted(a.metrics) == sorted(b.metrics)
    assert json.dumps(a.table(), sort_keys=True) == json.dumps(b.table(), sort_keys=True)
    assert a.records[40] == list(a.records)[40]


def test_columns_of_steps_that_were_given_up_are_not_there(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", META) as made:
        for step in range(9):
            made.append(
                step, "a", {"x": 1.0, "d": {"old" if step > 3 else "kept": 1.0}} | ({"late": 2.0} if step > 3 else {})
            )
    with RunWriter(tmp_path / "run", META, resume=3) as made:
        made.append(4, "a", {"x": 1.0})
    assert list(load_run(tmp_path / "run").table()) == ["step", "a.x", "a.d.kept"]


def test_damaged_lines_are_counted_in_blocks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_lines(tmp_path / "run", range(3), monkeypatch)
    with (folder / RECORDS_FILE).open("ab") as file:
        file.write(b"{torn\n")
    tail.make_block(folder)
    with pytest.warns(UserWarning, match="1 damaged lines"):
        assert load_run(folder).skipped == 1


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run says that it is of a newer version once it has a block, which an earlier one would pass over."""
    folder = in_lines(tmp_path / "run", range(3), monkeypatch)
    meta = load_run(folder).meta
    assert meta["schema"] == WITHOUT_BLOCKS
    tail.make_block(folder)
    assert json.loads((folder / META_FILE).read_text()) == meta | {"schema": SCHEMA_VERSION}
    (folder / RECORDS_FILE).unlink()
    assert load_run(folder).steps == [0, 1, 2]


def test_first_lines_that_are_no_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_lines(tmp_path / "run", range(1), monkeypatch)
    before = (folder / RECORDS_FILE).read_bytes()
    for line in (
        b'{"follows": -1}',
        b'{"follows": true}',
        b'{"follows": "1"}',
        b'{"follows"',
        b'{"follows": ' + b"[" * 9999,
    ):
        (folder / RECORDS_FILE).write_bytes(line + b"\n" + before)
        with pytest.warns(UserWarning, match="1 damaged lines"):
            assert len(load_run(folder).records) == 4


def test_threads_lose_nothing(tmp_path: Path) -> None:
    """Records come from several threads while lines become blocks."""
    with RunWriter(tmp_path / "run", META) as made:
        threads = [
            Thread(target=lambda name=name: [made.append(step, name, {"x": step}) for step in range(60)])  # type: ignore[misc]
            for name in "abc"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS)
    run = load_run(tmp_path / "run")
    assert len(blocks(tmp_path / "run")) > 3
    assert [run.series(name, "x")[1] for name in "abc"] == [list(range(60))] * 3


def test_a_table_is_a_dict_whose_columns_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    run = load_run(write(tmp_path / "run", range(9)))
    plain = {name: list(column) for name, column in run.table().items()}
    assert isinstance(run.table(), dict)
    assert run.table() == plain
    assert dict(run.table()) == plain
    assert {**run.table()} == plain
    assert run.table() | {"x": []} == plain | {"x": []}
    assert {"x": []} | run.table() == {"x": []} | plain
    assert json.loads(json.dumps(run.table())).keys() == plain.keys()
    assert run.table().get("loss.loss") == plain["loss.loss"]
    assert run.table().get("none", 3) == 3
    assert run.table().copy() == plain
    assert repr(run.table()) == f"Table({len(plain)} columns of {len(run.steps)} steps)"
    assert run.table() != plain | {"x": []}
    table = run.table()
    assert table["step"] is table["step"]
    assert table.pop("step") == plain["step"]
    assert "step" not in table
    assert table.pop("step", None) is None
    assert table.setdefault("loss.count") == plain["loss.count"]
    assert table.setdefault("mine", [1]) == [1]
    with pytest.raises(KeyError, match="nothing"):
        table["nothing"]


def test_one_column_by_two_ways(tmp_path: Path) -> None:
    """Names may hold dots: the last one that was recorded at a step stands."""
    with RunWriter(tmp_path / "run", META) as made:
        made.append(1, "a.b", {"c": 1})
        made.append(1, "a", {"b.c": 2})
        made.append(2, "a", {"b": {"c": 3}})
        made.append(2, "a.b", {"c": 4})
        made.append(2, "a.b", {"c": None})
    assert load_run(tmp_path / "run").table() == {"step": [1, 2], "a.b.c": [2, None]}


def test_whoever_looks_on_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment the same as a reader that begins anew; no line, block or step is read twice."""
    parsed: list[bytes] = []
    opened: list[Path] = []
    decoded: list[int] = []
    line, block, step = tail.parse_line, block_file.Block.open, Block.decoded
    monkeypatch.setattr(tail, "parse_line", lambda each: (parsed.append(each), line(each))[1])
    monkeypatch.setattr(block_file.Block, "open", lambda path: (opened.append(path), block(path))[1])
    monkeypatch.setattr(Block, "decoded", lambda self: (decoded.append(self.count), step(self))[1])
    with RunWriter(tmp_path / "run", META) as made:
        run = load_run(tmp_path / "run")
        assert run.refreshed() is run
        for at in range(1, 25):
            for probe, values in measurement(at).items():
                made.append(at, probe, values)
            made.course.add(at, {"loss": 1 / at})
            count = len(run.records)
            parsed.clear(), opened.clear(), decoded.clear()
            run = run.refreshed()
            assert run.course("loss")[0].tolist() == list(range(1, at + 1))[: len(run.course("loss")[0])]
            assert len(parsed) <= 4
            assert len(opened) <= 3
            assert sum(decoded) <= 8
            assert [record.step for record in run.records[count:]] == [at] * 4
            parsed.clear(), opened.clear()
            assert run.refreshed() is run
            assert (parsed, opened) == ([], [])
    fresh = load_run(tmp_path / "run")
    assert repr(content(run)) == repr(content(fresh))
    run = run.refreshed()
    assert run.course("loss")[1].tolist() == fresh.course("loss")[1].tolist() == [1 / at for at in range(1, 25)]
    run.course("loss")[1][0] = 7.0  # the reader's own copy
    assert run.course("loss")[1][0] == 1.0
    assert run.until(3).refreshed().steps == fresh.steps


def test_whoever_looks_on_sees_a_torn_end_and_a_resumption(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunWriter(folder, META) as made:
        for at in range(1, 9):
            made.append(at, "loss", {"loss": 1.0})
            made.course.add(at, {"loss": 1.0})
    lines, course = (folder / RECORDS_FILE).read_bytes(), (folder / COURSE_FILE).read_bytes()
    (folder / RECORDS_FILE).write_bytes(lines[:-9])
    (folder / COURSE_FILE).write_bytes(course[:-9])
    with pytest.warns(UserWarning, match="1 damaged lines"):
        run = load_run(folder)
    shown = run.course("loss")[0].tolist()
    assert (run.steps, shown) == (list(range(1, 8)), list(range(1, 9))[: len(shown)])
    with pytest.warns(UserWarning, match="1 damaged lines"), RunWriter(folder, META, resume=4) as made:
        made.append(5, "loss", {"loss": 2.0})
        for at in range(5, 40):
            made.course.add(at, {"loss": 2.0})
    run = run.refreshed()
    assert (run.steps, run.resumed, run.skipped) == ([1, 2, 3, 4, 5], (4,), 1)
    assert run.course("loss")[1].tolist() == [1.0] * 4 + [2.0] * 35
    shutil.rmtree(folder)
    with pytest.raises(pb.InputError, match="a run folder with run.json, got none"):
        run.refreshed()


def test_which_records_have_a_metric(tmp_path: Path) -> None:
    """Also where it is no number; of records that lack it, and of a probe that has it nowhere."""
    with RunWriter(tmp_path / "run", {}) as made:
        for step, values in enumerate(({"a": 1.0}, {"b": 2.0}, {"a": "text", "b": 1.0})):
            made.append(step, "probe", values)
    rows = records_of(load_run(tmp_path / "run").records).of("probe")
    assert [rows.has(name).tolist() for name in ("a", "b", "c")] == [
        [True, False, True],
        [False, True, True],
        [False, False, False],
    ]
