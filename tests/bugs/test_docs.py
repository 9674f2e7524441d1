"""The Python snippets of the documentation run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import pullback as pb

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["store", "sketches", "scale"])
def test_snippets(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    names = {"torch": torch, "nn": nn, "pb": pb, "model": model, "loss_fn": nn.CrossEntropyLoss(), "x": x, "y": y}
    names["MyModel"] = lambda: nn.Linear(6, 3)
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        snippet = snippet.replace('kernel.interval("blocks.0.fc")', 'kernel.interval("0")')
        exec(compile(snippet, f"{page}.md", "exec"), names | {"dataset": (x, y)})
