"""The memory limit is kept: peaks of whole processes against the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINUX = Path("/proc/self/clear_refs").exists()


@pytest.mark.skipif(not LINUX, reason="needs /proc to read a process's peak")
@pytest.mark.parametrize(("name", "share"), [("mlp", 1.0), ("mlp", 0.7), ("conv", 1.0), ("conv", 0.95)])
def test_measured_peak_is_within_ten_percent_of_the_plan(name: str, share: float) -> None:
    child = [sys.executable, str(Path(__file__).with_name("memory_child.py")), name, str(share)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        child, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] <= found["limit"]
    assert found["measured"] <= 1.1 * found["planned"], found
