"""The monitor in two processes: data parallelism without a collective, sharded models through a whole copy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.stacks import monitor_workers
from tests.stacks.processes import assert_in_two_processes
from tests.stacks.watched import read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs torch.distributed and gloo"),
]


def test_two_processes(tmp_path: Path) -> None:
    """The weights of every process are those of a training without a monitor; the first one writes."""
    assert_in_two_processes(monitor_workers.works(tmp_path), tmp_path)
    run = read(tmp_path / "first", [2, 4, 6])
    assert run.meta["model"]["class"] == "Plain"
    run = read(tmp_path / "sharded2", [2, 4, 6])
    assert run.meta["model"]["layers"] == ["first", "norm", "middle", "batch", "head"]
    every = (tmp_path / "every" / "records.jsonl").read_text()
    assert every.count('"probe":"loss"') == 4
    assert every.count('"error":"ValueError: no"') == 1


def test_trainers_in_two_processes(tmp_path: Path) -> None:
    """Both callbacks under data parallelism: the same weights on every process, one record."""
    for package in ("lightning", "transformers", "accelerate"):
        pytest.importorskip(package)
    from tests.stacks import trainer_workers

    assert_in_two_processes(trainer_workers.works(tmp_path), tmp_path)
