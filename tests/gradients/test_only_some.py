"""Only the weights, or only the biases, of every kind of layer: asked for by name, or because the rest is frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from tests.compare import assert_same
from tests.every_call import check_curvature, check_kernels, check_rows, check_store, check_tangent
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()
N = 4


class Mixed(nn.Module):
    """Layers that take more than one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm, self.bilinear = nn.LSTM(4, 2, batch_first=True), nn.Bilinear(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(x, x, x)[0]
        return self.bilinear(self.lstm(h)[0], h)[:, -1]


def convolutions() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 2, groups=2),
        nn.Tanh(),
        nn.Unflatten(2, (1, 4)),
        nn.Conv2d(4, 2, (1, 2), stride=(1, 2), padding=(0, 1)),
        nn.Tanh(),
        nn.Unflatten(2, (1, 1)),
        nn.Conv3d(2, 3, (1, 1, 2)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
    )
    return model, torch.randn(N, 2, 5)


def transposed() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.ConvTranspose1d(2, 4, 2, groups=2),
        nn.Tanh(),
        nn.Unflatten(2, (1, 3)),
        nn.ConvTranspose2d(4, 2, (1, 2), stride=(1, 2)),
        nn.Unflatten(2, (1, 1)),
        nn.ConvTranspose3d(2, 3, (1, 1, 2)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
    )
    return model, torch.randn(N, 2, 2)


def norms() -> tuple[nn.Module, Tensor]:
    affine = nn.InstanceNorm1d(4, affine=True)
    body = (nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Tanh(), nn.GroupNorm(2, 4), affine, nn.LayerNorm(3), nn.Tanh())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(12, 3)), torch.randn(N, 2, 3)


def linear() -> tuple[nn.Module, Tensor]:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), normed, nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)), torch.randn(
        N, 2, 2
    )


def mixed() -> tuple[nn.Module, Tensor]:
    return Mixed(), torch.randn(N, 3, 4)


KINDS = [convolutions, transposed, norms, linear, mixed]


def made(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = make()
    return model.double().eval(), x.double(), torch.arange(N) % 3


def named(model: nn.Module, which: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if ("bias" in name) == (which == "biases")]


@pytest.mark.parametrize(("make", "which"), thinned(KINDS, ["biases", "weights"]))
def test_every_call(make: Callable[[], tuple[nn.Module, Tensor]], which: str, tmp_path: Path) -> None:
    model, x, y = made(make)
    params = named(model, which)
    check_kernels(model, CE, x, y, params)
    check_tangent(model, x, params)
    check_store(model, CE, (x, y), tmp_path / "store", params)


@pytest.mark.parametrize("which", ["biases", "weights"])
@pytest.mark.parametrize("make", [convolutions, norms])
def test_curvature_and_influence(make: Callable[[], tuple[nn.Module, Tensor]], which: str) -> None:
    model, x, y = made(make)
    check_curvature(model, CE, x, y, named(model, which))


@pytest.mark.parametrize("make", KINDS)
def test_the_rest_is_frozen(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, x, y = made(make)
    for name, p in model.named_parameters():
        p.requires_grad_("bias" in name)
    check_rows(pb.GradientMatrix(model, CE, x, y), reference.gradient_matrix(model, CE, x, y))
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    (first, *_) = pb.ModelView.of(model).parameters
    rows = pb.GradientMatrix(model, CE, x, y, params=[first])
    every = reference.per_sample_gradients(model, CE, x, y)[first]
    assert_same(rows.to_dense(), every.flatten(1))
    assert_same(rows.T @ torch.ones(N, dtype=torch.float64), every.flatten(1).sum(0))
