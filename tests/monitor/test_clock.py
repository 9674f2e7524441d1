"""Which steps are measured, by a clock that the test drives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.monitor import session

CHEAP, DEAR = 1.0, 10.0  # seconds a measurement takes


class Clock:
    """Seconds pass where the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def driven(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    steps: int,
    budget: float | None,
    *,
    first: bool = False,
) -> tuple[list[tuple[int, bool]], pb.Monitor]:
    """Step and kind (dear or not) of every measurement of a loop whose steps take ``seconds``."""
    clock, made = Clock(), []
    monkeypatch.setattr(session, "time", SimpleNamespace(perf_counter=clock))
    model, x, y = nn.Linear(2, 2), torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    monitor = pb.Monitor(model, nn.CrossEntropyLoss(), folder, every=1, budget=budget, probes=["loss"])

    def measure(output: Any, step: int, *_: Any, dear: bool) -> None:
        made.append((step, dear))
        clock.now += DEAR if dear else CHEAP

    monkeypatch.setattr(monitor._measurer, "measure", measure)
    if first:
        monitor.measure(x, y)
    for _ in range(steps):
        clock.now += seconds
        monitor.step(x, y)
    monitor.close()
    return made, monitor


def test_time_of_measuring_is_not_unwatched_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cheap one costs 1, a tenth of 10 seconds: four steps of 3.1; with its own second three would do."""
    made, monitor = driven(tmp_path / "run", monkeypatch, 3.1, 21, 0.1)
    assert made == [(1, True), *[(step, False) for step in (2, 3, 4, 5, 9, 13, 17, 21)]]
    assert (monitor.num_measurements, monitor.num_skipped) == (9, 12)
    assert monitor.seconds == pytest.approx(DEAR + 8 * CHEAP)
    costs = pb.load_run(tmp_path / "run").series("cost", "seconds")[1]
    assert costs == [pytest.approx(cost) for cost in (DEAR, *[CHEAP] * 8)]


def test_a_dear_turn_that_cannot_be_afforded_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 8th is dear: 10 seconds ask for 100 since the last dear one, which step 1 ended."""
    made, _ = driven(tmp_path / "run", monkeypatch, 10.5, 12, 0.1)
    # after step k of them 10.5 (k - 1) + (k - 2) seconds have passed since: above 100 from step 10 on, 103.5 at it
    assert made == [(1, True), *[(step, False) for step in range(2, 10)], (10, True), (11, False), (12, False)]


def test_a_dear_measurement_is_no_measure_of_what_a_cheap_one_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a dear one at the 8th turn the next cheap one is due as after a cheap one, and the other way round."""
    made, _ = driven(tmp_path / "run", monkeypatch, 50.0, 40, 0.1)
    assert [step for step, dear in made if dear] == [1, 8]
    assert [step for step, _ in made] == list(range(1, 41))
    made, _ = driven(tmp_path / "slow", monkeypatch, 9.0, 30, 0.1)
    assert [step for step, _ in made] == [*range(1, 6), *range(7, 30, 2)]  # 18 seconds for one that costs 1
    assert [step for step, dear in made if dear] == [1, 13]  # 108 + 8 seconds after step 1


def test_without_a_budget_all_are_made_and_dear_ones_in_their_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, monitor = driven(tmp_path / "run", monkeypatch, 0.001, 70, None)
    assert [step for step, dear in made if dear] == [1, 8, 64]
    assert len(made) == 70
    assert monitor.num_skipped == 0
    made, _ = driven(tmp_path / "first", monkeypatch, 0.001, 10, None, first=True)
    assert [step for step, dear in made if dear] == [0, 1, 8]  # the one before the loop takes no turn
