"""The examples of docs/monitor.md, as they stand there, each in the package it is about."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pullback as pb
from pullback.modules import MLP

BLOCKS = re.findall(r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "docs/monitor.md").read_text(), re.M | re.S)
FOLDER = re.compile(r'"(runs/\w+)"')
NEEDS = {
    "runs/lightning": ["lightning"],
    "runs/transformers": ["transformers", "accelerate"],
    "runs/board": ["tensorboard", "wandb"],
    "runs/noted": ["tqdm"],
}


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(8)]


def given(name: str) -> dict[str, Any]:
    """What the page calls yours."""
    model = MLP([6, 12, 3])
    names: dict[str, Any] = {"torch": torch, "pb": pb, "model": model, "loss_fn": nn.CrossEntropyLoss()}
    names |= {"batches": batches(), "device": "cpu", "steps_made": 4}
    if name == "runs/lightning":
        names |= {"module": lightning_module(), "batches": DataLoader(batches(), batch_size=None)}
    if name == "runs/transformers":
        from tests.stacks.test_monitor_transformers import gpt2, samples, tokens

        names |= {"language_model": gpt2(), "texts": samples(tokens())}
    if name == "runs/sharded":
        from torch.distributed.fsdp import fully_shard

        names |= {"build_model": lambda: MLP([6, 12, 3]), "sharded_model": (model := fully_shard(MLP([6, 12, 3])))}
    if name == "runs/board":
        import wandb

        names["wandb"] = wandb
    return names | {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def lightning_module() -> Any:
    from tests.stacks.test_monitor_lightning import Module

    return Module()


@pytest.fixture
def in_a_group(tmp_path: Path) -> Any:
    """A group of one process, for the examples that need one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: FOLDER.search(block).group(1))
def test_example(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    name = FOLDER.search(block).group(1)  # type: ignore[union-attr]
    if missing := [package for package in NEEDS.get(name, ()) if find_spec(package) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))  # it remembers the folder it was first used in
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    if name in ("runs/parallel", "runs/sharded"):
        request.getfixturevalue("in_a_group")
    if name == "runs/plain" and "load_run" in block:
        exec(BLOCKS[0], given(name))
    names = given(name)
    exec(block.replace("every=50", "every=2").replace("% 50", "% 2"), names)
    for folder in {each for each in FOLDER.findall(block) if each != "runs/board"}:
        run = pb.load_run(folder)
        assert not [record.error for record in run.records if record.error]
        assert run.steps or "load_run" in block, folder
    for opened in (names.get("board"), names.get("wandb") and names["wandb"].run):
        if opened:
            getattr(opened, "finish", getattr(opened, "close", None))()


def test_every_stack_has_an_example() -> None:
    text = "\n".join(BLOCKS)
    for word in (
        "LightningCallback",
        "TransformersCallback",
        "GradScaler",
        "DistributedDataParallel",
        "resume=",
        "to_wandb",
        "on_finding=",
    ):
        assert word in text
    assert len(BLOCKS) == 13
