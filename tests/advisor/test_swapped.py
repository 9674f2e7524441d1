"""Losses of forms that nothing knows: what is learnt is told by whose outputs suit a sample, its own or another's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.advisor.severity import learns, tells_apart
from pullback.runs import Run
from tests.advisor.runs import Line, a_run
from tests.advisor.test_own_runs import learn

AT_ONCE = [0.8] + [0.3 + 0.01 * (k % 3 - 1) for k in range(99)]  # falls in the first step, then stands
FALLS = [2.0 - 0.015 * k for k in range(100)]


def swapped(own: float, others: float, *more: Line, course: list[float], count: int = 8, scatter: float = 0.02) -> Run:
    measured = [
        (12 * k, "loss", {"loss": own * (1 + scatter * (k % 2)), "swapped_loss": others * (1 + scatter * (k % 2))})
        for k in range(1, count + 1)
    ]
    return a_run(*measured, *more, least=None, loss=course)


@pytest.mark.parametrize(
    ("others", "course", "works"),
    [(0.9, AT_ONCE, True), (0.3, AT_ONCE, False), (0.305, AT_ONCE, False), (2.4, FALLS, True), (0.51, FALLS, False)],
)
def test_a_fall_counts_where_others_outputs_do_worse(others: float, course: list[float], works: bool) -> None:
    """Whether it took one step or all of them: a run may learn all there is in a step, or lose all its units."""
    run = swapped(course[-1], others, course=course)
    assert learns(run) is tells_apart(run) is works


@pytest.mark.parametrize("others", [0.9, 0.305])
def test_what_is_added_to_every_loss_changes_nothing(others: float) -> None:
    moved = swapped(60.3, 60.0 + others, course=[60.0 + value for value in AT_ONCE], scatter=0.0)
    assert learns(moved) is learns(swapped(0.3, others, course=AT_ONCE, scatter=0.0))


def test_a_loss_that_grew_is_not_learnt_although_others_do_worse() -> None:
    run = swapped(9.0, 30.0, course=[1.0 + 0.2 * k for k in range(100)])
    assert tells_apart(run)
    assert not learns(run)


def test_few_or_no_measurements_leave_the_fall_to_decide() -> None:
    assert tells_apart(swapped(0.3, 0.3, course=FALLS, count=4)) is None
    assert learns(swapped(0.3, 0.3, course=FALLS, count=4))
    assert tells_apart(a_run(least=None, loss=FALLS)) is None
    later = [(step, "loss", {"loss": 0.3}) for step in range(97, 120)]  # of no loss near 0 is another one told
    assert tells_apart(swapped(0.3, 0.3, *later, course=FALLS)) is None


def test_gains_that_scatter_as_widely_as_they_are_large_leave_the_fall_to_decide() -> None:
    """A network that begins to learn late has gains of nothing, nothing, and much."""
    gains = (0.0, 0.0, 0.0, 0.0, -0.01, -0.04, 0.03, 0.2, 0.8)
    late = [(12 * k, "loss", {"loss": 1.0, "swapped_loss": 1.0 + gain}) for k, gain in enumerate(gains, 1)]
    for course, works in ((FALLS, True), ([1.0] * 100, False)):
        run = a_run(*late, least=None, loss=course)
        assert tells_apart(run) is None
        assert learns(run) is works


@pytest.mark.parametrize(("others", "said"), [(0.9, []), (0.3, ["not-learning"])])
def test_a_loss_that_stands_after_one_step(others: float, said: list[str]) -> None:
    findings = pb.diagnose(swapped(0.3, others, course=AT_ONCE))
    assert [finding.name for finding in findings] == said


def test_what_one_step_killed_follows_from_the_inputs() -> None:
    far = [(12 * k, "inputs", {"largest_abs": 900.0, "largest_mean_over_std": 30.0}) for k in range(1, 9)]
    first, second = pb.diagnose(swapped(0.3, 0.3, *far, course=AT_ONCE))
    assert (first.name, first.severity, second.because) == ("inputs-not-normalised", "warning", (first.name,))
    (only,) = pb.diagnose(swapped(0.02, 0.9, *far, course=AT_ONCE))
    assert (only.name, only.severity) == ("inputs-not-normalised", "info")


def area(outputs: Tensor, masks: Tensor) -> Tensor:
    """A Tversky loss, of each sample: no form that is known."""
    p = outputs.sigmoid()
    hit, false, missed = ((each).flatten(1).sum(1) for each in (p * masks, p * (1 - masks), (1 - p) * masks))
    return 1 - (hit + 1) / (hit + 0.4 * false + 0.6 * missed + 1)


@pytest.mark.parametrize("dead", [False, True])
def test_masks_of_a_network_that_lives_and_of_one_that_is_dead(dead: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    masks = F.interpolate((torch.rand(96, 1, 3, 3) > 0.6).float(), scale_factor=2)
    pictures = masks + 0.3 * torch.randn(masks.shape)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 1))
    with torch.no_grad():
        model[0].bias -= 50.0 * dead
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with pb.Monitor(model, area, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(60):
            chosen = slice(32 * (step % 3), 32 * (step % 3) + 32)
            learn(monitor, model, lambda o, y: area(o, y).mean(), optimizer, (pictures[chosen], masks[chosen]))
    run = pb.load_run(tmp_path / "run")
    measured = [record.values for record in run.of("loss")]
    assert all(values["swapped_loss"] >= values["loss"] - 0.05 for values in measured)
    assert (measured[-1]["swapped_loss"] > measured[-1]["loss"] + 0.1) is not dead
    assert learns(run) is not dead


def test_a_loss_that_goes_with_its_outputs_has_none(tmp_path: Path) -> None:
    """Of an autoencoder that returns its inputs too the targets say nothing: to swap outputs changes no mean."""

    class Both(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    torch.manual_seed(0)
    model, x = Both(4, 4), torch.randn(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pb.Monitor(model, lambda o, y: (o[0] - o[1]).abs().amax(1), tmp_path / "run", optimizer=optimizer) as monitor:
        learn(monitor, model, lambda o, y: (o[0] - o[1]).abs().amax(1).mean(), optimizer, (x, x))
    values = [record.values for record in pb.load_run(tmp_path / "run").of("loss")]
    assert values
    assert not any("swapped_loss" in each for each in values)
