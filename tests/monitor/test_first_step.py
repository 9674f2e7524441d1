"""The size of the first step is known, if these weights made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb

Between = Callable[[nn.Module], Any]


def first_update(
    tmp_path: Path, kind: Any = torch.optim.SGD, between: Between = lambda model: None, **more: Any
) -> Any:
    """The record of the first step beside |dw| / |w| of its layers, told by copies."""
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)), nn.CrossEntropyLoss()
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    optimizer = kind(model.parameters(), lr=0.05)
    with pb.Monitor(model, loss_fn, tmp_path / "run", optimizer=optimizer, probes=("updates",), **more) as monitor:
        between(model)
        before = [
            torch.nn.utils.parameters_to_vector(layer.parameters()).detach().clone() for layer in (model[0], model[2])
        ]
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
        after = [torch.nn.utils.parameters_to_vector(layer.parameters()).detach() for layer in (model[0], model[2])]
        monitor.step(x, y)
    moved = [float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)]
    found = {r.step: r.values for r in pb.load_run(tmp_path / "run").of("updates")}
    return found.get(1, {}), moved


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_first_step_has_its_size(kind: Any, tmp_path: Path) -> None:
    values, moved = first_update(tmp_path, kind)
    assert list(values["ratio"].values()) == pytest.approx(moved, rel=1e-5)


def reversed_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flip(0))


def drawn_anew(model: nn.Module) -> None:
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})


@pytest.mark.parametrize("between", [reversed_weights, drawn_anew, loaded])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_weights_that_were_put_there_meanwhile_are_no_step(between: Between, kind: Any, tmp_path: Path) -> None:
    values, _ = first_update(tmp_path, kind, between)
    assert not values


def test_where_the_first_step_is_not_due_nothing_is_kept(tmp_path: Path) -> None:
    values, _ = first_update(tmp_path, every=3, budget=None)
    assert not values
