"""What the processes of the monitor's distributed tests do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pullback as pb
from tests.stacks.plain import LOSS, Plain, data, plain
from tests.stacks.watched import options, read
from tests.stacks.workers import copied_whole, no_collectives

STEPS = 6


def train(model: nn.Module, rank: int, watch: Callable[[int, Tensor, Tensor, Tensor], None] | None = None) -> Tensor:
    """Steps on data of this process's own; ``watch`` is called after each. All weights and losses in one vector."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    losses = []
    for step in range(1, STEPS + 1):
        x, y = data(seed=10 * step + rank)
        model.train()
        optimizer.zero_grad()
        loss = LOSS(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if watch is not None:
            watch(step, x, y, loss)
    return torch.cat([*(local(p) for p in model.parameters()), torch.stack(losses)])


def local(p: Tensor) -> Tensor:
    whole: Tensor = p.to_local() if hasattr(p, "to_local") else p  # type: ignore[operator]
    return whole.detach().flatten().clone()


def watched_on_every_process(rank: int, *, folder: Path) -> None:
    """The same line on all: the first writes, the others count, no process calls another."""
    model, alone = (DistributedDataParallel(plain()) for _ in range(2))
    monitor = pb.Monitor(model, LOSS, folder, **options())

    def watch(step: int, x: Tensor, y: Tensor, loss: Tensor) -> None:
        with no_collectives():
            monitor.step(x, y, loss=loss)
        assert monitor.num_steps == step

    found = train(model, rank, watch)
    with no_collectives():
        monitor.measure(*data())
        monitor.log("epoch", {"number": 1})
        monitor.log_error("mine", ValueError("no"))
    monitor.close()
    assert torch.equal(found, train(alone, rank))
    assert monitor.num_measurements == (4 if rank == 0 else 0)
    assert monitor.num_lost == 0


def watched_on_the_first_process(rank: int, *, folder: Path) -> None:
    """A monitor on one process only does not make it wait."""
    model, alone = (DistributedDataParallel(plain()) for _ in range(2))
    monitor = pb.Monitor(model, LOSS, folder, **options()) if rank == 0 else None

    def watch(step: int, x: Tensor, y: Tensor, loss: Tensor) -> None:
        if monitor is not None:
            with no_collectives():
                monitor.step(x, y, loss=loss)

    assert torch.equal(train(model, rank, watch), train(alone, rank))
    if monitor is not None:
        monitor.close()


def models_of_their_own(rank: int, *, folder: Path) -> None:
    """Without a wrapper every process has a model of its own, and a record of its own."""
    with pb.Monitor(plain(), LOSS, folder / str(rank), **options()) as monitor:
        for _ in range(2):
            monitor.step(*data())
    read(folder / str(rank), [2])


def sharded_first_version(rank: int) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(plain(), use_orig_params=True, device_id=torch.device("cpu"))


def sharded_second_version(rank: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, model = init_device_mesh("cpu", (dist.get_world_size(),)), plain()
    for layer in (model.first, model.middle, model.head):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded(rank: int, *, folder: Path, make: Callable[[int], nn.Module]) -> None:
    """Refused before the first step; watched through a whole copy, as the refusal says."""
    model, alone = make(rank), make(rank)
    message = r"Monitor: expected whole parameters on this process, got parameters managed by FSDP.*Build the model"
    with no_collectives(), pytest.raises(pb.UnsupportedError, match=message):
        pb.Monitor(model, LOSS, folder)
    assert not folder.exists()
    dist.barrier()

    copy = Plain().double()
    monitor = pb.Monitor(copy, LOSS, folder, **options()) if rank == 0 else None

    def watch(step: int, x: Tensor, y: Tensor, loss: Tensor) -> None:
        if step % 2 == 0:
            copy.load_state_dict(copied_whole(model).state_dict())  # on every process
        if monitor is not None:
            with no_collectives():
                monitor.step(x, y, loss=loss)

    assert torch.equal(train(model, rank, watch), train(alone, rank))
    if monitor is not None:
        monitor.close()
        run = read(folder, [2, 4, 6])
        x, y = data(seed=10 * STEPS + rank)
        expected = pb.backward_kernel(copy.eval(), LOSS, x, y).losses.mean()
        assert run.series("loss", "loss")[1][-1] == pytest.approx(float(expected), rel=1e-12)


def works(folder: Path) -> list[Callable[[int], None]]:
    """All of the above, in one pair of processes."""
    return [
        partial(watched_on_every_process, folder=folder / "every"),
        partial(watched_on_the_first_process, folder=folder / "first"),
        partial(models_of_their_own, folder=folder / "own"),
        partial(sharded, folder=folder / "sharded1", make=sharded_first_version),
        partial(sharded, folder=folder / "sharded2", make=sharded_second_version),
    ]
