"""What the two processes of ``test_group`` do; a failed assertion is reported with its process."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pullback as pb
from pullback import reference
from pullback.functional import take
from pullback.gradients.capture import captured_rows
from pullback.gradients.rows.outer import GhostPiece, OuterFactor
from pullback.kernels.group.ranks import WorkerError
from pullback.kernels.group.workers import Workers
from pullback.kernels.store.kernel_to_store import kernel_to_store
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.kernels.store.child import SAMPLES, TILE, arguments
from tests.kernels.store.test_resume import contents
from tests.stacks.workers import no_collectives

N, CUT = 5, 2  # two samples for rank 0 and three for rank 1; 2 x 3 between two sets, 1 and 1, 1 and 2 of them a rank
LOSS = nn.CrossEntropyLoss()


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@contextmanager
def chosen(form: str, tile: int = 2) -> Iterator[None]:
    """Every layer takes the form, where it has it; tiles are so small that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        pick = lambda factor, *_: form if form in factor.forms else factor.forms[0]
        patch.setattr("pullback.kernels.plan.make.cheapest_form", pick)
        patch.setattr("pullback.kernels.plan.make.TILE_ROWS", tile)
        patch.setattr("pullback.kernels.plan.make.TILE_POSITIONS", 4 * tile)
        patch.setattr("pullback.gradients.rows.factor.Factor.piece_bytes", 1000)
        yield


def on_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def assert_equal_bits(*tensors: Tensor) -> None:
    first, second = on_all_ranks(list(tensors))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "ranks hold different kernels"


