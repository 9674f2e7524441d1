"""The same record and the same findings come out on one thread and two, on an idle machine and a busy one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command import HANGS
from tests.monitor.same_record import RATES, WIDTH, records, train

ROOT = Path(__file__).parents[2]
BUSY = "while True: pass"
EPS = torch.finfo(torch.float32).eps


def on_one_thread(folder: Path) -> dict[str, Any]:
    """What this process records."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its losses leap
            return records(folder)
    finally:
        torch.set_num_threads(threads)


def on_two_threads_beside_another(folder: Path) -> dict[str, Any]:
    """What a process of two threads records beside one that takes all the time it gets."""
    # Threads that wait at a barrier sleep: spinning they keep the machine from those they wait for.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        command = [sys.executable, "-W", "ignore", "-m", "tests.monitor.same_record", str(folder)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=HANGS
        )
    finally:
        busy.kill()
        busy.wait()
    return json.loads(done.stdout.splitlines()[-1])


def distance(values: list[float], exact: list[float]) -> float:
    """The largest relative one."""
    assert len(values) == len(exact) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(values, exact, strict=True))


@pytest.mark.slow
def test_the_same_record_on_one_thread_and_two_and_on_a_busy_machine(tmp_path: Path) -> None:
    """Steps, probes, samples and findings are equal; numbers differ by no more than the order of float32 sums makes.

    How much that is, a third training in double precision tells: threads only change the order in which numbers are
    added, so both records miss it by rounding of one kind. Four times what one thread misses it by is allowed, and no
    less than a sum over a layer's width is rounded by, sqrt(width) of the dtype's steps.
    """
    one, two = on_one_thread(tmp_path / "one"), on_two_threads_beside_another(tmp_path / "two")
    exact = train(tmp_path / "exact", RATES["slow"], torch.float64)
    assert (one["threads"], two["threads"]) == (1, 2)
    for name in RATES:
        for kind in ("records", "findings", "steps"):
            assert one[name][kind] == two[name][kind], (name, kind)
        assert one[name]["findings"]
    assert any(found[1] == "critical" for found in one["wild"]["findings"])
    assert exact["findings"] == one["slow"]["findings"]
    for metric, values in exact["numbers"].items():
        rounding = distance(one["slow"]["numbers"][metric], values)
        allowed = max(4 * rounding, math.sqrt(WIDTH) * EPS)
        assert rounding < 1e-3, metric  # else nothing is compared
        assert distance(two["slow"]["numbers"][metric], values) <= allowed, metric
