"""What two processes do with the callbacks: data parallelism in the real trainers, sharded models refused by both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import pullback as pb
from tests.stacks.monitor_workers import sharded_second_version
from tests.stacks.plain import LOSS
from tests.stacks.watched import assert_same_to_the_bit, options, read


def as_launched(rank: int) -> None:
    """What a launcher tells a process about the group, which is there already."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": dist.get_world_size(), "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29_500, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in told.items()})
    warnings.simplefilter("ignore")


def lightning(rank: int, *, folder: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    from pullback.monitor import LightningCallback
    from tests.stacks.test_monitor_lightning import CE, Module, loader, trainer

    as_launched(rank)
    states = []
    for watched in (True, False):
        callbacks = [LightningCallback(folder, CE, **options())] if watched else []
        strategy = DDPStrategy(process_group_backend="gloo")
        fitted = trainer(folder.parent, callbacks, strategy=strategy, devices=2, max_epochs=2)
        fitted.fit(module := Module(), loader(), loader(2))
        states.append([*module.state_dict().values()])
        if watched:
            assert (callbacks[0].monitor is None) == (rank > 0)
    assert_same_to_the_bit(*states)
    if rank == 0:
        read(folder, [2, 4, 6])  # three steps an epoch: each process has half of the batches


def transformers(rank: int, *, folder: Path) -> None:
    from pullback.monitor import TransformersCallback
    from tests.stacks.test_monitor_transformers import gpt2, trainer

    as_launched(rank)
    states = []
    for watched in (True, False):
        callbacks = [TransformersCallback(folder, **options())] if watched else []
        model = gpt2()
        made = trainer(model, folder.parent / "out", callbacks, ddp_backend="gloo")
        assert made.args.world_size == 2
        made.train()
        states.append([*model.state_dict().values()])
        if watched:
            assert (callbacks[0].monitor is None) == (rank > 0)
    assert_same_to_the_bit(*states)
    if rank == 0:
        read(folder, [2, 4, 6])


def refused(rank: int, *, folder: Path) -> None:
    """By every process, when training starts, so that none waits for another."""
    from pullback.monitor import LightningCallback, TransformersCallback

    model = sharded_second_version(rank)
    trainer = SimpleNamespace(is_global_zero=rank == 0)
    state = SimpleNamespace(is_world_process_zero=rank == 0)
    message = "Callback: expected whole parameters on this process, got parameters managed by FSDP"
    with pytest.raises(pb.UnsupportedError, match=message):
        LightningCallback(folder, LOSS).on_train_start(trainer, model)
    with pytest.raises(pb.UnsupportedError, match=message):
        TransformersCallback(folder, LOSS).on_train_begin(None, state, None, model=model)
    assert not folder.exists()


def works(folder: Path) -> list[Callable[[int], None]]:
    """All of the above, in one pair of processes."""
    torch.set_num_threads(1)
    return [
        partial(refused, folder=folder / "refused"),
        partial(lightning, folder=folder / "lightning"),
        partial(transformers, folder=folder / "transformers"),
    ]