@cache
def looped(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The kernel of a case by the loop, and its blocks."""
    model, loss_fn, x, y = build(case_named(name), N)
    return reference.total_kernel(model, loss_fn, x, y), reference.layer_kernels(model, loss_fn, x, y)


def check_case(case: Case, dtype: torch.dtype, form: str) -> None:
    """Symmetric and between two sets, against the loop in float64."""
    model, loss_fn, x, y = build(case, N, dtype)
    expected, layers = looped(case.name)
    size = float(expected.abs().max())
    with chosen(form):
        kernel = pb.backward_kernel(model, loss_fn, x, y, group="world")
        here, there = slice(0, CUT), slice(CUT, N)
        rest = take(x, there), take(y, there)
        cross = pb.backward_kernel(model, loss_fn, take(x, here), take(y, here), x2=rest[0], y2=rest[1], group="world")
    assert kernel.total.dtype == dtype
    assert torch.equal(kernel.total, kernel.total.T)
    for block in kernel.layers.values():
        assert torch.equal(block, block.T)
    assert_same(kernel.total, expected, scale=size)
    assert_same(cross.total, expected[:CUT, CUT:], scale=size)
    assert_equal_bits(kernel.total, cross.total, *kernel.layers.values())
    if dtype == torch.float64:
        for layer, block in layers.items():
            assert_same(kernel.layers[layer], block, scale=size)
        assert_same(torch.stack(list(kernel.parameters.values())).sum(0), expected, scale=size)


def ghost(rank: int) -> None:
    every_case("ghost")


def materialise(rank: int) -> None:
    every_case("materialise")


def fallback(rank: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pullback.gradients.capture.captured_rows.ruled_names", lambda *_: set())
        every_case("fallback")


def every_case(form: str) -> None:
    for place, case in enumerate(CASES):
        check_case(case, torch.float64, form)
        if place % 3 == 0:  # the same code in another dtype
            check_case(case, torch.float32, form)


def tangent(rank: int) -> None:
    """Contractions of outputs, and losses of single tokens."""
    for name in ("mlp", "conv1d", "tied"):
        model, _, x, _ = build(case_named(name), N)
        full = reference.tangent_kernel(model, x)
        expected = {
            "full": full,
            "trace": full.diagonal(dim1=2, dim2=3).sum(2),
            "diagonal": full.diagonal(dim1=2, dim2=3),
        }
        for form in ("ghost", "materialise"):
            for contract, value in expected.items():
                with chosen(form):
                    kernel = pb.tangent_kernel(model, x, contract=contract, group="world")
                    cross = pb.tangent_kernel(
                        model, take(x, slice(0, CUT)), x2=take(x, slice(CUT, N)), contract=contract, group="world"
                    )
                assert_same(kernel.total, value)
                assert_same(cross.total, value[:CUT, CUT:], scale=float(value.abs().max()))
                assert_same(torch.stack(list(kernel.layers.values())).sum(0), value)
                assert_equal_bits(kernel.total, cross.total)
    model, loss_fn, x, y = build(case_named("tokens"), N)
    alone = pb.backward_kernel(model, loss_fn, x, y, per="token")
    shared = pb.backward_kernel(model, loss_fn, x, y, per="token", group="world")
    assert_same(shared.total, alone.total)


def one_case(rank: int) -> None:
    """The least that shows every way of sharing: both forms, both contractions, one sample for two ranks."""
    for form in ("ghost", "materialise"):
        check_case(case_named("mlp"), torch.float64, form)
    model, loss_fn, x, y = build(case_named("mlp"), 3)
    full = reference.tangent_kernel(model, x)
    for contract, expected in (("full", full), ("trace", full.diagonal(dim1=2, dim2=3).sum(2))):
        assert_same(pb.tangent_kernel(model, x, contract=contract, group="world").total, expected)
    kernel = pb.backward_kernel(model, loss_fn, x[:1], y[:1], group="world")
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x[:1], y[:1]))
    assert_equal_bits(kernel.total)


def one_store(rank: int) -> None:
    """A store both ranks fill holds the bytes of one that a process fills alone."""
    [folder, _] = on_all_ranks(tempfile.mkdtemp())
    if rank == 1:  # fills one by itself, in a group of its own
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "is_initialized", lambda: False)
            kernel_to_store(*arguments(), Path(folder) / "alone", tile=TILE, progress=False)
    store = kernel_to_store(*arguments(), Path(folder) / "both", tile=TILE, progress=False)
    assert dist.is_initialized()
    assert store.shape == (SAMPLES, SAMPLES)
    assert contents(Path(folder) / "both") == contents(Path(folder) / "alone")
    ledgers = [(Path(folder) / "both" / f"ledger-{k}.jsonl").read_text() for k in (0, 1)]
    assert all('"block"' in ledger and '"tile"' in ledger for ledger in ledgers)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder)


def a_store_of_two_models(rank: int) -> None:
    """An error in one worker is an error in both; the other is told whose and what."""
    [folder, _] = on_all_ranks(tempfile.mkdtemp())
    model, loss_fn, data = arguments()
    with torch.no_grad():
        model[1].weight.mul_(1 + rank)
    if rank == 1:
        with pytest.raises(pb.InputError, match="expected the weights the store"):
            kernel_to_store(model, loss_fn, data, Path(folder) / "store", tile=TILE, progress=False)
    else:
        said = "expected all 2 workers to finish, got an error in worker 1: InputError: kernel_to_store: expected the w"
        with pytest.raises(WorkerError, match=said):
            kernel_to_store(model, loss_fn, data, Path(folder) / "store", tile=TILE, progress=False)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder)


def the_first_worker_fails(rank: int) -> None:
    workers = Workers("fill", "Begin again")
    said = "fill: expected all 2 workers to finish, got an error in worker 0: OSError: disk full. Begin again."

    def work() -> None:
        with workers.phase():
            if rank == 0:
                raise OSError("disk full")

    with pytest.raises(WorkerError if rank else OSError, match=re.escape(said) if rank else "disk full"):
        work()
    with workers.phase():  # still usable
        pass
    workers.leave()
    assert dist.is_initialized()


def few_samples(rank: int) -> None:
    """Fewer samples than ranks, or one for one of them: a rank without samples still makes tiles."""
    for place, case in enumerate(CASES):
        for count in (1, 3) if place % 3 == 0 else (1,):
            model, loss_fn, x, y = build(case, count)
            kernel = pb.backward_kernel(model, loss_fn, x, y, group="world")
            expected = reference.total_kernel(model, loss_fn, x, y)
            assert_same(kernel.total, expected, scale=max(float(expected.abs().max()), 1e-12))
            assert_equal_bits(kernel.total)


def same_results(rank: int) -> None:
    """Losses, outputs and the plan are those of one process."""
    for name in ("mlp", "tokens", "two_inputs"):
        model, loss_fn, x, y = build(case_named(name), N)
        alone = pb.backward_kernel(model, loss_fn, x, y)
        shared = pb.backward_kernel(model, loss_fn, x, y, group=dist.group.WORLD)
        assert_same(shared.losses, alone.losses)
        assert_same(shared.outputs, alone.outputs)
        assert list(shared.layers) == list(alone.layers)
        assert [layer.parameters for layer in shared.plan.layers] == [layer.parameters for layer in alone.plan.layers]
        v = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert_same(shared @ v, alone @ v)


def the_first_ranks_speed_counts(rank: int) -> None:
    """Machines differ, and their forms with them; all take those of the first, or their collectives would not meet."""
    model, loss_fn, x, y = build(case_named("positions"), N)
    slow = pb.Rates(gemm=1e9 if rank else 1e12, bmm=1e12 if rank else 1e9, stream=1e6 if rank else 1e12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pullback.kernels.group.run_in_group.machine_rates", lambda *_: slow)
        kernel = pb.backward_kernel(model, loss_fn, x, y, group="world")
    plans = on_all_ranks(str(kernel.plan))
    assert plans[0] == plans[1]
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x, y))


def data_parallel(rank: int) -> None:
    """The wrapper's own collectives are not called."""
    model, loss_fn, x, y = build(case_named("mlp"), N)
    expected = reference.total_kernel(model, loss_fn, x, y)
    kernel = pb.backward_kernel(DistributedDataParallel(model), loss_fn, x, y, group="world")
    assert_same(kernel.total, expected)
    with no_collectives():  # blocks that were not exchanged are made by whoever asks
        assert_same(torch.stack(list(kernel.parameters.values())).sum(0), expected)


def work_is_shared(rank: int) -> None:
    """Every rank runs its own samples (and its first and last once more alone), and makes half of the tiles."""
    seen: list[int] = []
    counted = [0]
    capture, tile = captured_rows.capture, GhostPiece.tile

    def capturing(view: Any, readout: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(x))
        return capture(view, readout, x, *args, **kwargs)

    def counting(self: GhostPiece, *args: Any, **kwargs: Any) -> None:
        counted[0] += 1
        tile(self, *args, **kwargs)

    model, loss_fn, x, y = build(case_named("mlp"), 8)
    with chosen("ghost"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pullback.gradients.capture.captured_rows.capture", capturing)
        patch.setattr(GhostPiece, "tile", counting)
        pb.backward_kernel(model, loss_fn, x, y, group="world")
    assert seen == [4, 1]
    assert counted[0] == 15  # of three layers with ten tiles each


def linear_stretches(rank: int) -> None:
    """Of rows that are formed, every rank forms those of half of the outputs, for all samples."""
    model = nn.Linear(3, 6).double()
    x, y = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel(), dtype=torch.float64).view_as(p))
    made: list[tuple[int, int]] = []
    outer = OuterFactor.outer

    def forming(self: Any, index: slice, outputs: slice) -> Tensor:
        if len(range(self.num_samples)[index]) == len(x):
            made.append((outputs.start, outputs.stop))
        return outer(self, index, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OuterFactor, "outer", forming)
        kernel = pb.backward_kernel(model, LOSS, x, y, forms={"weight": "materialise"}, group="world")
    assert made == [(3 * rank, 3 * rank + 3)]
    assert_same(kernel.total, reference.total_kernel(model, LOSS, x, y))


