"""Rates of a machine: what is measured, and the file in which they are kept. All other tests have theirs stated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import accumulate, cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pullback.kernels.plan import rates
from pullback.kernels.plan.rates import Rates, cache_file, key, machine_rates
from tests.conftest import RATES

CPU = torch.device("cpu")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A user's cache folder with nothing in it, and nothing known in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates._rates.cache_clear()
    yield tmp_path
    rates._rates.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that were measured, the n-th of them with rates of n."""
    seen: list[torch.dtype] = []

    def measure(_: torch.device, dtype: torch.dtype) -> Rates:
        seen.append(dtype)
        return Rates(*[float(len(seen))] * 4)

    monkeypatch.setattr(rates, "_measure", measure)
    return seen


def test_all_other_tests_run_at_stated_rates() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert machine_rates(CPU, dtype) == machine_rates(torch.device("meta"), dtype) == RATES


def test_measured_once_a_machine(home: Path, measured: list[torch.dtype]) -> None:
    """In the file after the first use, one entry a dtype, and read from it in the next process."""
    assert cache_file() == home / "pullback" / "rates.json"
    first = machine_rates(CPU, torch.float32)
    assert machine_rates(CPU, torch.float32) == first
    second = machine_rates(CPU, torch.float64)
    assert first != second
    assert measured == [torch.float32, torch.float64]
    threads = torch.get_num_threads()
    assert json.loads(cache_file().read_text()) == {
        key("cpu", "float32", threads): asdict(first),
        key("cpu", "float64", threads): asdict(second),
    }
    rates._rates.cache_clear()  # as in another process
    assert (machine_rates(CPU, torch.float32), machine_rates(CPU, torch.float64)) == (first, second)
    assert len(measured) == 2
    assert [path.name for path in cache_file().parent.iterdir()] == ["rates.json"]


@pytest.mark.parametrize("text", ["", "no json", "[]", "{KEY: {}}", '{KEY: {"gemm": -1, "bmm": 1, "stream": 1}}'])
def test_a_file_that_says_nothing_is_replaced(text: str, home: Path, measured: list[torch.dtype]) -> None:
    cache_file().parent.mkdir()
    cache_file().write_text(text.replace("KEY", json.dumps(key("cpu", "float32", torch.get_num_threads()))))
    assert machine_rates(CPU, torch.float32) == Rates(1.0, 1.0, 1.0, 1.0)
    rates._rates.cache_clear()
    assert machine_rates(CPU, torch.float32) == Rates(1.0, 1.0, 1.0, 1.0)
    assert len(measured) == 1


def test_a_home_that_cannot_be_written_to(home: Path, measured: list[torch.dtype]) -> None:
    (home / "pullback").write_text("a file where the folder would be")
    assert machine_rates(CPU, torch.float32) == Rates(1.0, 1.0, 1.0, 1.0)
    assert len(measured) == 1


def a_clock(*seconds: float) -> Callable[[], float]:
    """What is timed takes these seconds by turns."""
    steps = accumulate((part for each in cycle(seconds) for part in (each, 0.0)), initial=0.0)
    return lambda: next(steps)


def test_the_least_of_five_or_the_mean_over_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first timing, of 9 s and 0.25 s here, is not counted."""
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=a_clock(9.0, 4.0, 2.0, 3.0, 5.0, 6.0)))
    assert rates._measure(CPU, torch.float32) == Rates(2 * 1024**3 / 2.0, 2 * 64 * 128**3 / 2.0, 1024**2 / 2.0)
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=a_clock(0.25, 0.125)))
    found = Rates.measure()
    mean = (3 * 0.125 + 2 * 0.25) / 5  # five counted, which pass the 0.3 s
    assert found.gemm == pytest.approx(2 * 1024**3 / mean, rel=1e-12)
    assert found.wire == Rates(1, 1, 1).wire


def test_what_is_too_quick_for_the_clock_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    assert rates._measure(CPU, torch.float32).stream == 1024**2 / 1e-7


def test_a_disk_is_written_to_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """64 MB out and in again, and nothing left behind."""
    monkeypatch.setattr(rates, "_measure", lambda *_: RATES)
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=a_clock(0.5)))
    assert Rates.measure(tmp_path).wire == 2 * 2**26 / 0.5
    assert not list(tmp_path.iterdir())


def test_the_rate_of_a_disk_by_a_clock_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes written and bytes read, over the time of both; no file stays, also where reading fails."""
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(rates, "WIRE_BYTES", 1000)
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(clock))
    sizes: list[int] = []
    crc = rates.zlib.crc32
    monkeypatch.setattr(rates.zlib, "crc32", lambda data: sizes.append(crc(data)))
    assert rates._wire(tmp_path) == 500.0
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]  # what was read is what was written
    assert list(tmp_path.iterdir()) == []
