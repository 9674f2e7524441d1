"""Findings on learning rate and loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import pullback as pb
from pullback.runs import Record, Run
from tests.advisor.runs import LEARNS, STUCK, Line, a_run, found, losses, severities
from tests.advisor.threshold_rows import in_order

SGD = {"hessian": 30.0, "limit": 20.0, "optimizer": "SGD", "learning_rate": 0.1}
ADAM = {"hessian": 30.0, "limit": 2000.0, "optimizer": "Adam", "learning_rate": 1e-3}


def test_learning_rate_too_high_by_the_limit_of_the_optimiser() -> None:
    """S0-18: judged by the Hessian, not by the kernel."""
    finding = found("learning-rate-too-high", (50, "sharpness", SGD))
    assert finding is not None
    assert (finding.severity, finding.steps) == ("warning", (50, 50))
    assert "below 0.0667" in finding.action  # 2 / 30
    momentum = SGD | {"limit": (2 + 2 * 0.9) / 0.1, "momentum": 0.9}
    assert found("learning-rate-too-high", (50, "sharpness", momentum)) is None  # its limit is 38
    finding = found("learning-rate-too-high", (50, "sharpness", momentum | {"hessian": 76.0}))
    assert finding is not None
    assert "below 0.05" in finding.action  # where 3.8 / lr = 76
    assert found("learning-rate-too-high", (50, "sharpness", SGD | {"optimizer": "RMSprop"})) is None
    assert found("learning-rate-too-high", *[(s, "sharpness", SGD | {"hessian": 9.0}) for s in (1, 2)]) is None
    assert severities("learning-rate-too-high", (50, "sharpness", SGD)) == (None, "warning")  # once: it hovers there
    assert severities("learning-rate-too-high", *[(s, "sharpness", SGD) for s in (1, 50)]) == ("info", "warning")


def test_a_rate_that_killed_the_units_is_told_by_the_first_measurement() -> None:
    """Afterwards there is no curvature, and no update: neither is a sign of too low a rate."""
    curvature = [(0, "sharpness", SGD), *[(step, "sharpness", SGD | {"hessian": 0.0}) for step in (20, 40, 60)]]
    stuck = losses(2.31, 2.30, 2.31, 2.30, 2.30)
    finding = found("learning-rate-too-high", *curvature, *stuck)
    assert finding is not None
    assert (finding.severity, finding.steps) == ("warning", (0, 0))
    assert found("learning-rate-too-high", *curvature, *LEARNS) is None  # an edge that training has left behind
    assert found("learning-rate-too-low", *curvature, *stuck) is None
    off = {"dead": {"0": 1.0}, "saturated": {"0": 1.0}, "kind": {"0": "relu"}, "width": {"0": 64}}
    dead = [(step, "activations", off) for step in (0, 20)]
    faint = [(step, "sharpness", SGD | {"hessian": 0.5}) for step in (20, 40)]
    assert found("learning-rate-too-low", *faint, *stuck, *dead) is None
    assert found("learning-rate-too-low", *faint, *stuck) is not None


def test_one_step_that_wrecked_a_run_is_told_whenever_it_came() -> None:
    """What it killed has no gradient: the steps after it are short, as those before it were."""
    sizes = [(1, 0.0085), (2, 0.0085), (4, 0.013), (8, 0.07), (16, 1.7), *[(step, 4e-4) for step in range(32, 400, 16)]]
    stuck = losses(*[2.30] * 8, 5.1, 2.5, *[2.30] * 40)
    steps = [(step, "updates", {"median": size}) for step, size in sizes]
    finding = found("learning-rate-too-high", *steps, *stuck)
    assert finding is not None
    assert finding.evidence["|dw| / |w|"] == 1.7
    assert finding.change == pb.Change("learning_rate", 0.1)  # steps before it were not too long
    calm = [(step, "updates", {"median": min(size, 0.4)}) for step, size in sizes]
    assert found("learning-rate-too-high", *calm, *stuck) is None
    learnt = losses(*[2.30] * 8, 5.1, 2.5, *[2.30 - 0.05 * k for k in range(40)])
    assert found("learning-rate-too-high", *steps, *learnt) is None


def test_a_loss_that_leapt_before_the_first_measurement() -> None:
    """It falls from then on, which would read as learning."""
    fell = [
        (step, "loss", {"loss": loss, "batch_loss": loss}) for step, loss in ((20, 650.0), (40, 430.0), (60, 380.0))
    ]
    assert found("divergence", *fell) is None
    finding = found("divergence", (1, "start", {"batch_loss": 2.3}), *fell)
    assert finding is not None
    assert finding.evidence["first loss"] == 2.3
    assert found("divergence", (1, "start", {"batch_loss": 800.0}), *fell) is None


def test_adam_is_judged_by_the_preconditioned_hessian() -> None:
    assert found("learning-rate-too-high", (50, "sharpness", ADAM | {"hessian": 1e6})) is None
    limit = {"preconditioned": 60_000.0, "preconditioned_limit": (2 + 2 * 0.9) / ((1 - 0.9) * 1e-3)}  # 38 / lr
    finding = found("learning-rate-too-high", (50, "sharpness", ADAM | limit))
    assert finding is not None
    assert "below 0.000633" in finding.action  # 38 / 60000
    assert found("learning-rate-too-high", (50, "sharpness", ADAM | limit | {"preconditioned": 30_000.0})) is None


def test_learning_rate_too_low() -> None:
    slow = losses(2.30, 2.29, 2.28, 2.27, 2.26)
    flat = [(step, "sharpness", SGD | {"hessian": 0.5}) for step in (0, 40)]
    finding = found("learning-rate-too-low", *slow, *flat)
    assert finding is not None
    assert finding.severity == "warning"
    assert "towards 2" in finding.action  # half of 2 / 0.5
    assert found("learning-rate-too-low", *slow, flat[0]) is None
    assert found("learning-rate-too-low", *slow, *[(s, "sharpness", SGD | {"hessian": 5.0}) for s in (0, 40)]) is None
    assert found("learning-rate-too-low", *losses(2.3, 2.0, 1.0, 0.5, 0.2), *flat) is None
    assert found("learning-rate-too-low", *losses(2.3, 2.3, 2.4, 2.8, 3.0), *flat) is None
    assert found("learning-rate-too-low", *losses(2.30, 2.32, 2.29, 2.30, 2.31), *flat) is not None  # noise of batches
    small = [(step, "updates", {"median": 1e-7}) for step in (0, 40)]
    finding = found("learning-rate-too-low", *slow, *small)
    assert finding is not None
    assert finding.evidence["median |dw| / |w|"] == 1e-7
    assert finding.evidence["|dw| / |w|, all steps together"] == pytest.approx(4e-6)  # of 40
    assert finding.action == "Raise the learning rate tenfold"
    assert found("learning-rate-too-low", *slow, (0, "updates", {"median": 1e-3})) is None


def test_divergence_comes_first() -> None:
    flow = {"verdict": "vanishing", "slope": -2.0, "gradient_norm": {"a": 0.001, "b": 0.1, "c": 1.0}}
    records = a_run((50, "flow", flow), (60, "loss", {"loss": math.inf}))
    assert [f.name for f in pb.diagnose(records)] == ["divergence", "vanishing-gradients"]
    failed = Run(Path("run"), {}, (Record(9, 0.0, "loss", {}, "InputError: expected a finite loss for every sample"),))
    assert pb.diagnose(failed)[0].severity == "critical"
    assert found("divergence", (9, "epoch", {"train_loss": math.nan})) is not None


@pytest.mark.parametrize(("probe", "metric"), [("loss", "loss"), ("loss", "batch_loss"), ("epoch", "train_loss")])
def test_divergence_in_progress_and_its_direction(probe: str, metric: str) -> None:
    course = [(10 * place, probe, {metric: value}) for place, value in enumerate((2.3, 1.9, 3.0, 9.0))]
    flows = [
        (step, "flow", {"gradient_norm": {"a": 1.0, "b": norm, "c": 2.0}}) for step, norm in ((0, 1.0), (30, 50.0))
    ]
    finding = found("divergence", *course, *flows, (30, "sharpness", SGD))
    assert finding is not None
    assert (finding.severity, finding.layer, finding.steps) == ("critical", "b", (30, 30))
    assert finding.evidence["lowest loss"] == 1.9
    assert "along the sharpest direction" in finding.threshold
    assert "below 0.0667" in finding.action
    finding = found("divergence", *course, flows[0])
    assert finding is not None
    assert finding.layer is None
    assert "clip gradients" in finding.action


def test_a_falling_or_noisy_loss_is_no_divergence() -> None:
    assert found("divergence", *LEARNS) is None
    assert found("divergence", *losses(2.3, 1e-6, 1e-4, 1.0)) is None  # far above its minimum, below where it began
    assert found("divergence", *losses(2.3)) is None


def test_a_loss_that_leaps_is_named_within_three_steps() -> None:
    """Also where no measurement saw it."""
    course = [2.3] * 10 + [2.3 * 1.5**k for k in range(40)]
    run = a_run((1, "kernel", {"num_samples": 5}), loss=course)
    doubled = next(k for k, loss in enumerate(course, start=1) if loss > 2 * course[0])
    named = next(k for k in range(1, len(course)) if any(f.name == "divergence" for f in pb.diagnose(run.until(k))))
    assert named - doubled <= 3
    assert not any(f.name == "divergence" for f in pb.diagnose(run.until(doubled - 1)))


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_divergence(seed: int) -> None:
    """Losses of single samples, with tails: one in twenty is three times the mean or more."""
    noise = np.random.default_rng(seed).exponential(1.0, 300)
    course = (noise * np.linspace(2.0, 0.5, 300)).tolist()
    known = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
    assert [f.name for f in pb.diagnose(a_run(known, (299, "kernel", {}), loss=course)) if f.severity != "info"] == []


def test_a_loss_that_leapt_and_came_back_to_one_answer_for_all() -> None:
    """Adam at a rate thirty times too high: no curvature is left, and updates are small."""
    course = [2.3, 9.0, 40.0, 60.0, 30.0, 9.0, 4.0] + [2.31] * 60
    known = (1, "loss", {"loss": 2.3, "constant_loss": 2.3})
    first = pb.diagnose(a_run(known, (60, "kernel", {}), loss=course))[0]
    assert first.name == "learning-rate-too-high"
    assert first.change == pb.Change("learning_rate", 0.1)
    assert [
        f.name for f in pb.diagnose(a_run(known, (60, "kernel", {}), loss=[2.3, 9.0, 40.0, 9.0] + [0.2] * 60))
    ] == []


def test_a_loss_that_first_rose_by_less_than_a_leap() -> None:
    """For a tenth of the steps, in a run that falls short; not where it then learns, nor where the order does it."""

    def said(*records: Line, rise: float = 1.6, end: float = 1.2, steps: int = 20) -> list[tuple[str, object]]:
        known = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
        course = [2.0] + [2.0 * rise] * steps + [end] * (199 - steps)
        run = a_run(known, (199, "kernel", {}), *records, loss=course)
        return [(f.name, f.change) for f in pb.diagnose(run) if f.severity != "info" and not f.because]

    assert said() == [("learning-rate-too-high", pb.Change("learning_rate", 0.3))]
    assert said(rise=1.1) == said(end=0.4) == said(steps=5) == []
    assert [name for name, _ in said(*in_order(20))] == ["data-not-shuffled"]


def test_updates_as_long_as_the_weights() -> None:
    """A collapsed transformer: the loss never leapt, and nothing is learnt."""
    known = (1, "loss", {"loss": 3.2, "constant_loss": 3.2})
    large = [(step, "updates", {"median": size}) for step, size in ((2, 0.3), (4, 0.2), (60, 0.002))]
    first = pb.diagnose(a_run(known, *large, loss=[3.3] * 30 + [3.2] * 40))[0]
    assert (first.name, first.steps[0]) == ("learning-rate-too-high", 1)
    assert first.change is not None
    assert first.change.value == pytest.approx(0.01 / 0.3)


def test_weights_that_have_travelled_are_not_held_back_by_their_rate() -> None:
    known = (1, "loss", {"loss": 3.2, "constant_loss": 3.2})
    flat = [(step, "sharpness", SGD | {"hessian": 0.5}) for step in (1, 60)]
    far = [(step, "updates", {"median": 0.05}) for step in (2, 30, 60)]
    near = [(step, "updates", {"median": 1e-4}) for step in (2, 30, 60)]
    course = [3.2] * 70
    assert found("learning-rate-too-low", known, *flat, *far, loss=course) is None
    assert found("learning-rate-too-low", known, *flat, *near, loss=course) is not None


def barely_moved(update: float, *more: Line, loss: float = 2.3) -> Run:
    """Sixty steps of a loss that stays, their relative updates measured five times."""
    lines = [(step, "updates", {"median": update}) for step in (1, 2, 4, 30, 60)]
    return a_run(*lines, *more, loss=[loss - 1e-4 * k for k in range(60)])


def test_weights_that_barely_moved_have_a_rate_too_low() -> None:
    (finding,) = [f for f in pb.diagnose(barely_moved(1e-4)) if f.name == "learning-rate-too-low"]
    assert finding.change is not None
    assert (finding.change.kind, finding.change.value) == ("learning_rate", pytest.approx(0.5 / 6e-3))
    assert finding.action == "Raise the learning rate 83 times"
    assert "learning-rate-too-low" not in {f.name for f in pb.diagnose(barely_moved(3e-3))}


def test_adams_first_curvature_says_nothing_of_the_rate() -> None:
    """Of the second moments of one batch the preconditioned curvature is far too large, whatever the rate."""
    first = (1, "sharpness", {"learning_rate": 1e-5, "preconditioned": 4e6, "preconditioned_limit": 1e6})
    names = {f.name: f for f in pb.diagnose(barely_moved(1e-4, first))}
    assert "learning-rate-too-high" not in names
    assert names["learning-rate-too-low"].change.value > 80
    assert "learning-rate-too-high" not in {f.name for f in pb.diagnose(barely_moved(3e-3, first))}
    beyond = (40, *first[1:])
    assert "learning-rate-too-high" in {f.name for f in pb.diagnose(barely_moved(3e-3, beyond))}
    later = (40, "sharpness", first[2] | {"preconditioned": 1e5})
    limited = {f.name: f for f in pb.diagnose(barely_moved(1e-4, later))}
    assert limited["learning-rate-too-low"].change.value == pytest.approx(2.5)


def test_layers_behind_dead_units_stand_still_without_crawling() -> None:
    """A rate far too high has killed the units of most layers; the outputs go on, with steps as long as before."""
    first = (0, "sharpness", SGD)

    def told(ratios: dict[str, float]) -> dict[str, pb.Finding]:
        median = sorted(ratios.values())[len(ratios) // 2]
        lines = [(step, "updates", {"median": median, "ratio": ratios}) for step in (1, 2, 4, 30, 60)]
        return {f.name: f for f in pb.diagnose(a_run(first, *lines, loss=[2.3 - 1e-4 * k for k in range(60)]))}

    killed = told({"a": 0.0, "b": 0.0, "outputs": 0.02})
    assert killed["learning-rate-too-high"].severity == "warning"
    assert killed["learning-rate-too-high"].change == pb.Change("learning_rate", 0.25 * 20 / 30)
    assert "learning-rate-too-high" not in told({"a": 1e-5, "b": 1e-5, "outputs": 1e-4})


def test_the_variance_of_few_targets_is_that_of_many() -> None:
    """Of four samples the mean square about their own mean is a quarter too small: an answer for all seems better."""
    values = {"loss": 0.7, "form": "squared", "constant_loss": 0.75}
    measured = [(step, "loss", values) for step in range(1, 6)]
    targets = [(step, "targets", {"num_samples": 4}) for step in range(1, 6)]
    course = [1.0] * 20 + [0.75] * 40
    assert "not-learning" in {f.name for f in pb.diagnose(a_run(*measured, loss=course))}
    assert "not-learning" not in {f.name for f in pb.diagnose(a_run(*measured, *targets, loss=course))}


def course(rate: float, steps: int = 80, lowest: float = 0.0) -> list[float]:
    """A loss that falls from one answer's, 2, towards its lowest, by so much a step."""
    return [lowest + (2.0 - lowest) * math.exp(-rate * k) for k in range(steps)]