class Routed(nn.Module):
    """A sample goes to one of two experts; the first rank's samples all go to one, the second's to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] > 0).all()):
            return self.experts[0](x)
        if bool((x[:, 0] <= 0).all()):
            return self.experts[1](x)
        return torch.where(x[:, :1] > 0, self.experts[0](x), self.experts[1](x))


def other_paths(rank: int) -> None:
    """Parameters one rank sees unused and another used become rows on both."""
    torch.manual_seed(3)
    model = Routed().double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    x[:, 0] = torch.tensor([1.0, 2.0, -1.0, -2.0])
    kernel = pb.backward_kernel(model, LOSS, x, y, group="world")
    assert_same(kernel.total, reference.total_kernel(model, LOSS, x, y))
    assert {layer.rule for layer in kernel.plan.layers} == {"rows"}
    assert_equal_bits(kernel.total)


class Trimmed(nn.Module):
    """Returns as many outputs as the largest input in the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)[:, : 2 + int(x.max() > 10)]


def other_outputs(rank: int) -> None:
    x = torch.ones(4, 2)
    x[2:] = 11
    torch.manual_seed(0)
    with pytest.raises(pb.InputError, match="the same number of outputs C for all samples, got 2 and 3 on different"):
        pb.tangent_kernel(Trimmed(), x, group="world")


