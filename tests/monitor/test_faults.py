"""Faults: the disk, the process, a probe, a sink. Training goes on, the record stays readable, the loss is said."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.monitor import PROBES
from pullback.monitor.probes import Measurement, Observation, Probe
from pullback.runs.schema import META_FILE, RECORDS_FILE
from tests.monitor.loop import CHECKPOINT_EVERY, TORN_AT_STEP, Loop, measured

ROOT = Path(__file__).parents[2]
STEPS = 12


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk that is full: a write takes what still fits, the next one is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(tmp_path: Path) -> None:
    """Training is not touched; what fitted is read; once there is room again the record tells what it lacks."""
    alone = Loop().run(STEPS)
    expected = alone.state()
    loop = Loop()
    monitor = loop.monitor(tmp_path / "run")
    loop.run(3, monitor)
    size = (tmp_path / "run" / RECORDS_FILE).stat().st_size
    with files_no_larger_than(size + 100), pytest.warns(UserWarning, match="a record was lost") as warned:
        loop.run(4, monitor)
    assert len(warned) == 1
    assert "training goes on" in str(warned[0].message)
    with pytest.warns(UserWarning, match="1 damaged lines"):  # the one the disk took a part of
        assert pb.load_run(tmp_path / "run").steps == [1, 2, 3]
    loop.run(STEPS - 7, monitor)
    monitor.close()
    assert all(torch.equal(a, b) for a, b in zip(loop.state(), expected, strict=True))
    with pytest.warns(UserWarning, match="1 damaged lines"):
        run = pb.load_run(tmp_path / "run")
    assert run.steps == [1, 2, 3, 8, 9, 10, 11, 12]
    lost = 4 * len(("loss", "gradients", "kernel", "alignment", "flow", "work", "cost"))
    assert monitor.num_lost == lost
    assert [r.error for r in run.records if r.probe == "record"] == [
        f"OSError: {lost} records before this one were lost"
    ]


def test_a_disk_that_does_not_finish_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    monitor = loop.monitor(tmp_path / "run")
    loop.run(2, monitor)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="the end of the record may be lost .*No space left"):
            monitor.close()
    monitor.close()
    assert pb.load_run(tmp_path / "run").steps == [1, 2]


def start(folder: Path, ending: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.monitor.loop", str(folder), ending],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def undisturbed_run(folder: Path) -> pb.Run:
    """The same training without a fault."""
    loop = Loop()
    with loop.monitor(folder) as monitor:
        loop.run(STEPS, monitor)
    return pb.load_run(folder)


def resume(folder: Path) -> tuple[pb.Run, int]:
    """Train on from the checkpoint to the last step; the run, and the step training went on from."""
    loop = Loop.load(folder / "checkpoint.pt")
    begun = loop.step
    with loop.monitor(folder / "run", resume=begun) as monitor:
        loop.run(STEPS - begun, monitor)
    return pb.load_run(folder / "run"), begun


@pytest.mark.slow
def test_killed_within_a_line(tmp_path: Path) -> None:
    """The torn line costs itself alone; the run goes on from the checkpoint, as if nothing had happened."""
    child = start(tmp_path, "torn")
    assert child.wait(600) == -signal.SIGKILL
    with pytest.warns(UserWarning, match="1 damaged lines"):
        torn = pb.load_run(tmp_path / "run")
    assert torn.steps == list(range(1, TORN_AT_STEP))
    with pytest.warns(UserWarning, match="1 damaged lines"):
        run, begun = resume(tmp_path)
    assert begun == CHECKPOINT_EVERY
    assert run.steps == list(range(1, STEPS + 1))
    for probe in ("loss", "kernel", "cost"):
        assert [record.step for record in run.of(probe)] == run.steps, "a step is there twice"
    assert run.superseded > 0
    assert measured(run) == measured(undisturbed_run(tmp_path / "undisturbed"))
    times = [record.time for record in run.records]
    assert times == sorted(times)


@pytest.mark.slow
def test_read_while_it_is_written_and_killed_at_any_time(tmp_path: Path) -> None:
    child = start(tmp_path, "forever")
    try:
        seen: list[int] = []
        deadline = time.monotonic() + 600
        while len(seen) < 6 and time.monotonic() < deadline:
            assert child.poll() is None
            if (tmp_path / "run" / META_FILE).exists() and (tmp_path / "checkpoint.pt").exists():
                seen = pb.load_run(tmp_path / "run").steps
            time.sleep(0.02)
        assert child.poll() is None
        assert seen == list(range(1, len(seen) + 1))
    finally:
        child.kill()
        child.wait(600)
    run = pb.load_run(tmp_path / "run")
    reached = run.steps[-1]
    loop = Loop.load(tmp_path / "checkpoint.pt")
    begun = loop.step
    assert reached >= begun >= CHECKPOINT_EVERY
    with loop.monitor(tmp_path / "run", resume=begun) as monitor:
        loop.run(5, monitor)
    run = pb.load_run(tmp_path / "run")
    assert [record.step for record in run.of("kernel")] == list(range(1, begun + 6))


def test_killed_at_the_start(tmp_path: Path) -> None:
    """What is left of a folder that was no run yet is not in the way, but nothing else is taken for that."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RECORDS_FILE).touch()
    (folder / f"{META_FILE}.part").write_text('{"schema": 1, "crea')
    Loop().monitor(folder).close()
    assert pb.load_run(folder).records == ()
    (folder / META_FILE).unlink()
    (folder / RECORDS_FILE).write_text("mine\n")
    with pytest.raises(pb.InputError, match="one that is not empty"):
        Loop().monitor(folder)


