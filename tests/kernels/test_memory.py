"""The memory limit is kept: peaks of processes against the plan, in one pass, in batches, in several passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINUX = Path("/proc/self/clear_refs").exists()


@pytest.mark.skipif(not LINUX, reason="needs /proc to read a process's peak")
@pytest.mark.parametrize(
    ("name", "share"),
    [
        *(("mlp", share) for share in (1.0, 0.4)),
        *(("wide", share) for share in (1.0, 0.65)),
        *(("conv", share) for share in (1.0, 0.8, 0.5)),
        *(("language", share) for share in (1.0, 0.5, 0.35)),
    ],
)
def test_measured_peak_is_within_ten_percent_of_the_plan(name: str, share: float) -> None:
    child = [sys.executable, str(Path(__file__).with_name("memory_child.py")), name, str(share)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        child, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] <= found["limit"]
    assert 0.7 * found["planned"] <= found["measured"] <= 1.1 * found["planned"], found