def fails(rank: int, call: Callable[[], Any], own: type[Exception], cause: str) -> None:
    """Rank 1 ends with its own error, which is noted to be its; rank 0 with one that names rank 1 and the cause."""
    if rank == 1:
        with pytest.raises(own, match=cause) as caught:
            call()
        assert caught.value.__notes__ == ["backward_kernel: this was rank 1 of 2."]
    else:
        said = f"backward_kernel: expected all 2 ranks to finish, got an error in rank 1: {own.__name__}: .*{cause}"
        with pytest.raises(WorkerError, match=said):
            call()


def one_rank_fails(rank: int) -> None:
    """In the checks of the data, in the forward pass, in the tiles: nobody waits, and the group can be used again."""
    model, loss_fn, x, y = build(case_named("mlp"), N)
    bad = x.clone()
    if rank == 1:
        bad[4, 0, 0] = float("nan")
    fails(
        rank, lambda: pb.backward_kernel(model, loss_fn, bad, y, group="world"), pb.InputError, "infinity in sample 4"
    )

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if rank == 1:
            raise KeyError("no such thing")
        return F.cross_entropy(outputs, targets, reduction="none")

    fails(rank, lambda: pb.backward_kernel(model, loss, x, y, group="world"), KeyError, "no such thing")

    def raising(*_: Any, **__: Any) -> None:
        if rank == 1:
            raise MemoryError("too much")

    with pytest.MonkeyPatch.context() as patch, chosen("ghost"):
        patch.setattr(GhostPiece, "tile", raising)
        fails(rank, lambda: pb.backward_kernel(model, loss_fn, x, y, group="world"), MemoryError, "too much")
    assert_same(
        pb.backward_kernel(model, loss_fn, x, y, group="world").total, reference.total_kernel(model, loss_fn, x, y)
    )


def a_wrong_tile_is_found(rank: int) -> None:
    """A tile one rank gets wrong, or rows it sums wrongly, fail the check of the sum on all ranks."""
    model, loss_fn, x, y = build(case_named("mlp"), 8)
    tile, outer = GhostPiece.tile, OuterFactor.outer

    def wrong(self: GhostPiece, out: Tensor, *args: Any, **kwargs: Any) -> None:
        tile(self, out, *args, **kwargs)
        if rank == 1:
            out *= 1.001

    def scaled(self: Any, index: slice, outputs: slice) -> Tensor:
        made = outer(self, index, outputs)
        return made * 1.001 if rank == 1 and len(made) == 8 else made  # the checks of single samples see nothing

    for form, changed, name, said in (
        ("ghost", GhostPiece, "tile", "the summed kernel of"),
        ("materialise", OuterFactor, "outer", "the summed gradient of"),
    ):
        with pytest.MonkeyPatch.context() as patch, chosen(form):
            patch.setattr(changed, name, wrong if form == "ghost" else scaled)
            with pytest.raises(pb.SelfCheckError, match=said):
                pb.backward_kernel(model, loss_fn, x, y, group="world")


