"""Which steps are measured, on how many samples, and at what work: by counting alone."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback.monitor import Schedule
from pullback.monitor.budget import CHEAP, DEAR, END, Budget
from pullback.monitor.measuring import HandedOver
from pullback.monitor.plan import ENOUGH, FEWEST, LEAST, Plan, cheap_part, cheap_passes, dear_parts, most_samples, works
from pullback.monitor.probes import PRESETS, PROBES, Observation, Probe
from pullback.monitor.probes.work import KERNEL_FIRST, Work
from pullback.monitor.schedule import is_sparse_turn
from pullback.monitor.turns import Turns

CE = nn.CrossEntropyLoss()
SHARPNESS = Work(60.0, fixed=80.0, most=64)


def watched(every: int, share: float | None, steps: int, batch: int, each: float = 1.5) -> tuple[list[int], Turns]:
    """Steps that are measured in a training whose probes make ``each`` passes a sample beside the kernel's."""
    turns, of, made = Turns(Schedule(every, share), ["sharpness"]), [Work(each)], []
    passes = lambda n: cheap_passes(of, n, first=not made)
    for step in range(1, steps + 1):
        turns.budget.train(batch, 1)
        if turns.schedule.is_due(step):
            least = min(LEAST, batch)
            allowed = turns.allowed(step, batch, passes, least + KERNEL_FIRST * (not made), least)
            if allowed is None:
                turns.leave_out(step)
                continue
            turns.begin(step)
            count, without = cheap_part({"each": of[0]}, allowed, 0.0, batch, first=not made)
            if not count:
                turns.spend(Plan(0, batch), turn=True)
                continue
            cheap = cheap_passes([] if without else of, count, first=not made)
            left = min(allowed.dear, allowed.most - cheap)
            dear, work, waiting = dear_parts({"sharpness": SHARPNESS}, allowed.wanted, left, batch)
            turns.spend(Plan(count, batch, dear, allowed.extras, cheap, work, waiting, without), turn=True)
            made.append(step)
    return made, turns


def test_first_steps_in_powers_of_two_then_multiples() -> None:
    due = lambda every, share: [step for step in range(1, 161) if Schedule(every, share).is_due(step)]
    assert due(50, 0.05) == [1, 2, 4, 8, 16, 32, 50, 100, 150]
    assert due(16, 0.05)[:7] == [1, 2, 4, 8, 16, 32, 48]
    assert due(3, 0.05)[:5] == [1, 2, 3, 6, 9]
    assert due(1, 0.05)[:4] == [1, 2, 3, 4]
    assert due(50, None) == [50, 100, 150]
    assert Schedule(50, 0.05).is_due(40, last=20)  # 32 is passed
    assert not Schedule(50, 0.05).is_due(49, last=33)
    for share in (0.05, None):
        schedule = Schedule(20, share)
        assert [schedule.following(step) for step in range(160)] == [
            next(later for later in range(step + 1, 200) if schedule.is_due(later)) for step in range(160)
        ]
    assert [m for m in range(1, 600) if is_sparse_turn(m)] == [1, 8, 64, 512]
    for bad in (0, -1, 2.5, True):
        with pytest.raises(pb.InputError, match="`every` as a whole number from 1"):
            Schedule(bad)  # type: ignore[arg-type]
    for wrong in (0, 1.5, -1):
        with pytest.raises(pb.InputError, match="`budget` above 0 and at most 1"):
            Schedule(1, budget=wrong)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.sampled_from([1e-9, 0.001, 0.05, 0.3, 1.0]), st.integers(1, 3000), st.integers(1, 300))
