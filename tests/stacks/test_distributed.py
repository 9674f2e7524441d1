"""Models wrapped for several processes: data parallelism without a collective, sharding refused with a way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.stacks import workers
from tests.stacks.processes import in_two_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs torch.distributed and gloo"),
]


@pytest.mark.parametrize(
    "work",
    [
        workers.data_parallel,
        workers.data_parallel_in_a_step,
        workers.data_parallel_compiled,
        workers.fully_sharded_first_version,
        workers.fully_sharded_second_version,
        workers.tensor_parallel,
    ],
    ids=lambda work: work.__name__,
)
def test_in_two_processes(work: Callable[[int], None], tmp_path: Path) -> None:
    in_two_processes(work, tmp_path)