def different_arguments(rank: int) -> None:
    """Other weights, buffers, data or options on one rank are refused on all of them."""
    model, loss_fn, x, y = build(case_named("conv2d"), N)
    same = pb.backward_kernel(model, loss_fn, x, y, group="world").total
    said = "expected the same {} on all 2 ranks, got others on rank 1 than on rank 0. {}"
    with pytest.raises(pb.InputError, match=said.format("data", "Pass all samples on every rank")):
        pb.backward_kernel(model, loss_fn, x + 1e-9 * rank, y, group="world")
    with pytest.raises(pb.InputError, match=said.format("arguments", "Make the same call on every rank")):
        pb.backward_kernel(model, loss_fn, x, y, params=["0"] if rank else ["0", "3"], group="world")
    with pytest.raises(pb.InputError, match=said.format("arguments", "Make the same call")):
        pb.backward_kernel(model, loss_fn, take(x, slice(0, 4 - rank)), take(y, slice(0, 4 - rank)), group="world")
    for tensor in (model[5].weight, model[1].running_var):
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor[0] *= 1 + rank * 1e-12
        with pytest.raises(pb.InputError, match=said.format("weights", "Broadcast the model from one rank first")):
            pb.backward_kernel(model, loss_fn, x, y, group="world")
        tensor.data.copy_(before)
    assert torch.equal(pb.backward_kernel(model, loss_fn, x, y, group="world").total, same)


def subgroups(rank: int) -> None:
    """A group of one rank is that rank's own business, and None is nobody else's; others are told to stay out."""
    model, loss_fn, x, y = build(case_named("mlp"), N)
    expected = reference.total_kernel(model, loss_fn, x, y)
    only = dist.new_group([1])
    if rank == 1:
        assert_same(pb.backward_kernel(model, loss_fn, x, y, group=only).total, expected)
        with no_collectives():
            assert_same(pb.backward_kernel(model, loss_fn, x, y).total, expected)
    else:
        with pytest.raises(pb.InputError, match="a ProcessGroup this rank belongs to, got the group of other ranks"):
            pb.backward_kernel(model, loss_fn, x, y, group=only)
    both = dist.new_group([0, 1])
    assert_same(pb.backward_kernel(model, loss_fn, x, y, group=both).total, expected)


def refused(rank: int) -> None:
    model, loss_fn, x, y = build(case_named("mlp"), N)
    with pytest.raises(pb.InputError, match="expected `memory_limit` or `group`, not both, got both"):
        pb.backward_kernel(model, loss_fn, x, y, memory_limit=2**30, group="world")
    with pytest.raises(pb.InputError, match="`group` to be None, \"world\" or a ProcessGroup .*, got 'all'"):
        pb.backward_kernel(model, loss_fn, x, y, group="all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,xpu:xccl")
        with pytest.raises(pb.InputError, match="a model on a device of type 'cpu' or 'xpu', .*, got 'meta'"):
            pb.backward_kernel(
                nn.Linear(2, 2, device="meta"), LOSS, torch.ones(2, 2), torch.tensor([0, 1]), group="world"
            )


class Grown(nn.Module):
    """Another rule reads the weight of a batch of one: rows of the two sides are then written down differently."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return self.fc(x)
        return (x.unsqueeze(1) * self.fc.weight).sum(2) + self.fc.bias


def one_against_many(rank: int) -> None:
    """A rank without samples on one side, and rows of another kind on the other."""
    torch.manual_seed(4)
    model = Grown().double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 1])
    kernel = pb.backward_kernel(model, LOSS, x[:1], y[:1], x2=x[1:], y2=y[1:], group="world")
    assert_same(kernel.total, reference.total_kernel(model, LOSS, x, y)[:1, 1:])
    assert {layer.rule for layer in kernel.plan.layers} == {"rows"}
    assert_equal_bits(kernel.total)
