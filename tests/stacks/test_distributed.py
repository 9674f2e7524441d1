"""Models wrapped for several processes: data parallelism without a collective, sharding refused with a way out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.stacks import workers
from tests.stacks.processes import assert_in_two_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs torch.distributed and gloo"),
]


def test_data_parallel(tmp_path: Path) -> None:
    works = (
        workers.data_parallel,
        workers.data_parallel_in_a_step,
        workers.data_parallel_compiled,
        workers.data_parallel_watched_by_one,
    )
    assert_in_two_processes(works, tmp_path)


def test_sharded(tmp_path: Path) -> None:
    works = (workers.fully_sharded_first_version, workers.fully_sharded_second_version, workers.tensor_parallel)
    assert_in_two_processes(works, tmp_path)