def test_weights_that_barely_moved_and_a_loss_that_still_falls() -> None:
    """Although training works: a third and more of one answer's loss is left, and no training moves weights less."""

    def told(shown: list[float], way: float) -> pb.Finding | None:
        updates = [(step, "updates", {"median": way / 80}) for step in (2, 20, 80)]
        return found("learning-rate-too-low", (1, "loss", {"loss": 2.0, "constant_loss": 2.0}), *updates, loss=shown)

    finding = told(course(0.012), 0.01)
    assert finding is not None
    assert (finding.severity, finding.change) == ("warning", pb.Change("learning_rate", 50.0))  # half of their size
    assert told(course(0.012), 0.2) is None
    assert told(course(0.05), 0.01) is None  # little is left
    assert told(course(0.2, lowest=0.9), 0.01) is None  # nothing falls any more
    quick = told(course(0.012), 0.09)
    assert quick is not None
    assert quick.change == pb.Change("learning_rate", 10.0)


def test_a_rate_that_throws_weights_far_out_is_too_high_although_something_is_learnt() -> None:
    """Where much is left: a leap, or first steps of half the weights' size; not where all is learnt after it."""

    def told(shown: list[float], update: float = 0.05) -> pb.Finding | None:
        lines = [(1, "loss", {"loss": 2.0, "constant_loss": 2.0}), (2, "updates", {"median": update})]
        return found("learning-rate-too-high", *lines, loss=shown)

    leaps = [2.0, 2.0, *[4000.0] * 4]
    finding = told(leaps + [1.0] * 60)
    assert finding is not None
    assert (finding.severity, finding.change) == ("warning", pb.Change("learning_rate", 0.1))
    assert told(leaps + [0.1] * 60) is None
    wild = told([2.0] * 4 + [1.0] * 60, 0.5)
    assert wild is not None
    assert (wild.severity, wild.change) == ("warning", pb.Change("learning_rate", 0.1))
    assert told([2.0] * 4 + [0.1] * 60, 0.5) is None
    both = told(leaps + [1.0] * 60, 0.5)
    assert both is not None
    assert both.change == pb.Change("learning_rate", 0.02)


