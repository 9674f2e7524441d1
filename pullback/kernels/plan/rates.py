"""What a machine can do, stated or measured: the choice of a form and the time in a plan follow from it."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from pullback._checks import check_positive
from pullback._results import Shown

WHILE = 0.3  # seconds over which a rate is measured on request
WIRE_BYTES = 2**26  # written and read to measure a disk


@dataclass(frozen=True)
class Rates(Shown):
    """Speeds of one worker: stated, or measured by ``Rates.measure``.

    Args:
        gemm: operations a second of a large matrix product (an add and a multiply are two).
        bmm: the same for many small products, as materialised gradients need them.
        stream: numbers a second that pass through an elementwise product and sum.
        wire: bytes a second between workers, and to and from a shared disk.

    Raises:
        InputError: a rate is not above zero.

    Example:
        >>> a100 = Rates(gemm=156e12, bmm=80e12, stream=2e11, wire=50e9)
    """

    gemm: float
    bmm: float
    stream: float
    wire: float = 1e9

    def __post_init__(self) -> None:
        for field in fields(self):
            check_positive("Rates", field.name, getattr(self, field.name))

    @classmethod
    def measure(
        cls, folder: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Rates:
        """Rates of this machine now, with as many threads as torch uses; ``wire`` is that of ``folder``, if given.

        They are means over a while: what a busy machine has left, where the choice of a form asks what it can do.

        Cost: about a second, and 64 MB written to ``folder`` and read again.
        """
        measured = _measure(torch.device(device), dtype, WHILE)
        return measured if folder is None else replace(measured, wire=_wire(Path(folder)))


def machine_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Rates of this machine; about a tenth of a second the first time, then read from the user's cache folder."""
    if device.type == "meta":
        device = torch.device("cpu")
    return _rates(device.type, str(dtype).removeprefix("torch."), torch.get_num_threads())


@cache
def _rates(device: str, dtype: str, threads: int) -> Rates:
    path, entry = cache_file(), key(device, dtype, threads)
    known: dict[str, dict[str, float]] = {}
    try:
        known |= json.loads(path.read_text())
        return Rates(**known[entry])
    except (OSError, ValueError, KeyError, TypeError):  # not measured yet, or not readable: measure
        measured = _measure(torch.device(device), getattr(torch, dtype))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known | {entry: asdict(measured)}, indent=1))
        temporary.replace(path)
    except OSError:  # a home that cannot be written to: measured again next time
        pass
    return measured


def key(device: str, dtype: str, threads: int) -> str:
    """What rates depend on: their name in the cache file."""
    return f"{device} {dtype} {threads} threads, torch {torch.__version__}, {os.cpu_count()} cores"


def cache_file() -> Path:
    """Where rates are kept: ``$XDG_CACHE_HOME/pullback/rates.json``."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pullback" / "rates.json"


def _measure(device: torch.device, dtype: torch.dtype, seconds: float = 0.0) -> Rates:
    make = torch.Generator(device=device).manual_seed(0)
    large = torch.randn(1024, 1024, device=device, dtype=dtype, generator=make)
    many = torch.randn(64, 128, 128, device=device, dtype=dtype, generator=make)
    gemm = _seconds(lambda: large @ large, device, seconds)
    bmm = _seconds(lambda: many @ many, device, seconds)
    stream = _seconds(lambda: torch.mul(large, large).sum(1), device, seconds)
    return Rates(2.0 * 1024**3 / gemm, 2.0 * 64 * 128**3 / bmm, 1024**2 / stream)


def _seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The least of five timings, or the mean of those made in ``seconds``; after one that is not counted."""
    times: list[float] = []
    while len(times) < 6 or sum(times[1:]) < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    counted = times[1:]
    return max(sum(counted) / len(counted) if seconds else min(counted), 1e-7)


def _wire(folder: Path) -> float:
    """Bytes a second to and from a disk, each with its checksum, as stores write and read."""
    data = np.frombuffer(np.random.default_rng(0).bytes(WIRE_BYTES), np.uint8)
    path = folder / f"rate-{os.getpid()}.part"
    try:
        start = time.perf_counter()
        zlib.crc32(data.data)
        with path.open("wb", buffering=0) as file:
            file.write(data.data)
        received = np.empty(WIRE_BYTES, np.uint8)
        with path.open("rb", buffering=0) as file:
            file.readinto(received.data)
        zlib.crc32(received.data)
        return 2 * WIRE_BYTES / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)
