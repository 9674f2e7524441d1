"""Scalars go on to TensorBoard, to Weights & Biases, and to any callable."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pullback as pb
from pullback.advisor import Finding, verdict
from pullback.monitor import to_tensorboard, to_wandb
from pullback.monitor.sinks import scalars_of
from tests.monitor.loop import Loop

FAULT = Finding("dead-units", "warning", "fc", (1, 1), {"share": 0.9}, "more than half", "a convention", "Start anew")


def expected_scalars(run: pb.Run, step: int) -> dict[str, float]:
    """Numbers of the record, read back from the file, in another way than they were sent."""
    table = run.table()
    row = table["step"].index(step)
    told = ("step", "schedule.", "end.")  # of the run as a whole: nothing that a curve shows
    cells = {name: column[row] for name, column in table.items() if not name.startswith(told)}
    return {name: cell for name, cell in cells.items() if type(cell) in (int, float, bool)}


def test_any_callable_gets_what_the_record_holds(tmp_path: Path) -> None:
    got: dict[int, dict[str, float]] = {}

    def sink(step: int, scalars: dict[str, float]) -> None:
        assert step not in got or step == 7, "called twice at a step"
        got.setdefault(step, scalars)  # of 7, which is not due, what is logged, and then the end

    loop = Loop()
    with loop.monitor(tmp_path / "run", every=3, forward=[sink]) as monitor:
        loop.run(7, monitor)
        monitor.log("epoch", {"accuracy": 0.5, "name": "text"})
    run = pb.load_run(tmp_path / "run")
    assert list(got) == [3, 6, 7]
    assert got[7] == {"epoch.accuracy": 0.5}
    for step in (3, 6):
        assert got[step] == expected_scalars(run, step)
    assert {"loss.loss", "kernel.M1", "flow.gradient_norm.layers.0.linear", "cost.seconds"} <= set(got[3])
    assert "sharpness.hessian" in got[3]
    assert "sharpness.hessian" not in got[6]


def test_what_is_a_scalar() -> None:
    values = {"a": 1, "b": 2.5, "c": True, "d": "text", "e": [1.0], "f": {"x": 3.0, "y": "t"}, "g": None}
    assert scalars_of("p", values) == {"p.a": 1.0, "p.b": 2.5, "p.c": 1.0, "p.f.x": 3.0}
    assert math.isnan(scalars_of("p", {"a": math.nan})["p.a"])


def test_tensorboard(tmp_path: Path) -> None:
    """Read back with the real reader, while the writer is still open."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    expected = Loop().run(6).state()
    loop = Loop()
    with SummaryWriter(tmp_path / "board") as writer:
        with loop.monitor(tmp_path / "run", every=3, forward=[to_tensorboard(writer)]) as monitor:
            loop.run(6, monitor)
        events = EventAccumulator(str(tmp_path / "board")).Reload()
        run = pb.load_run(tmp_path / "run")
        for step in (3, 6):
            for name, value in expected_scalars(run, step).items():
                found = {event.step: event.value for event in events.Scalars(f"pullback/{name}")}
                assert found[step] == pytest.approx(value, rel=1e-6), name  # stored in single precision
    assert all((a == b).all() for a, b in zip(loop.state(), expected, strict=True))


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline run of the real package, its file read back; the run's own logging is not put out of step."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loop = Loop()
    with (
        wandb.init(project="test", dir=tmp_path) as own,
        loop.monitor(tmp_path / "run", every=3, forward=[to_wandb(own)]) as monitor,
    ):
        monitor.log("finding", FAULT.as_record())
        for step in loop.steps(6, monitor):
            own.log({"train": step})
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 600
    while len(rows := history(file)) < 6 + 3 and time.monotonic() < deadline:  # a process of that package writes it
        time.sleep(0.1)
    run = pb.load_run(tmp_path / "run")
    for step in (3, 6):
        (row,) = [row for row in rows if row.get("pullback/step") == step]
        for name, value in expected_scalars(run, step).items():
            assert row[f"pullback/{name}"] == pytest.approx(value), name
    assert [row["train"] for row in rows if "train" in row] == [1, 2, 3, 4, 5, 6]
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in written(file, "summary")
        for item in record.summary.update
    }
    assert summary["pullback/verdict"] == verdict(run)
    assert summary["pullback/findings"] == [str(finding) for finding in pb.diagnose(run)]
    assert [record.alert.text for record in written(file, "alert")] == [str(FAULT)]
    pages = [record.artifact for record in written(file, "artifact") if record.artifact.type == "report"]
    pages += [each.request.log_artifact.artifact for each in written(file, "request")]
    [contents] = [page.manifest.contents for page in pages if page.type == "report"]
    [page] = contents
    assert page.path == "report.html"
    assert page.size > 1000


def history(file: Path) -> list[dict[str, Any]]:
    """The logged rows in the file of an offline run."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in written(file, "history")
    ]


def written(file: Path, kind: str) -> list[Any]:
    """Records of a kind in the file of an offline run."""
    from wandb.proto import wandb_internal_pb2

    records = []
    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records.append(record)
    return [record for record in records if record.WhichOneof("record_type") == kind]


def logged(content: bytes, block: int = 32_768, header: int = 7) -> Iterator[bytes]:
    """Records of a LevelDB log: chunks of (checksum, length, first or middle or last), which do not cross blocks."""
    place, parts = header, b""
    while place + header <= len(content):
        left = block - place % block
        if left < header:  # the block's end is padding
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