def test_no_gap_is_too_long(every: int, share: float, steps: int, batch: int) -> None:
    """Of ``every`` steps, or later a fifth of those made; the early powers of two are all made: if there is a pass."""
    made, turns = watched(every, share, steps, batch)
    least = min(LEAST, batch)
    # what must not be left out, on the fewest samples, and the end
    sure = KERNEL_FIRST + (2 + Schedule(every, share).num_sure(0, steps)) * least * 2.5
    start = min(20, 400 * share) * batch
    if sure <= max(start, 0.0) and sure <= start * 0.3:
        early = [2**k for k in range(12) if 2**k < every and 2**k <= steps]
        assert made[: len(early)] == early
        for step, following in zip([0, *made], [*made, steps + 1], strict=True):
            assert following - step <= max(every, step // 5)
    assert turns.left_out + len(made) == len([s for s in range(1, steps + 1) if turns.schedule.is_due(s)])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120), st.sampled_from([1e-9, 0.01, 0.05, 0.2]), st.integers(1, 3000), st.integers(1, 600),
    st.sampled_from([0.0, 1.5, 40.0]),
)  # fmt: skip
@example(1, 0.01, 900, 1, 0.0)  # the first one is at the last step, for all that may be spent by then
def test_the_budget_is_never_exceeded(every: int, share: float, steps: int, batch: int, each: float) -> None:
    """However few samples a batch has, and whatever probes ask for; the end has what it needs.

    Only a first measurement, made as soon as there is enough for it, may take all there is: the start comes first.
    """
    made, turns = watched(every, share, steps, batch, each)
    start = min(20, 400 * share) * batch
    assert turns.budget.work <= max(share * turns.budget.training, start) + 1e-9
    assert turns.budget.dear <= DEAR * start + 0.2 * share * turns.budget.training + 1e-9
    if len(made) > 1:
        assert turns.at_end(min(LEAST, batch)) is not None


def test_five_percent_of_the_work_from_500_steps_on() -> None:
    for batch in (1, 2, 3, 4, 7, 8, 32, 64, 512):
        for steps in (500, 1500, 5000):
            _, turns = watched(50, 0.05, steps, batch)
            assert turns.budget.work <= 0.05 * turns.budget.training
        _, turns = watched(50, 0.05, 20, batch)
        assert turns.budget.work <= 20 * batch


def test_fewer_samples_before_any_is_left_out() -> None:
    made, turns = watched(50, 0.05, 1500, 32)
    assert turns.left_out == 0
    assert turns.fewer_samples > 0
    made, turns = watched(1, 0.05, 1500, 32)
    assert turns.left_out > 1000
    gaps = [b - a for a, b in pairwise(made) if a > 500]
    assert max(gaps) <= 2 * min(gaps)  # thinned evenly


def test_without_a_budget_all_are_made_with_all_samples_and_dear_ones_in_their_turns() -> None:
    made, turns = watched(1, None, 70, 100)
    assert made == list(range(1, 71))
    assert (turns.left_out, turns.fewer_samples) == (0, 0)
    assert turns.budget.dear == 3 * SHARPNESS.of(64)  # the 1st, 8th and 64th


def test_a_dear_probe_that_cannot_be_afforded_waits() -> None:
    for batch, first in ((16, None), (32, 1), (512, 1)):
        turns = Turns(Schedule(50, 0.05), ["sharpness"])
        at = None
        for step in range(1, 2001):
            turns.budget.train(batch, 1)
            if turns.schedule.is_due(step) and at is None:
                allowed = turns.allowed(step, batch, float)
                assert allowed is not None
                dear, work, waiting = dear_parts({"sharpness": SHARPNESS}, allowed.wanted, allowed.dear, batch)
                turns.spend(Plan(batch, batch, dear, dearer=work, waiting=waiting), turn=True)
                at = step if dear else None
        assert (at == first) if first else (at is not None and at > 400)  # 4 samples of 16 are 20 steps' worth
    assert turns.summary()["put_off"] == []


def test_parts_of_the_budget() -> None:
    budget = Budget(0.05)
    assert pytest.approx(1) == CHEAP + END + DEAR
    budget.train(10, 100)
    assert (budget.settled, budget.work) == (400, 0.0)
    assert budget.cheap_left() == pytest.approx(0.25 * 200)
    assert budget.cheap_left(end=True) == pytest.approx(0.3 * 200)
    assert budget.dear_left() == pytest.approx(0.7 * 200)
    budget.train(10, 900)  # 500 passes may be made, 300 more than at the start
    budget.cheap, budget.dear, budget.asked = 1.0, 2.0, 4.0
    assert budget.cheap_left() == pytest.approx(50 + 0.8 * 300 - 1)
    assert budget.dear_left() == pytest.approx(140 + 0.2 * 300 - 2)
    assert budget.work == 7.0
    assert Budget(0.001).settled == 400
    assert Budget(1.0).settled == 20


