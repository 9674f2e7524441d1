"""Parts of a store on their own: factors on disk, plan and memory, progress."""

from __future__ import annotations

import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback._progress import Progress
from pullback.kernels.store.disk_format import Folder
from pullback.kernels.store.factor_files import load, named_tensors, rebuilt, save, structure
from pullback.kernels.store.kernel_to_store import kernel_to_store, open_store
from tests.kernels.test_memory import can_reset_the_peak, measured

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inner:
    values: Tensor
    label: str
    num_samples: int


@dataclass(frozen=True)
class Outer:
    inputs: Tensor
    parts: dict[str, Tensor]
    pair: tuple[Inner, Inner]
    sizes: torch.Size
    nothing: None = None


def outer(n: int) -> Outer:
    """Tensors of several dtypes: views of one storage, an expanded one, a slice of something larger, an empty one."""
    x = torch.randn(n, 6, dtype=torch.float64)
    large = torch.randn(100 * n)
    parts = {
        "first": x[:, :3],
        "second": x[:, 3:].T,
        "slice": large[5 : 5 + n],
        "every other": large[::2],
        "expanded": torch.randn(n, 1).expand(n, 50),
        "empty": torch.empty(0, n, dtype=torch.long),
        "number": torch.tensor(3, dtype=torch.int16),
        "half": torch.randn(n, 3).to(torch.bfloat16),
        "flags": torch.arange(n) % 2 == 0,
    }
    return Outer(x, parts, (Inner(x, "a", n), Inner(torch.randn(n), "b", n)), torch.Size([4, n - n]))


def test_factors_come_back(tmp_path: Path) -> None:
    """Same numbers, dtypes, shapes and strides; a field called num_samples follows the block."""
    value, template = outer(7), outer(2)
    file = tmp_path / "block.bin"
    entry = save(Folder(tmp_path), file, value)
    tensors = load(file, entry, CPU)
    assert tensors is not None
    again = rebuilt(template, tensors, 7)
    assert structure(again) == structure(value) == structure(template)
    found, expected = dict(named_tensors(again)), dict(named_tensors(value))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        if name not in ("/parts/slice", "/parts/every other"):
            assert found[name].stride() == tensor.stride()
    assert [inner.num_samples for inner in again.pair] == [7, 7]
    assert (again.pair[0].label, again.sizes, again.nothing) == ("a", torch.Size([4, 0]), None)


def test_shared_storage_is_written_once(tmp_path: Path) -> None:
    x = torch.randn(1000, 100)
    alone = save(Folder(tmp_path), tmp_path / "one.bin", [x])["bytes"]
    assert save(Folder(tmp_path), tmp_path / "two.bin", [x, x[:, :50], x.T])["bytes"] < alone + 1000
    assert save(Folder(tmp_path), tmp_path / "row.bin", [x[3]])["bytes"] < 2000
    assert save(Folder(tmp_path), tmp_path / "expanded.bin", [x[:1].expand(1000, 100)])["bytes"] < 2000


@pytest.mark.parametrize("place", [0, 30, -1])
def test_any_damage_is_found(place: int, tmp_path: Path) -> None:
    file = tmp_path / "block.bin"
    entry = save(Folder(tmp_path), file, outer(3))
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert load(file, entry, CPU) is None
    file.write_bytes(content[:-1])
    assert load(file, entry, CPU) is None
    file.unlink()
    assert load(file, entry, CPU) is None


def test_structure_sees_classes_names_and_plain_fields() -> None:
    one = Inner(torch.zeros(2), "a", 2)
    assert structure(one) == structure(Inner(torch.ones(5), "a", 5))
    assert structure(one) != structure(Inner(torch.zeros(2), "b", 2))
    assert structure(one) != structure(Inner(torch.zeros(2, 2), "a", 2))
    assert structure(one) != structure(Inner(torch.zeros(2, dtype=torch.float64), "a", 2))
    assert structure({"x": one}) != structure({"y": one})


def wide(n: int) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 300), torch.randint(3, (n,)))