def test_steps_that_killed_the_units_of_every_layer_are_too_long_although_skips_carry_on() -> None:
    def killed(*shares: tuple[float, float], left: float = 1.0) -> pb.Finding | None:
        units = [
            (step, "activations", {"dead": {"a": a, "b": b}}) for step, (a, b) in zip((1, 4, 9), shares, strict=True)
        ]
        return found(
            "learning-rate-too-high", (0, "loss", {"constant_loss": 2.0}), *units, loss=[2.0] * 20 + [left] * 20
        )

    alive, dead = (0.1, 0.2), (0.9, 0.6)
    finding = killed(alive, dead, dead)
    assert finding is not None
    assert (finding.severity, finding.steps, finding.because) == ("warning", (2, 9), ())
    assert finding.change == pb.Change("learning_rate", 0.1)
    assert killed(alive, alive, dead) is None  # not in half of the measurements
    assert killed(dead, dead, dead) is None  # from the start: no step did it
    assert killed(alive, (0.9, 0.4), (0.9, 0.4)) is None  # a layer alone
    assert killed(alive, dead, dead, left=0.5) is None  # hardly anything is left to learn


def test_the_worst_of_several_curvatures_is_told() -> None:
    """Whichever step it stands at."""
    for order in ((30.0, 90.0, 45.0), (90.0, 45.0, 30.0)):
        lines = [(10 * k, "sharpness", SGD | {"hessian": hessian}) for k, hessian in enumerate(order)]
        finding = found("learning-rate-too-high", *lines, *STUCK)
        assert finding is not None
        assert (finding.evidence["sharpness"], finding.steps) == (90.0, (0, 20))


