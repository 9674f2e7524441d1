"""Several processes on one store: the same bytes as one process, and a clear end when a worker fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pullback as pb
from pullback.kernels.group.ranks import WorkerError
from pullback.kernels.group.workers import Workers
from pullback.kernels.store.kernel_to_store import kernel_to_store, open_store
from tests.command import HANGS
from tests.kernels.store.child import TILE, arguments
from tests.kernels.store.test_resume import contents

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made by one process."""
    path = tmp_path_factory.mktemp("alone") / "store"
    kernel_to_store(*arguments(), path, tile=TILE, progress=False)
    return path


def start(path: Path, how: str = "", count: int = 2) -> list[tuple[int, str]]:
    """Run workers to their ends; exit code and output of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kernels.group.child", str(path), how]
    workers = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        found = []
        for worker in workers:
            out, err = worker.communicate(timeout=HANGS)
            found.append((worker.returncode, out if worker.returncode in (0, 3, -signal.SIGKILL) else out + err))
        return found
    finally:
        for worker in workers:
            worker.kill()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted(path.glob("ledger-*")) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_two_workers_make_the_same_bytes(tmp_path: Path, alone: Path) -> None:
    """In a process group of the caller's own, which is there afterwards; also if one worker is late."""
    path = tmp_path / "store"
    for code, out in start(path, "given"):
        assert code == 0, out
        assert out == "finished (11, 11) True\n"
    assert contents(path) == contents(alone)
    assert open_store(path).layers == open_store(alone).layers
    for rank in (0, 1):  # both did their part
        ledger = (path / f"ledger-{rank}.jsonl").read_text()
        assert '"block"' in ledger
        assert '"tile"' in ledger
    assert len(lines(path)) == 4 + 10


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path, alone: Path) -> None:
    """Without a process group: one is made, and taken down again."""
    path = tmp_path / "store"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += ["--standalone", "-m", "tests.kernels.group.child", str(path)]
    done = subprocess.run(command, cwd=ROOT, timeout=HANGS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["finished (11, 11) False"] * 2
    assert contents(path) == contents(alone)


@pytest.mark.slow
def test_a_worker_that_dies(tmp_path: Path, alone: Path) -> None:
    """The others end with an error that says who, and one process alone goes on from there."""
    path = tmp_path / "store"
    first, second = start(path, "1/record:4")  # two blocks, then its second tile
    assert second[0] == -signal.SIGKILL
    assert first[0] == 3, first[1]
    assert "WorkerError: kernel_to_store: expected all 2 workers to finish, got worker 1 gone" in first[1]
    assert "call again with any number of workers: it resumes." in first[1]
    before = lines(path)
    with pytest.raises(pb.InputError, match="a finished store"):
        open_store(path)
    kernel_to_store(*arguments(), path, progress=False)
    assert contents(path) == contents(alone)
    assert len(lines(path)) == 4 + 10 > len(before) > 4


@pytest.mark.slow
def test_the_first_worker_dies(tmp_path: Path, alone: Path) -> None:
    path = tmp_path / "store"
    first, second = start(path, "0/torn:3")
    assert first[0] == -signal.SIGKILL
    assert second[0] == 3, second[1]
    assert "WorkerError: kernel_to_store: expected all 2 workers to finish, got worker 0 gone" in second[1]
    kernel_to_store(*arguments(), path, progress=False)
    assert contents(path) == contents(alone)


@pytest.mark.slow
def test_an_error_in_one_worker_is_one_in_all(tmp_path: Path) -> None:
    first, second = start(tmp_path / "store", "weights")
    assert (first[0], second[0]) == (3, 3), first[1] + second[1]
    assert "InputError: kernel_to_store: expected the weights the store" in second[1]
    assert (
        "WorkerError: kernel_to_store: expected all 2 workers to finish, got an error in worker 1: InputE" in first[1]
    )


def test_shares_are_whole_and_even() -> None:
    """Every item in exactly one share, in order, whatever the number of workers."""
    items, costs = list(range(10)), [1.0, 0.5] * 5
    for count in (1, 2, 3, 4, 12):
        shares = []
        for rank in range(count):
            workers = Workers("test", "nothing")
            workers.rank, workers.count = rank, count
            shares.append(workers.share(items, costs))
        assert [item for share in shares for item in share] == items
        assert max(sum(costs[i] for i in share) for share in shares) <= sum(costs) / count + 1


def told(
    monkeypatch: pytest.MonkeyPatch, rank: int, said: dict[int, str], gone: tuple[int, ...]
) -> tuple[Workers, Any]:
    """Workers without processes: what others say, those that cannot be written to, and what is sent."""
    workers, sent = Workers("test", "Try again"), {}
    workers.rank, workers.count, workers._group = rank, 3, "a group"

    def receive(_: Workers, other: int) -> str:
        if other not in said:
            raise RuntimeError("no answer\nfrom there")
        return said[other]

    def send(_: Workers, text: str, other: int) -> None:
        if other in gone:
            raise RuntimeError("closed\nthere")
        sent[other] = text

    monkeypatch.setattr(Workers, "_receive", receive)
    monkeypatch.setattr(Workers, "_send", send)
    return workers, sent


@pytest.mark.parametrize(
    ("own", "said", "gone", "verdict", "hear"),
    [
        ("", {1: "", 2: ""}, (), "", (1, 2)),
        ("mine", {1: "", 2: ""}, (), "an error in worker 0: mine", (1, 2)),
        ("mine", {1: "theirs", 2: ""}, (), "an error in worker 0: mine", (1, 2)),
        ("", {1: "", 2: "theirs"}, (), "an error in worker 2: theirs", (1, 2)),
        ("", {1: "first", 2: "second"}, (), "an error in worker 1: first", (1, 2)),
        ("", {2: ""}, (), "worker 1 gone (no answer)", (2,)),
        ("", {2: "theirs"}, (), "worker 1 gone (no answer)", (2,)),
        ("", {1: "", 2: ""}, (2,), "worker 2 gone (closed)", (1,)),
        ("", {1: "theirs", 2: ""}, (2,), "an error in worker 1: theirs", (1,)),
    ],
)
def test_the_first_fault_is_told_to_all(
    own: str, said: dict[int, str], gone: tuple[int, ...], verdict: str, hear: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Rank 0 hears every worker, and tells those that are alive; a worker that is gone is named."""
    workers, sent = told(monkeypatch, 0, said, gone)
    assert workers._meet(own) == verdict
    assert set(sent) == set(hear)
    if not gone:
        assert set(sent.values()) == {verdict}
    expected = re.escape(f"test: expected all 3 workers to finish, got {verdict}. Try")
    if verdict and not own:
        with pytest.raises(WorkerError, match=expected), workers.phase():
            pass
    if own:
        with pytest.raises(OSError, match="mine") as caught, workers.phase():
            raise OSError("mine")
        assert caught.value.__notes__ == ["test: this was worker 0 of 3."]
        with pytest.raises(WorkerError, match="lost"), workers.phase():  # and nobody is asked again
            raise WorkerError("lost")


def test_what_the_others_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, sent = told(monkeypatch, 2, {0: "an error in worker 1: theirs"}, ())
    assert workers._report("mine") == "an error in worker 1: theirs"
    assert sent == {0: "mine"}
    workers, _ = told(monkeypatch, 2, {}, ())
    assert workers._report("") == "worker 0 gone (no answer)"
    workers, _ = told(monkeypatch, 2, {0: ""}, (0,))
    assert workers._report("") == "worker 0 gone (closed)"


def test_a_group_is_made_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun without a process group; and taken down again, unlike one of the caller's."""
    made: list[Any] = []
    there = [False]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: there[0])
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda kind: made.append(kind) or there.__setitem__(0, True)
    )
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda *group: made.append(group))
    monkeypatch.setattr("torch.distributed.new_group", lambda **_: "a group")
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "2"}):
        with monkeypatch.context() as patch:
            for name in ("WORLD_SIZE", "RANK"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            alone = Workers("test", "Try again")
            assert (alone.rank, alone.count, alone._group, made) == (0, 1, None, [])
            alone.leave()
            assert made == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    workers = Workers("test", "Try again")
    assert made == ["gloo"]
    assert (workers.rank, workers.count, workers._group) == (1, 2, "a group")
    workers.leave()
    assert made == ["gloo", ()]
    of_the_caller = Workers("test", "Try again")  # the group is there by now
    of_the_caller.leave()
    assert made == ["gloo", (), ("a group",)]
