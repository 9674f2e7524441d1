"""A warning of the monitor points to the user's own line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import _callers

CE = nn.CrossEntropyLoss()


def warned(call: Any) -> list[tuple[str, int]]:
    """File and line of every warning of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(each.filename, each.lineno) for each in caught if str(each.message).startswith("Monitor")]


def here() -> int:
    return sys._getframe(1).f_lineno


def test_each_way_to_be_warned_points_here(tmp_path: Path) -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
    lines: list[int] = []
    monitor = pb.Monitor(model, CE, tmp_path / "run", probes="light")

    def leap() -> None:
        monitor.step(x, y, loss=2.0)
        lines.append(here() + 1)
        monitor.step(x, y, loss=1e9)

    def not_finite() -> None:
        lines.append(here() + 1)
        monitor.step(x, y, loss=float("nan"))

    def number() -> None:
        lines.append(here() + 1)
        monitor.step(x, y, step=-1)

    def measured() -> None:
        lines.append(here() + 1)
        monitor.measure(torch.full((8, 4), float("nan")), y)

    def logged() -> None:
        lines.append(here() + 1)
        monitor.log("mine", {"object": object()})

    def left() -> None:
        lines.append(here() + 1)
        with pb.Monitor(model, lambda outputs, targets: None, tmp_path / "other", probes="light", budget=None) as other:
            other.step(x, y, loss=1.0)

    calls = (leap, not_finite, number, measured, logged, left)
    found = [each for call in calls for each in warned(call)]
    assert found == [(__file__, line) for line in lines]
    monitor.close()


def test_in_a_trainer_it_is_the_line_that_called_the_trainer(tmp_path: Path) -> None:
    """What is installed beside the package calls it for its user."""
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
    monitor = pb.Monitor(model, CE, tmp_path / "run", probes="light")
    trainer: dict[str, Any] = {}
    code = "def fit(monitor, x, y):\n    monitor.step(x, y, loss=float('nan'))\n"
    exec(compile(code, "/usr/lib/python3/site-packages/trainer/loop.py", "exec"), trainer)
    (found,) = warned(lambda: trainer["fit"](monitor, x, y))
    assert found[0] == __file__
    monitor.close()


def test_where_all_is_installed_it_is_the_nearest_line_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"{_callers.PACKAGE}/monitor/output.py", "/lib/site-packages/a.py", "/lib/site-packages/b.py"]
    monkeypatch.setattr(_callers, "_outwards", lambda _: iter(files))
    assert _callers.users_level() == 2
    monkeypatch.setattr(_callers, "_outwards", lambda _: iter([*files, "/home/me/train.py"]))
    assert _callers.users_level() == 4
    monkeypatch.setattr(_callers, "_outwards", lambda _: iter(files[:1]))
    assert _callers.users_level() == 1
