"""The benchmark of remedies: the truth by outcome, the score and the bookkeeping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

import pullback as pb
from benchmarks.studies.remedies import run, score, truth
from benchmarks.studies.remedies.faults import sound
from benchmarks.studies.remedies.setups import ALL_DATA, DATA, Drawn, described, rates, tiny
from benchmarks.studies.remedies.training import NO_ANSWER, Trained, train
from benchmarks.studies.remedies.truth import Outcomes, compare
from benchmarks.studies.remedies.watching import DOUBLED, _changed, divergence

IRIS, TEACHER = tiny()[0].setup, tiny()[2].setup
SHORT = replace(IRIS, rate=0.03, steps=12)


# The truth.


@pytest.mark.parametrize(
    ("after", "before", "said"),
    [
        ([0.9, 0.95, 0.92], [0.5, 0.6, 0.7], "better"),
        ([0.5, 0.6, 0.7], [0.9, 0.95, 0.92], "worse"),
        ([0.9, 0.95, 0.65], [0.5, 0.6, 0.7], "same"),  # one seed is on the other side
        ([0.90, 0.91, 0.92], [0.87, 0.88, 0.89], "same"),  # three percent
        ([0.015, 0.016, 0.017], [0.0, 0.001, 0.002], "same"),
        ([0.2, 0.21, 0.22], [0.17, 0.175, 0.18], "better"),
        ([-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], "same"),
    ],
)
def test_better_is_more_than_chance(after: list[float], before: list[float], said: str) -> None:
    assert compare(after, before) == said


def test_outcomes_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = Outcomes()
    first = outcomes.skills(SHORT, (0, 1))
    monkeypatch.setattr(truth, "train", lambda *_: pytest.fail("trained twice"))
    assert Outcomes(json.loads(json.dumps(outcomes.known))).skills(SHORT, (0, 1)) == first


@pytest.mark.parametrize(("number", "verdict"), [(1, "rate too low"), (3, "fault")])
def test_the_truth_is_told_by_outcome(number: int, verdict: str) -> None:
    drawn = tiny()[number]
    found = truth.truth(drawn, Outcomes())
    assert (found.verdict, found.broken) == (verdict, True)
    assert max(found.skills) < min(found.twin)
    assert list(found.sweep) == [rate for rate in rates("Adam") if rate in found.sweep]
    if verdict == "fault":
        assert replace(found.setup, untrained="") == replace(sound(drawn), rate=found.setup.rate)


def test_a_fault_that_costs_nothing_is_no_fault() -> None:
    def said(planted: str) -> str:
        return truth.truth(Drawn(0, replace(IRIS, steps=40), planted, 0.5), Outcomes()).verdict

    assert said("losses summed") == "harmless"  # of Adam
    assert said("healthy") == "healthy"


@pytest.mark.parametrize(
    ("skills", "tried"),
    [
        ([0, 0, 0.1, 0.4, 0.8, 0.9, 0.91, 0.9, 0.2, -1, -1], [2, 4, 5, 6, 7, 8, 10]),  # a plateau between tries
        ([0.2, 0.8, 0.81, 0.8, 0.3, 0, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 6, 8, 10]),
        ([0.82, 0.8, 0.81, 0.1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 6, 8, 10]),  # up to the lowest
        ([0, 0, 0, 0, 0, 0, 0, 0, 0.1, 0.3, 0.5], [2, 4, 6, 8, 9, 10]),  # and the highest
        ([0, 0, 0, 0.5, 0.7, 0.9, 0.7, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7, 8, 10]),  # a peak that no first try meets
    ],
)
def test_the_rates_beside_the_best_are_tried(skills: list[float], tried: list[int]) -> None:
    grid = rates("Adam")
    whole = [json.dumps(described(replace(IRIS, rate=rate)), sort_keys=True) for rate in grid]
    outcomes = Outcomes({key: {"0": skill} for key, skill in zip(whole, skills, strict=True)})
    found = truth.swept(IRIS, grid, outcomes)
    assert [grid.index(rate) for rate in found] == tried
    top = max(skills)
    good = [rate for rate, skill in zip(grid, skills, strict=True) if skill >= top - truth.margin([top])]
    assert [rate for rate, skill in found.items() if skill >= top - truth.margin([top])] == good


def test_a_set_up_no_rate_trains_is_set_aside() -> None:
    drawn = Drawn(0, replace(IRIS, steps=1, batch_size=90), "rate", 0.5)
    known = {json.dumps(described(replace(drawn.setup, rate=r)), sort_keys=True): {"0": 0.05} for r in rates("Adam")}
    assert truth.truth(drawn, Outcomes(known)).verdict == "untrainable"


def test_a_divergence_is_dated(tmp_path: Path) -> None:
    setup = replace(TEACHER, rate=30.0, steps=6)
    losses = train(setup, 0, tmp_path / "run").losses
    found = divergence(pb.load_run(tmp_path / "run"), losses)
    assert found is not None
    doubled = found["doubled"]
    assert doubled is not None
    assert not losses[doubled - 1] <= DOUBLED * losses[0]
    assert all(loss <= DOUBLED * losses[0] for loss in losses[: doubled - 1])
    assert divergence(pb.load_run(tmp_path / "run"), losses[: doubled - 1]) is None


# The score.


def a_row(verdict: str, first: str | None = None, did: str = "better", **more: Any) -> dict[str, Any]:
    setup = {"data": more.pop("data", "iris"), "kind": more.pop("kind", "MLP")}
    planted = more.pop("planted", "rate" if verdict.startswith("rate") else "healthy")
    said = None if first is None else {"name": first, "severity": "warning", "change": None}
    row = {"setup": setup, "verdict": verdict, "planted": planted, "first": said, "findings": [], **more}
    return row if first is None else row | {"did": did}


def test_every_number_has_what_it_is_of() -> None:
    rows = [
        a_row("rate too high", "divergence", cause_first=True, divergence={"doubled": 4, "named": 2}),
        a_row("rate too high", "divergence", "same", cause_first=True, divergence={"doubled": 4, "named": 5}),
        a_row("rate too high", "dead-units", "worse", cause_first=False, divergence={"doubled": 40, "named": 42}),
        a_row("rate too low", "not-learning", cause_first=False, data="digits"),
        a_row("fault", planted="sorted by class", divergence={"doubled": 4, "named": None}),
        a_row("healthy", data="digits"),
        a_row("healthy", "dead-units", findings=[{"severity": "info"}] * 2),
        a_row("harmless", "dead-units", planted="raw inputs"),
        a_row("untrainable"),
    ]
    found = {title: score.count(rows, chosen, good) for title, chosen, good, _ in score.QUESTIONS}
    assert list(found.values()) == [(1, 5), (2, 5), (1, 5), (1, 5), (1, 2), (1, 2), (1, 1), (1, 2), (1, 1)]
    assert [score.in_calibration(row) for row in rows].count(True) == 2
    text = score.summary(rows)
    assert "| cause first, with a change that helps | 1 of 4: 25% (5% to 70%) | 0 of 1: 0% (0% to 79%) | 1 of 5" in text
    parts = score.left_out(rows)
    assert "| digits (calibration) | 0 of 1 | 1 of 4 | 1 of 1 | 0 of 1 | 0 of 1 |" in parts
    assert "| MLP (calibration) | 1 of 5 | 0 of 0 | 2 of 5 | 1 of 5 | 1 of 2 |" in parts
    assert {line.split(" | ")[0].lstrip("| ").removesuffix(" (calibration)") for line in parts.splitlines()[2:]} == {
        *DATA,
        *ALL_DATA,
    }
    assert "| sorted by class | 0 of 1 | nothing (1) |" in score.by_fault(rows)
    assert "| rate too high | 1 of 3 |" in score.by_fault(rows)


@pytest.mark.parametrize(("some", "of"), [(0, 7), (3, 11), (9, 9), (40, 41)])
def test_the_interval_is_wilsons(some: int, of: int) -> None:
    expected = binomtest(some, of).proportion_ci(method="wilson")
    assert score.interval(some, of) == pytest.approx((expected.low, expected.high), abs=1e-4)


# The program.


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [replace(tiny()[0], setup=replace(IRIS, steps=4)), replace(tiny()[1], setup=replace(IRIS, steps=4))]
    path = tmp_path / "some.json"
    first = run.run(drawn[:1], path, 1)
    asked: list[int] = []
    plain = run.result
    monkeypatch.setattr(run, "result", lambda each, *known: (asked.append(each.number), plain(each, *known))[1])
    both = run.run(drawn, path, 1)
    assert asked == [1]
    assert both[0] == json.loads(json.dumps(first[0]))
    kept = json.loads(path.read_text())
    assert [row["number"] for row in kept["rows"]] == [0, 1]
    assert kept["environment"]["packages"]["torch"]
    # Another package: rows are made anew, of the trainings that are known. Another benchmark: everything is.
    path.write_text(json.dumps(kept | {"made_by": "other"}))
    rows, known, _ = run.read(path, run.sources())
    assert (rows, known) == ({}, kept["outcomes"])
    path.write_text(json.dumps(kept | {"trained_by": "other"}))
    assert run.read(path, run.sources()) == ({}, {}, 0.0)


def test_a_row_has_what_was_said_and_done(tmp_path: Path) -> None:
    (row,) = run.run([replace(tiny()[2], setup=replace(TEACHER, steps=60))], tmp_path / "some.json", 1)
    assert row["verdict"] == "rate too high"
    assert row["divergence"]["doubled"] <= 3
    assert row["first"] == next(each for each in row["findings"] if each["severity"] != "info")
    assert row["did"] in ("better", "same", "worse")
    assert row["watched_skill"] == row["skills"][0] == NO_ANSWER


def test_a_start_that_is_not_known_of_the_model_is_not_possible() -> None:
    setup = replace(IRIS, kind="RNN", data="digits", activation="tanh", width=8, steps=2, rate=0.01)
    found = truth.Truth(setup, "fault", 0.01, {}, [0.0] * 3, [0.5] * 3)
    first = pb.Finding(
        "vanishing-gradients", "warning", None, (1, 1), {}, "", "", "", change=pb.Change("initialisation", "critical")
    )
    said = _changed(first, Trained(), found, Outcomes())
    assert said["did"] == "not possible"
    assert "critical point" in said["why"]


@pytest.mark.slow
def test_the_small_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a minute on one core; the truth of each set-up is what it was made for."""
    run.main(["--preset", "small", "--out", str(tmp_path), "--processes", "1"])
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["verdict"] for row in rows] == ["healthy", "rate too low", "rate too high", "fault", "fault"]
    assert all(row["watched_skill"] == row["skills"][0] for row in rows)
    assert "error" not in {key for row in rows for key in row}
    assert "cause first" in capsys.readouterr().out