def test_plans() -> None:
    of = {"a": Work(10.0, fixed=5.0, most=8), "b": Work(), "c": Work(1.0)}
    assert dear_parts(of, "abc", 60.0, 20) == ({"a": 5, "b": 20, "c": 5}, 60.0, ())
    assert dear_parts(of, "abc", 44.0, 20) == ({"b": 20, "c": 20}, 20.0, ("a",))  # 3 samples are too few
    assert dear_parts(of, "a", 35.0, 3) == ({"a": 3}, 35.0, ())  # there are no more
    for passes in (0.0, 3.0, 7.5, 100.0):
        slow = max((n for n in range(31) if cheap_passes([Work(2.0, most=9)], n, first=True) <= passes), default=0)
        assert most_samples([Work(2.0, most=9)], passes, 30, first=True) == slow

    def broken(_: Observation) -> Work:
        raise ZeroDivisionError

    probes = [Probe("x", None, work=broken), Probe("y", None, work=Work(2.0)), Probe("z", None, at_start=True)]  # type: ignore[arg-type]
    assert works(probes, None) == {"x": Work(), "y": Work(2.0)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probes", "asked", "budget"), [("light", "auto", 0.05), (["loss"], "auto", 0.05), ("light", 0.2, 0.2)]
)
def test_the_budget_that_is_asked_for(tmp_path: Path, probes: Any, asked: Any, budget: float) -> None:
    model = nn.Linear(4, 3)
    with pb.Monitor(model, CE, tmp_path / "run", probes=probes, budget=asked) as monitor:
        assert monitor.schedule.budget == budget
    assert pb.load_run(tmp_path / "run").meta["settings"]["budget"] == budget
    with pytest.raises(pb.InputError, match="`budget` as a share, \"auto\" or None, got 'all'"):
        pb.Monitor(model, CE, tmp_path / "other", budget="all")


