"""What the processes of the distributed tests do; a failed assertion is reported with its process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pullback as pb
from tests.compare import assert_same
from tests.stacks.plain import LAYERS, LOSS, Plain, data, plain, unchanged


@contextmanager
def no_collectives() -> Iterator[None]:
    """Fail if this process takes part in a collective: the group counts them."""
    group = dist.group.WORLD
    before = group._get_sequence_number_for_group()
    yield
    assert group._get_sequence_number_for_group() == before, "a collective was called"


def expected_kernel() -> Tensor:
    return pb.backward_kernel(plain(), LOSS, *data()).total


def train(model: nn.Module, rank: int) -> Tensor:
    """A step on data of this process's own; the loss."""
    x, y = data(seed=10 + rank)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    optimizer.zero_grad()
    loss = LOSS(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def own_gradient(rank: int) -> dict[str, Tensor]:
    """The gradient this process contributes to the mean, from a model that is not wrapped."""
    model = plain().train()
    x, y = data(seed=10 + rank)
    LOSS(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_synchronised(model: nn.Module) -> None:
    """After a step every gradient is the mean over the processes."""
    own = [own_gradient(rank) for rank in range(dist.get_world_size())]
    for name, p in model.named_parameters():
        assert_same(p.grad, torch.stack([gradients[name] for gradients in own]).mean(0), 1e-12)


def data_parallel(rank: int) -> None:
    """The kernel on every process, on one only, and in the middle of a training step."""
    expected, (x, y) = expected_kernel(), data()
    model = DistributedDataParallel(plain())
    with no_collectives(), unchanged(model):
        kernel = pb.backward_kernel(model, LOSS, x, y)
    assert list(kernel.layers) == LAYERS
    assert torch.equal(kernel.total, expected)
    model.zero_grad()
    if rank == 0:
        with no_collectives():
            assert torch.equal(pb.backward_kernel(model, LOSS, x, y).total, expected)
    train(model, rank)
    assert_synchronised(model.module)


def data_parallel_in_a_step(rank: int) -> None:
    """Between the forward and the backward pass of training, where gradients are about to be synchronised."""
    model = DistributedDataParallel(plain())
    x, y = data(seed=10 + rank)
    loss = LOSS(model.train()(x), y)
    model.eval()
    with no_collectives():
        kernel = pb.backward_kernel(model, LOSS, *data())
    assert kernel.total.shape == (6, 6)
    loss.backward()
    assert_synchronised(model.module)


def data_parallel_compiled(rank: int) -> None:
    """Both wrappers around one another."""
    expected, (x, y) = expected_kernel(), data()
    for model in (
        torch.compile(DistributedDataParallel(plain()), backend="eager"),
        DistributedDataParallel(torch.compile(plain(), backend="eager")),
    ):
        with no_collectives():
            kernel = pb.backward_kernel(model, LOSS, x, y)
        assert list(kernel.layers) == LAYERS
        assert torch.equal(kernel.total, expected)


def data_parallel_watched_by_one(rank: int) -> None:
    """A monitor on one process only: training goes on as without it, on both."""
    from pullback.monitor import Monitor
    from pullback.runs import load_run

    watched, alone = (DistributedDataParallel(plain()) for _ in range(2))
    with TemporaryDirectory() as folder:
        monitor = Monitor(watched, LOSS, f"{folder}/run", every=1, probes="full", budget=None) if rank == 0 else None
        for _ in range(3):
            loss = train(watched, rank)
            assert torch.equal(loss, train(alone, rank))
            if monitor is not None:
                with no_collectives():
                    monitor.step(*data(seed=10 + rank), loss=loss)
        if monitor is not None:
            monitor.close()
            assert not [r.error for r in load_run(f"{folder}/run").records if r.error]
    for p, q in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q)


def copied_whole(model: nn.Module) -> nn.Module:
    """The way out for sharded models: the same model built without sharding, filled on every process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    copy = Plain().double().eval()
    copy.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    return copy


def refused(model: nn.Module, kind: str) -> None:
    x, y = data()
    for call in (pb.backward_kernel, pb.GradientMatrix, pb.plan_kernel):
        with (
            no_collectives(),
            pytest.raises(
                pb.UnsupportedError,
                match=rf"{call.__name__}: expected whole parameters on this process, got {kind}.*\. "
                r"Build the model once more without sharding and fill it, on every rank, "
                r"with copy\.load_state_dict\(get_model_state_dict",
            ),
        ):
            call(model, LOSS, x, y)


def fully_sharded_first_version(rank: int) -> None:
    """Refused wrapped, unwrapped and gathered; its whole copy has the right kernel; training goes on."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    expected, losses = expected_kernel(), []
    for originals in (True, False):
        for policy in (None, ModuleWrapPolicy({nn.Linear})):
            model = FullyShardedDataParallel(
                plain(), use_orig_params=originals, auto_wrap_policy=policy, device_id=torch.device("cpu")
            )
            refused(model, "parameters managed by FSDP")
            refused(model.module, "parameters managed by FSDP")
            with FullyShardedDataParallel.summon_full_params(model):
                refused(model, "parameters managed by FSDP")
            assert_same(pb.backward_kernel(copied_whole(model), LOSS, *data()).total, expected, 1e-14)
            losses.append(train(model, rank))
            train(model, rank)
    for loss in losses[1:]:
        assert_same(loss, losses[0], 1e-12)


def fully_sharded_second_version(rank: int) -> None:
    """Refused sharded and gathered; its whole copy has the right kernel; training goes on as without the calls."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh, expected = init_device_mesh("cpu", (dist.get_world_size(),)), expected_kernel()

    def sharded() -> nn.Module:
        model = plain()
        for layer in (model.first, model.middle, model.head):
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    model, untouched = sharded(), sharded()
    refused(model, "parameters managed by FSDP")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    refused(model, "parameters managed by FSDP")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    assert_same(pb.backward_kernel(copied_whole(model), LOSS, *data()).total, expected, 1e-14)
    for _ in range(2):
        assert torch.equal(train(model, rank), train(untouched, rank))
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())
    trained = copied_whole(model)
    assert_same(
        pb.backward_kernel(trained, LOSS, *data()).total,
        pb.backward_kernel(copied_whole(untouched), LOSS, *data()).total,
        1e-14,
    )


def tensor_parallel(rank: int) -> None:
    """A layer split by columns: its parameters are DTensors without any wrapper."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh, expected = init_device_mesh("cpu", (dist.get_world_size(),)), expected_kernel()
    model = plain()
    parallelize_module(model, mesh, {"first": ColwiseParallel()})
    refused(model, "the DTensor `first.weight`")
    assert_same(pb.backward_kernel(copied_whole(model), LOSS, *data()).total, expected, 1e-14)
