"""The examples of docs/controllers.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pullback as pb
from pullback.modules import MLP

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "docs/controllers.md").read_text(), re.M | re.S
)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"pb\.(\w+)", block).group(1))
def test_example(block: str) -> None:
    torch.manual_seed(0)
    model, data = MLP([6, 12, 3]), TensorDataset(torch.randn(300, 6), torch.arange(300) % 3)
    names = {"pb": pb, "torch": torch, "model": model, "loss_fn": nn.CrossEntropyLoss(), "data": data}
    names |= {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "batches": [data[:48], data[48:]]}
    before = [p.clone() for p in model.parameters()]
    exec(block, names)
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert names["controller"].num_measurements == 1


def test_every_controller_has_an_example() -> None:
    assert [re.search(r"pb\.(\w+)", block).group(1) for block in BLOCKS] == ["CurvatureLR"]  # type: ignore[union-attr]