def loop(folder: Path, steps: int, batch: int = 32, ending: BaseException | None = None, **options: Any) -> pb.Run:
    """A small training that is watched, and what ended it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(batch, 6), torch.arange(batch) % 3
    leaves: Any = nullcontext() if ending is None else pytest.raises(type(ending))
    with leaves, pb.Monitor(model, CE, folder, optimizer=optimizer, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
        if ending is not None:
            raise ending
    return pb.load_run(folder)


def test_measurements_that_are_left_out_are_counted(tmp_path: Path) -> None:
    with pb.Monitor(nn.Linear(6, 3), CE, tmp_path / "run", every=1, probes="light", budget=0.01) as monitor:
        for _ in range(40):
            monitor.step(torch.ones(8, 6), torch.arange(8) % 3)
    (schedule,) = pb.load_run(tmp_path / "run").of("schedule")
    assert monitor.num_skipped == schedule.values["left_out"] > 0
    assert monitor.num_skipped + monitor.num_measurements == 40


def test_the_default_sees_the_start_and_the_end(tmp_path: Path) -> None:
    run = loop(tmp_path / "run", 70, probes="light")
    assert run.series("loss", "loss")[0] == [1, 2, 4, 8, 16, 32, 50, 70]
    assert run.course("loss")[0].tolist() == list(range(1, 71))
    (end,), (schedule,) = run.of("end"), run.of("schedule")
    assert (end.step, end.values) == (70, {"steps": 70, "error": None})
    assert schedule.values["training_work"] == 70 * 32
    assert schedule.values["work"] == pytest.approx(sum(run.series("work", "passes")[1]))
    assert schedule.values["work"] <= 20 * 32
    assert schedule.values["left_out"] == 0
    assert run.series("kernel", "num_samples") == ([], [])
    counts = run.series("work", "num_samples")[1]
    assert all(FEWEST <= count <= 32 for count in counts)
    assert schedule.values["fewer_samples"] == sum(count < 32 for count in counts)


@pytest.mark.parametrize("ending", [ZeroDivisionError("mine"), KeyboardInterrupt(), SystemExit(3), None])
def test_the_end_is_measured_however_the_loop_leaves(ending: BaseException | None, tmp_path: Path) -> None:
    run = loop(tmp_path / "run", 7, ending=ending, every=5, probes="light", budget=None)
    assert run.series("loss", "loss")[0] == [5, 7]
    (end,) = run.of("end")
    said = {"ZeroDivisionError": "ZeroDivisionError: mine", "SystemExit": "SystemExit: 3", "NoneType": None}
    assert end.values == {"steps": 7, "error": said.get(type(ending).__name__, "KeyboardInterrupt")}


def test_an_end_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    run = loop(tmp_path / "run", 10, every=5, probes="light", budget=None)
    assert run.series("loss", "loss")[0] == [5, 10]
    run = loop(tmp_path / "none", 0, every=5)
    assert not list(run.of("end"))
    assert not list(run.of("cost"))


def test_the_end_that_fails_is_said_and_the_record_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.monitor.measuring import Measurer

    real = Measurer.measure

    def measure(self: Measurer, output: Any, step: int, seen: HandedOver, allowed: Any) -> Plan:
        if step == 7:
            raise ZeroDivisionError
        return real(self, output, step, seen, allowed)

    monkeypatch.setattr(Measurer, "measure", measure)
    with pytest.warns(UserWarning, match="`close` failed"):
        run = loop(tmp_path / "run", 7, every=5, probes="light", budget=None)
    assert run.series("loss", "loss")[0] == [5]
    assert run.course("loss")[0].tolist() == list(range(1, 8))


def test_a_budget_that_pays_nothing_measures_nothing_and_says_so(tmp_path: Path) -> None:
    run = loop(tmp_path / "run", 30, budget=1e-9, every=10, probes="light")
    assert run.series("loss", "loss") == ([], [])
    (schedule,) = run.of("schedule")
    assert schedule.values["left_out"] == len([1, 2, 4, 8, 10, 20, 30])  # of which the last is the end
    assert schedule.values["work"] == 0
    assert len(run.course("loss")[0]) == 30


@pytest.mark.parametrize("probes", ["light", "standard", "full"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_budget_holds_for_small_batches_and_all_probes(probes: str, batch: int, tmp_path: Path) -> None:
    """What batches are read by is counted too; what cannot be paid is left out, the start and the end are not."""
    run = loop(tmp_path / "run", 40, batch=batch, every=10, probes=probes)
    (schedule,) = run.of("schedule")
    assert 0 < schedule.values["work"] <= 20 * batch
    measured = run.series("loss", "loss")[0]
    assert measured[0] == 1
    if (batch, probes) != (1, "full"):
        assert measured[-1] == 40
    assert len(measured) + schedule.values["left_out"] == len([1, 2, 4, 8, 10, 20, 30, 40])
    if batch >= 8:
        assert schedule.values["left_out"] == 0
    if probes == "full":
        assert set(schedule.values["without"]) <= {"tangent", "effective_lr", "activations"}
        assert schedule.values["without"]["tangent"] > 0


def test_looking_at_a_loss_that_is_not_finite_is_counted(tmp_path: Path) -> None:
    model, batch = nn.Linear(6, 3), 32
    x, y = torch.randn(batch, 6), torch.arange(batch) % 3
    with pytest.warns(UserWarning, match="is nan"), pb.Monitor(model, CE, tmp_path / "run", probes="light") as monitor:
        for _ in range(300):
            monitor.step(x, y, loss=float("nan"))
    run = pb.load_run(tmp_path / "run")
    (schedule,), bad = run.of("schedule"), list(run.of("not_finite"))
    assert bad[0].values["outputs"] == []
    looked = sum("outputs" in record.values for record in bad)
    passes = sum(run.series("work", "passes")[1])
    assert schedule.values["work"] == pytest.approx(passes + looked * batch / 2)
    assert schedule.values["work"] <= 20 * batch


def test_every_probe_of_the_presets_says_what_it_costs() -> None:
    assert {name for name in PRESETS["full"] if PROBES[name].work == Work()} == {
        "loss", "gradients", "updates", "kernel", "noise", "alignment", "classes", "flow", "inputs", "targets",
        "samples",
        "initialisation", *set(PROBES) - set(PRESETS["full"]),
    }  # fmt: skip
    assert ENOUGH >= FEWEST


def test_dear_probes_take_no_more_than_is_left_of_all() -> None:
    """20 steps of 32 samples at the start: 640 passes, of which cheap probes took all but 40."""
    budget = Budget(0.05)
    budget.train(32, 400)
    assert budget.dear_left() == pytest.approx(DEAR * 640)
    budget.cheap = 600.0
    assert budget.dear_left() == pytest.approx(40.0)
