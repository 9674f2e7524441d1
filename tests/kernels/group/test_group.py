"""``backward_kernel`` and ``tangent_kernel`` shared by two processes: equal to the loop, and to each other to the bit.

The two-process part of the matrix {float32, float64} x {materialise, ghost, fallback} x {self, cross} x {tiles of
different sizes} x {1, 2 processes}; that of one process is ``tests/kernels/test_matrix.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import pullback as pb
from pullback.functional import ModelView
from pullback.functional.readout import loss_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.capture.joined import without_rows
from pullback.gradients.rows.pieces import share_of
from pullback.kernels.group.same import digest
from tests.cases import CASES, build
from tests.kernels.group import group_works as works
from tests.stacks.processes import assert_in_two_processes

two_processes = pytest.mark.skipif(
    not dist.is_available() or sys.platform != "linux", reason="needs torch.distributed and gloo"
)


@pytest.mark.slow
@two_processes
def test_kernels_of_two_processes(tmp_path: Path) -> None:
    """Every case in every form, symmetric and between two sets; 2 and 3 samples a rank, tiles of 2 samples."""
    every = (works.ghost, works.materialise, works.fallback)
    assert_in_two_processes((*every, works.tangent, works.few_samples), tmp_path)


@pytest.mark.slow
@two_processes
def test_how_two_processes_share(tmp_path: Path) -> None:
    """Who does what, and what happens when they disagree or one of them fails."""
    shared = (works.same_results, works.work_is_shared, works.linear_stretches, works.other_paths, works.data_parallel)
    shared += (works.one_against_many, works.the_first_ranks_speed_counts)
    failing = (works.one_rank_fails, works.a_wrong_tile_is_found, works.other_outputs)
    refusing = (works.different_arguments, works.subgroups, works.refused)
    assert_in_two_processes((*shared, *failing, *refusing), tmp_path)


@two_processes
def test_two_processes_in_short(tmp_path: Path) -> None:
    """What can be shared, and what goes wrong, by one case each; the rest of the cases is slow."""
    shared = (works.one_case, works.work_is_shared, works.linear_stretches, works.other_paths)
    shared += (works.the_first_ranks_speed_counts, works.one_store)
    failing = (works.one_rank_fails, works.a_wrong_tile_is_found, works.other_outputs, works.a_store_of_two_models)
    refusing = (works.the_first_worker_fails, works.different_arguments, works.subgroups, works.refused)
    assert_in_two_processes((*shared, *failing, *refusing), tmp_path, "fork")


def test_without_a_process_group() -> None:
    model, loss_fn, x, y = build(CASES[0], 3)
    said = "expected torch.distributed to be initialised, as `group` was given, got a process on its own. Start the"
    with pytest.raises(pb.InputError, match=f"backward_kernel: {said} ranks with torchrun"):
        pb.backward_kernel(model, loss_fn, x, y, group="world")
    with pytest.raises(pb.InputError, match=f"tangent_kernel: {said}"):
        pb.tangent_kernel(model, x, group="world")


def test_shares_cover_all_samples() -> None:
    for count in (1, 5, 12):
        for ranks in (1, 2, 3, 7):
            shares = [share_of(count, rank, ranks) for rank in range(ranks)]
            assert [i for share in shares for i in range(count)[share]] == list(range(count))
            sizes = [share.stop - share.start for share in shares]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_digest_sees_every_bit(dtype: torch.dtype) -> None:
    """Changed, moved and exchanged numbers change it; the layout in memory does not."""
    t = torch.arange(15).view(3, 5).to(dtype)
    found = digest([t])
    assert digest([t.T.contiguous().T]) == found
    changed = t.clone()
    changed[2, 4] = 0
    moved = t.flatten()[1:3].flip(0) if dtype != torch.bool else torch.tensor([False, True])
    assert len({found, digest([changed]), digest([t, t]), digest([moved]), digest([moved.flip(0)])}) == 5


def test_a_rank_without_samples_holds_rows_of_none() -> None:
    model, loss_fn, x, y = build(CASES[0], 3)
    captured = capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test")
    for left, right in zip(without_rows(captured).factors, captured.factors, strict=True):
        assert (left.num_samples, left.num_outputs, left.shapes) == (0, right.num_outputs, right.shapes)