@pytest.mark.skipif(not can_reset_the_peak(), reason="needs a /proc that lets a process reset its peak")
def test_memory_stays_within_the_plan() -> None:
    """Measured peak of a process that makes a store: the limit is kept, and the plan is what is taken.

    All of the plan but the 128 MB it sets aside for libraries, which are loaded before.
    """
    found = measured("store", 1.0)
    assert found["planned"] <= found["limit"]
    assert 64 <= found["tile"] < 3000
    assert 0.7 * (found["planned"] - 2**27) <= found["measured"] <= 1.1 * found["planned"], found


def test_limits_and_tiles(tmp_path: Path) -> None:
    """A larger limit allows larger tiles; one too small is refused with what would do, which then does."""
    sides = []
    for limit in (147_000_000, 160_000_000, None):
        store = kernel_to_store(*wide(1500), tmp_path / str(limit), memory_limit=limit, progress=False)
        sides.append(store.tile_size)
    assert sides == sorted(set(sides))
    with pytest.raises(
        pb.InputError, match=r"a `memory_limit` of at least \d+ bytes for tiles of 16 samples, got 1000"
    ):
        kernel_to_store(*wide(1500), tmp_path / "small", memory_limit=1000)
    with pytest.raises(
        pb.InputError, match=r"for tiles of 1000 samples.*Raise the limit, or pass a smaller `tile`"
    ) as e:
        kernel_to_store(*wide(1500), tmp_path / "small", memory_limit=1000, tile=1000)
    needed = int(re.search(r"at least (\d+) bytes", str(e.value)).group(1))  # type: ignore[union-attr]
    store = kernel_to_store(*wide(1500), tmp_path / "small", memory_limit=needed, tile=1000, progress=False)
    assert store.plan.peak_bytes == needed


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    with pytest.raises(
        pb.InputError, match=r"0\.0059. GB of free disk, of which 0\.0019. GB only .*, got 0\.0015 GB at"
    ):
        kernel_to_store(*wide(1000), tmp_path / "store", progress=False)
    kernel_to_store(*wide(10), tmp_path / "store", progress=False)


def test_plan_counts_what_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes on disk are those of the files; operations those of the whole kernel; all of it is printed first."""
    store = kernel_to_store(*wide(640), tmp_path, tile=128)
    printed = capsys.readouterr().err
    assert str(store.plan) in printed
    assert "640 samples in 15 tiles of 128 x 128 on 1 worker\n" in printed
    assert "tiles: 0.000983 of 0.000983 GB" in printed
    size = sum(f.stat().st_size for f in tmp_path.rglob("*") if "c" in f.parts and f.is_file())
    assert store.plan.finished_bytes == size
    whole = pb.plan_kernel(*wide(640)[:2], *wide(640)[2])
    assert store.plan.flops == pytest.approx(15 / 12.5 * whole.flops)  # squares of 128, whole on the diagonal too


def test_what_a_resumed_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel_to_store(*(arguments := wide(640)), tmp_path, tile=128, progress=False)
    kernel_to_store(*arguments, tmp_path)
    assert "checking finished tiles: 0.000983 of 0.000983 GB" in capsys.readouterr().err


def test_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel_to_store(*wide(20), tmp_path, progress=False)
    open_store(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line in a while, and one at the end; with the rate and the time left."""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Progress(True) as progress:
        progress.start("tiles", 10_000_000, done=2_000_000)
        for _ in range(8):
            clock[0] += 5
            progress.advance(1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tiles: 0.004 of 0.01 GB, 0 MB/s, 30.0 s left"
    assert lines[-1] == "tiles: 0.01 of 0.01 GB, 0 MB/s"
    assert len(lines) == 4


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(True) as progress:
        progress.say("the plan")
        progress.start("tiles", 4_000_000)
        progress.advance(4_000_000)
    shown = terminal.getvalue()
    assert "the plan" in shown
    assert "tiles" in shown
    assert "4.0/4.0 MB" in shown
