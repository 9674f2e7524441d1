"""What ``on_finding`` is told stands: nothing of trainings that go well, whatever their kind; of others it comes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.monitor import findings as told


class Tokens(nn.Module):
    """Features as tokens, group norm, a depthwise convolution and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(1, 16), nn.Parameter(0.1 * torch.randn(13, 16))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=1, groups=16) for _ in range(3))
        self.values, self.gates = (nn.ModuleList(nn.Linear(16, 16) for _ in range(3)) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[..., None]) + self.place
        for norm, conv, value, gate in zip(self.norms, self.convs, self.values, self.gates, strict=True):
            mixed = conv(norm(h.transpose(1, 2))).transpose(1, 2)
            h = h + F.mish(value(mixed)) * gate(mixed).sigmoid()
        return self.head(h.mean(1))


def smoothed(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, label_smoothing=0.1)


def kind_of(name: str) -> tuple[nn.Module, Any, Tensor, Tensor]:
    """A model, its loss, and data of which it learns most."""
    torch.manual_seed(0)
    y = torch.arange(180) % 3
    clouds = torch.randn(180, 13) + 3.0 * F.one_hot(y, 13)
    if name == "tokens":
        return Tokens(), smoothed, clouds, y
    if name == "numbers":
        model = nn.Sequential(nn.Linear(13, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
        return model, nn.MSELoss(), clouds, (clouds[:, :3] @ torch.tensor([[1.0], [-1.0], [0.5]])).tanh()
    pictures = torch.randn(180, 1, 6, 6) + torch.randn(3, 1, 6, 6)[y]
    convs = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    return convs, nn.CrossEntropyLoss(), pictures, y


def told_of(
    folder: Path, name: str, rate: float, steps: int = 140, dead: bool = False
) -> tuple[dict[str, int], pb.Run]:
    """What ``on_finding`` is told of so many steps, and when first."""
    model, loss_fn, x, y = kind_of(name)
    if dead:
        nn.init.constant_(model[1].bias, -50.0)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    got: dict[str, int] = {}
    with (
        warnings.catch_warnings(),
        pb.Monitor(
            model, loss_fn, folder, optimizer=optimizer, on_finding=lambda f: got.setdefault(f.name, m.num_steps)
        ) as m,
    ):
        warnings.simplefilter("ignore")
        for _ in range(steps):
            chosen = torch.randint(0, 180, (32,))
            optimizer.zero_grad()
            loss = loss_fn(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            m.step(x[chosen], y[chosen], loss=loss)
    return got, pb.load_run(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate"), [("tokens", 0.05), ("numbers", 0.05), ("pictures", 0.01)])
def test_of_a_training_that_goes_well_nothing_is_told(name: str, rate: float, tmp_path: Path) -> None:
    """Though looks at the first measurements have findings above "info"; and one that goes wrong is told."""
    got, run = told_of(tmp_path / "well", name, rate)
    assert got == {}
    assert not [each.name for each in pb.diagnose(run) if each.severity != "info"]
    wrong, _ = told_of(tmp_path / "wrong", name, 1e3, 20)
    assert wrong
    assert min(wrong.values()) <= 2 ** (told.HELD - 1)


@pytest.mark.slow
def test_units_that_are_off_are_told_as_soon_as_they_have_lasted(tmp_path: Path) -> None:
    got, run = told_of(tmp_path / "dead", "pictures", 0.01, 400, dead=True)
    first = next(f for f in pb.diagnose(run) if f.name == "dead-units").steps[0]
    assert first + told.STEPS <= got["dead-units"] <= first + told.STEPS + 100
