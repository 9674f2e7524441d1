"""Which modules have a mode, by their settings; which errors of torch are put into words, and which go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.functional.differentiable import forward_derivatives
from pullback.functional.modes import mode_dependent
from pullback.modules.activations import Elementwise
from pullback.modules.composed_activations import of_module


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def encoder(dropout: float) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout)


MODULES: dict[str, tuple[nn.Module, str | None]] = {
    "dropout": (nn.Dropout(0.1), "`Dropout`"),
    "dropout of nothing": (nn.Dropout(0.0), None),
    "spatial dropout, inside": (nn.Sequential(nn.ReLU(), nn.Dropout2d(0.5)), "`1` (Dropout2d)"),
    "recurrent": (nn.LSTM(3, 3, 2, dropout=0.2), "`LSTM`"),
    "recurrent without": (nn.LSTM(3, 3, 2), None),
    "attention": (nn.MultiheadAttention(4, 2, dropout=0.2), "`MultiheadAttention`"),
    "attention without": (nn.MultiheadAttention(4, 2), None),
    "batch norm": (nn.BatchNorm1d(3), "`BatchNorm1d`"),
    "batch norm of the batch alone": (nn.BatchNorm1d(3, track_running_stats=False), None),
    "instance norm": (nn.InstanceNorm1d(3), None),
    "instance norm that tracks": (nn.InstanceNorm1d(3, track_running_stats=True), "`InstanceNorm1d`"),
    "an encoder, by its layers": (encoder(0.1), "`self_attn` (MultiheadAttention)"),
    "an encoder without": (encoder(0.0), None),
    "one's own": (Reads(), "`Reads`"),
    "one's own without": (Plain(), None),
    "linear": (nn.Linear(3, 3), None),
}


@pytest.mark.parametrize("name", MODULES)
def test_which_modules_have_a_mode(name: str) -> None:
    model, expected = MODULES[name]
    assert mode_dependent(model.train()) == expected
    assert mode_dependent(model.eval()) is None


@pytest.mark.parametrize("hook", ["forward", "pre"])
def test_a_hook_that_reads_the_mode(hook: str) -> None:
    def reads(module: nn.Module, *_: Any) -> None:
        assert module.training or not module.training

    layer = nn.Linear(3, 3)
    getattr(layer, "register_forward_hook" if hook == "forward" else "register_forward_pre_hook")(reads)
    assert mode_dependent(layer) == "`Linear`"


def test_errors_of_other_kinds_go_on() -> None:
    with pytest.raises(RuntimeError, match=r"^of the user's own$"), forward_derivatives("test"):
        raise RuntimeError("of the user's own")
    with pytest.raises(ValueError, match="no number"), forward_derivatives("test"):
        raise ValueError("no number")
    words = "derivative for aten::made_up is not implemented"
    with pytest.raises(pb.UnsupportedError, match="^test: expected"), forward_derivatives("test"):
        raise RuntimeError(words)


def test_a_function_by_its_name_only_if_it_is_torch_s() -> None:
    """Another function of the same name is itself."""

    def tanh(x: Tensor) -> Tensor:
        return x / (1 + x.abs())

    assert of_module(Elementwise(torch.tanh)) == "tanh"
    assert of_module(Elementwise(tanh)) is tanh
    own = lambda x: x.sin()
    assert of_module(Elementwise(own)) is own
    assert of_module(nn.Tanh()) is None
