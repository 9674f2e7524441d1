"""Layers without inputs, outputs, positions or tokens: pruned or optional, without numbers or without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from tests.every_call import check_curvature, check_kernels, check_store, check_tangent
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()
MADE: dict[str, Callable[[nn.ModuleDict, Tensor], Tensor]] = {
    "inputs": lambda m, x: m["none_in"](x[:, :0]) + m["head"](x),
    "outputs": lambda m, x: m["head"](torch.cat([x, m["none_out"](x)], 1)),
    "both sides": lambda m, x: m["head"](x) + m["none_in"](torch.relu(m["none_out"](x))),
    "hidden": lambda m, x: m["none_in"](m["none_out"](x)),
    "positions": lambda m, x: m["other"](x.unsqueeze(1)[:, :0]).sum(1) + m["head"](x),
    "table": lambda m, x: m["head"](torch.cat([x, m["table"]((x[:, 0] > 0).long())], 1)),
    "tokens": lambda m, x: m["words"]((x[:, :0] > 0).long()).sum(1) + m["head"](x),
    "parameter": lambda m, x: m["head"](torch.cat([x, m["free"].weight.expand(len(x), -1)], 1)),
}


class Model(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = MADE[name]
        layers = {"none_in": nn.Linear(0, 3), "none_out": nn.Linear(3, 0), "other": nn.Linear(3, 3)}
        tables = {"table": nn.Embedding(3, 0), "words": nn.Embedding(3, 3), "free": nn.Embedding(1, 0)}
        self.layers = nn.ModuleDict({"head": nn.Linear(3, 3), **layers, **tables})

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.layers, x)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", thinned(tuple(MADE)))
def test_every_call(name: str, tmp_path: Path) -> None:
    model, x, y = Model(name).double(), torch.randn(4, 3, dtype=torch.float64), torch.arange(4) % 3
    check_kernels(model, CE, x, y)
    check_tangent(model, x)
    if name in ("both sides", "positions"):
        check_store(model, CE, (x, y), tmp_path / "store")
        check_curvature(model, CE, x, y)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_samples_are_refused() -> None:
    model, x, y = Model("inputs").double(), torch.randn(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    for call in (pb.backward_kernel, pb.GradientMatrix, pb.sketch_kernel, pb.check_gradients):
        with pytest.raises(pb.InputError, match="`x` with at least one sample, got no data"):
            call(model, CE, x, y)
    with pytest.raises(pb.InputError, match="`x` with at least one sample, got no data"):
        pb.tangent_kernel(model, x)
    for make in (pb.Hessian, pb.GaussNewton, pb.Fisher, pb.curvature_spectrum):
        with pytest.raises(pb.InputError, match="at least one sample"):
            make(model, CE, (x, y))