def test_one_batch_that_stands_out_at_the_end_does_not_make_a_slow_loss_one_that_grew():
    short = [(step, "updates", {"median": 1e-5}) for step in (1, 2, 4, 8)]
    level = [2.9 - 0.001 * k for k in range(99)]
    answer = (1, "loss", {"loss": 2.9, "constant_loss": 2.3})
    for last in (2.8, 3.9):
        assert found("learning-rate-too-low", answer, *short, loss=[*level, last]) is not None
    assert found("learning-rate-too-low", answer, *short, loss=[*level, *[3.9] * 20]) is None


@pytest.mark.parametrize(("share", "tokens", "said"), [(0.86, False, True), (0.86, True, False), (0.94, True, True)])
def test_of_tokens_most_of_one_answer_s_loss_is_left_for_long(share: float, tokens: bool, said: bool) -> None:
    """Steps that are short beside the weights, and a loss that falls: of classes it would have fallen further."""
    known = {"loss": 1.0, "constant_loss": 2.0, "form": "cross-entropy"}
    seen = [(1, "targets", {"counts": {"0": 60, "1": 60}}), *[(k, "loss", known) for k in (1, 2, 4)]]
    moved = [(step, "updates", {"median": 0.004}) for step in (2, 16, 80)]
    course = [2.4] * 20 + [level for part in (0.6, 0.9, 1.0) for level in [2 - (2 - 2 * share) * part] * 20]
    assert (found("learning-rate-too-low", *seen[tokens:], *moved, loss=course) is not None) is said
