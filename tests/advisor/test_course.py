"""What is said of a loss does not change with a constant added to it, unless its smallest value is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback.advisor import course
from pullback.advisor.reading import least_loss
from pullback.advisor.severity import learns
from pullback.runs import RunWriter
from tests.advisor.runs import Line, a_run, found, losses

SGD = {"hessian": 5.0, "limit": 2000.0, "optimizer": "SGD", "learning_rate": 1e-3, "smallest_residual": 0.0}
CURVED = [(step, "sharpness", SGD | {"smallest": smallest}) for step, smallest in ((0, -1.0), (30, -1.0), (900, 0.0))]
SHIFTS = (-1000.0, -3.0, -2.0, 0.0, 0.5, 64.0)
COURSES = {
    "falls": [0.34 - 0.12 * k for k in range(10)],
    "falls at once": [2.0, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25],
    "decays": [2.0 * 0.7**k for k in range(12)],
    "noise": [2.0, 2.125, 1.9375, 2.0625, 2.0, 1.875, 2.125, 2.0],
    "explodes": [-1.0, -1.25, 5.0, 1e3, 1e5, 1e6],
    "rises": [0.25 * k for k in range(9)],
    "short": [1.0, 0.5, 0.25],
    "still": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "steps up": [1.0, 0.875, 1.0, 60.0, 61.0, 59.0, 60.0, 62.0, 60.0],
}


def verdicts(values: list[float], extra: list[Line]) -> list[tuple[str, str]]:
    return [(each.severity, each.name) for each in pb.diagnose(a_run(*losses(*values), *extra, least=None))]


def test_a_levels_error_is_that_of_a_median() -> None:
    """Of normal noise, over draws; one loss alone has no differences to tell it by."""
    drawn = np.random.default_rng(0).normal(size=(2000, 25))
    errors = [course.error_of_level(each) for each in drawn]
    assert math.isclose(float(np.mean(errors)), float(np.std(np.median(drawn, 1))), rel_tol=0.1)
    assert course.error_of_level(drawn[0, :1]) == 0


@pytest.mark.parametrize("course_", COURSES)
def test_shifted_losses_of_every_course_have_the_same_findings(course_: str) -> None:
    """Also of the losses of batches and of epochs, and of held-out ones."""
    values = COURSES[course_]

    def all_of(shift: float, scale: float = 1.0) -> list[tuple[str, str]]:
        moved = [scale * value + shift for value in values]
        lines: list[Line] = [*CURVED, (0, "activations", {"dead": {"a": 0.9}})]
        lines += [(10 * k, "epoch", {"train_loss": v, "test_loss": v + 0.5 * scale}) for k, v in enumerate(moved)]
        lines += [(10 * k, "test", {"loss": shift + scale * abs(k - 2)}) for k in range(len(moved))]
        return verdicts(moved, lines)

    expected = all_of(0.0)
    assert all(all_of(shift) == expected for shift in SHIFTS)
    assert all_of(0.0, 2.0**-20) == expected  # nor has a loss of unknown zero a unit
    assert all_of(-8.0, 2.0**10) == expected


numbers = st.integers(-(2**12), 2**12).map(lambda k: k / 64)


@given(st.lists(numbers, min_size=1, max_size=12), st.integers(-(2**16), 2**16))
def test_any_course_shifted(values: list[float], shift: int) -> None:
    assert verdicts([value + shift for value in values], CURVED) == verdicts(values, CURVED)


def test_what_the_courses_are_called() -> None:
    def named(name: str) -> set[str]:
        return {
            course_ for course_, values in COURSES.items() if (name in dict(map(reversed, verdicts(values, CURVED))))
        }

    assert named("divergence") == {"explodes", "steps up"}
    assert named("learning-rate-too-low") == {"noise", "still"}
    assert named("minimum-plateau") == {"noise", "still", "falls at once", "steps up"}
    assert {course_ for course_, values in COURSES.items() if learns(a_run(*losses(*values), least=None))} == {
        "falls", "falls at once", "decays", "short",
    }  # fmt: skip


def test_a_leap_before_the_first_measurement_needs_the_smallest_loss() -> None:
    """Four numbers, of which the first is far below: so is one of four noisy ones."""
    fell = [(step, "loss", {"loss": loss}) for step, loss in ((20, 650.0), (40, 430.0), (60, 380.0))]
    for least, seen in ((0.0, True), (None, False)):
        start: Line = (1, "start", {"loss": 2.3})
        assert (found("divergence", start, *fell, least=least) is not None) is seen


def test_the_finding_says_what_it_rests_on() -> None:
    exploded = losses(1.0, 0.9, 3.0, 300.0, 1e5)
    for least, words in ((0.0, "above 2 times the first one"), (None, "5 times its changes")):
        finding = found("divergence", *exploded, least=least)
        assert finding is not None
        assert words in finding.threshold
    standing = losses(*COURSES["noise"])
    for least, words in ((0.0, "changes by less than a fifth"), (None, "3 of its changes")):
        finding = found("learning-rate-too-low", *standing, *CURVED, least=least)
        assert finding is not None
        assert words in finding.threshold
    for least, words in ((0.0, "within 1%,"), (None, "of what it fell, or 1.5 of its changes")):
        finding = found("minimum-plateau", *losses(*COURSES["still"]), *CURVED, least=least)
        assert finding is not None
        assert words in finding.threshold
    train, rose = losses(2.3, 0.1), [(step, "test", {"loss": loss}) for step, loss in ((0, 0.5), (10, 1.5))]
    for least, words in ((0.0, "1.5 times its minimum"), (None, "20% of the training loss's fall")):
        finding = found("memorisation", *train, *rose, least=least)
        assert finding is not None
        assert words in finding.threshold


def test_the_smallest_loss_is_believed_as_long_as_no_record_is_below() -> None:
    assert least_loss(a_run(*losses(1.0, 0.0))) == 0
    assert least_loss(a_run(*losses(1.0, -1e-9))) is None
    assert least_loss(a_run(*losses(1.0), (5, "epoch", {"train_loss": -1.0}))) is None
    assert least_loss(a_run(*losses(-3.0), least=-4.0)) == -4
    for bad in ("0", math.nan, None, math.inf):
        assert least_loss(a_run(*losses(1.0), least=bad)) is None  # type: ignore[arg-type]
    # heights above it are what shares are of
    assert learns(a_run(*losses(-1.0, -3.4), least=-4.0))
    assert not learns(a_run(*losses(-1.0, -1.1), least=-4.0))
    assert found("divergence", *losses(-3.0, -3.2, -1.0), least=-4.0) is not None


def noise(n: int, runs: int) -> np.ndarray:
    return torch.randn(runs, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).numpy()


@pytest.mark.parametrize(("n", "falls", "grows"), [(5, 0.08, 0.02), (8, 0.06, 0.015), (20, 0.03, 0.005)])
def test_noise_about_a_level_is_hardly_ever_a_fall_or_a_divergence(n: int, falls: float, grows: float) -> None:
    """Three standard errors above the shares that thresholds.py states, of 1000 runs."""
    runs = noise(n, 1000)
    assert sum(course.fell(each, None) for each in runs) < 1000 * falls
    assert sum(course.growth(each, None) > 1 for each in runs) < 1000 * grows
    assert n < 8 or sum(course.stands(each, None) for each in runs) > 700  # 85 of 100, of quarters of two


@pytest.mark.parametrize("n", [5, 8, 12, 40])
def test_what_falls_evenly_learns_and_what_rises_evenly_does_not_diverge(n: int) -> None:
    line = -0.01 * np.arange(n)
    assert course.fell(line, None)
    assert course.grew(line[::-1], None)
    assert not course.growth(line[::-1], None) > 1
    assert n < 8 or not course.stands(line, None)
    for rate in (0.6, 0.7, 0.95):
        assert not course.stands(rate ** np.arange(8.0), None)


PROBES = ("loss", "updates", "flow", "activations", "sharpness")


class Density(nn.Module):
    """Negative log-density of a normal distribution whose scale is learnt, plus a constant."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        mean, log_scale = outputs.double().unbind(1)
        return ((y - mean) / log_scale.exp()).square() / 2 + log_scale + self.constant


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 1e-7])
def test_a_watched_density_has_the_same_findings_whatever_constant_is_added(rate: float, tmp_path: Any) -> None:
    """Of a loop that learns, its loss from 4 to below -1, and of one whose rate is low."""
    outcomes = []
    for constant in (0.0, -20.0, 40.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        x = torch.randn(64, 3, dtype=torch.float64)
        y, loss_fn = 2 + 0.05 * torch.randn(64, dtype=torch.float64) + x[:, 0], Density(constant)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        folder = tmp_path / str(constant)
        with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, every=15, budget=None, probes=PROBES) as monitor:
            for _ in range(150):
                optimizer.zero_grad()
                loss = loss_fn(model(x), y).mean()
                loss.backward()
                optimizer.step()
                monitor.step(x, y, loss=loss)
        run = pb.load_run(folder)
        assert "least_loss" not in run.meta
        assert not [record.error for record in run.records if record.error]
        outcomes.append(([(each.severity, each.name) for each in pb.diagnose(run)], learns(run)))
        measured = run.series("loss", "loss")[1]
        assert rate < 1e-3 or measured[-1] < constant - 1
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][1]  # the slow one too: how much of its loss is left to lose is not known
    assert "warning" not in {severity for severity, _ in outcomes[0][0]}


def test_measured_losses_that_grew_while_the_loop_s_own_fell_are_no_divergence(tmp_path: Path) -> None:
    """A measurement takes as many samples as can be paid for, the next one others."""
    for name, fall, diverges in (("fell", 1.0, False), ("grew", -20.0, True)):
        with RunWriter(tmp_path / name, {}) as writer:  # of a loss whose smallest value is not known
            for step, loss in zip((1, 2, 4, 6), (0.82, 0.81, 0.8, 3.0), strict=True):
                writer.append(step, "loss", {"loss": loss})
            for step in range(1, 7):
                writer.course.add(step, {"loss": 1.05 - 0.01 * fall * step})
        names = [finding.name for finding in pb.diagnose(tmp_path / name)]
        assert ("divergence" in names) == diverges