def test_an_array_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it has its name, it is not read as zeros."""
    loop = Loop()
    monitor = loop.monitor(tmp_path / "run", probes=["alignment"])

    def killed(*_: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.warns(UserWarning, match="a record was lost"):
            loop.run(1, monitor)
    assert list(tmp_path.glob("run/arrays/alignment/1/cosine.npy.part"))
    run = pb.load_run(tmp_path / "run")
    assert run.array_steps("alignment", "cosine") == []
    with pytest.warns(UserWarning, match="alignment/1/cosine cannot be read"):
        assert run.array("alignment", 1, "cosine") is None
    x, y = loop.batch()
    monitor.measure(x, y)
    assert pb.load_run(tmp_path / "run").array("alignment", 1, "cosine") is not None


def test_a_probe_that_runs_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's own error; what the probe held is freed before the next one runs, without the collector."""
    held: list[weakref.ref[torch.Tensor]] = []
    freed: list[bool] = []

    def greedy(seen: Observation) -> Measurement:
        large = torch.zeros(1000, 1000)
        held.append(weakref.ref(large))
        torch.empty(2**55, dtype=torch.uint8)
        return Measurement({"never": float(large.sum())})

    def after(seen: Observation) -> Measurement:
        freed.append(all(ref() is None for ref in held))
        return Measurement({"n": len(held)})

    monkeypatch.setitem(PROBES, "kernel", Probe("kernel", greedy))
    monkeypatch.setitem(PROBES, "flow", Probe("flow", after))
    expected = Loop().run(4).state()
    loop = Loop()
    gc.collect()
    gc.disable()
    try:
        with loop.monitor(tmp_path / "run", probes=["kernel", "flow", "loss"]) as monitor:
            loop.run(4, monitor)
    finally:
        gc.enable()
    assert all(torch.equal(a, b) for a, b in zip(loop.state(), expected, strict=True))
    run = pb.load_run(tmp_path / "run")
    errors = [record.error for record in run.records if record.error]
    assert len(errors) == 4
    assert all(record.probe == "kernel" for record in run.records if record.error)
    assert all("can't allocate memory" in str(error) for error in errors)
    assert freed == [True] * 4
    assert run.series("loss", "loss")[0] == [1, 2, 3, 4]


def test_an_interrupt_within_a_probe_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the user's, and leaves the model as it was."""

    def interrupted(seen: Observation) -> Measurement:
        seen.model.eval()
        torch.rand(3)
        raise KeyboardInterrupt

    monkeypatch.setitem(PROBES, "flow", Probe("flow", interrupted))
    loop = Loop()
    loop.run(1)
    x, y = loop.batch()
    before = loop.state()
    with pytest.raises(KeyboardInterrupt), loop.monitor(tmp_path / "run") as monitor:
        monitor.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(loop.state(), before, strict=True))
    assert all(module.training for module in loop.model.modules())
    assert [record.probe for record in pb.load_run(tmp_path / "run").records] == [
        "loss_form",
        "loss",
        "gradients",
        "kernel",
        "alignment",
        "schedule",
        "end",
    ]


def test_a_sink_that_fails(tmp_path: Path) -> None:
    """Said once, recorded every time; the record and the other sinks have everything."""
    got: list[int] = []

    def down(step: int, scalars: dict[str, float]) -> None:
        raise ConnectionError("dashboard is down")

    expected = Loop().run(4).state()
    loop = Loop()
    monitor = loop.monitor(tmp_path / "run", every=2, forward=[down, lambda step, scalars: got.append(step)])
    with pytest.warns(UserWarning, match="a sink failed .dashboard is down.*training goes on") as warned:
        loop.run(4, monitor)
    monitor.close()
    assert len(warned) == 1
    assert all(torch.equal(a, b) for a, b in zip(loop.state(), expected, strict=True))
    run = pb.load_run(tmp_path / "run")
    assert [(r.step, r.error) for r in run.records if r.probe == "forward"] == [
        (2, "ConnectionError: dashboard is down"),
        (4, "ConnectionError: dashboard is down"),
    ]
    assert got == [2, 4]
    assert run.series("loss", "loss")[0] == [2, 4]
