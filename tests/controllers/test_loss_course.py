"""When a loss leaps, from made-up courses."""

from __future__ import annotations

import math

import pytest
import torch

import pullback as pb
from pullback.controllers.loss_course import LossCourse


def leaps(losses: list[float], least: float | None, spike: float = 4.0) -> list[int]:
    course = LossCourse(least, spike)
    return [step for step, loss in enumerate(losses) if course.leaps(loss)]


@pytest.mark.parametrize("least", [0.0, None])
@pytest.mark.parametrize("growth", [1.02, 1.05])
def test_a_slow_rise_is_seen_though_no_step_is_far_above_the_mean(least: float | None, growth: float) -> None:
    """By a few percent a step, after a fall; once for each time that the mean has grown to four times its height."""
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    fall = [0.1 + 2.0 * 0.85**k + 0.002 * each for k, each in enumerate(noise)]
    assert leaps(fall, least) == []
    steps = math.ceil(math.log(100) / math.log(growth))
    rise = [fall[-1] * growth**k for k in range(steps)]
    found = leaps(fall + rise, least)
    assert all(rise[step - 40] / rise[step - 41] < 1.1 for step in found)
    if least is None:
        assert found  # where zero is not known, the scatter is the measure
    else:
        at = [rise[step - 40] / fall[-1] for step in found]
        assert 2 <= len(at) <= 3
        assert 4 < at[0] < 4 * 2.5  # the mean follows with a delay


def test_losses_that_only_scatter_never_leap() -> None:
    for seed in range(5):
        noise = torch.randn(300, generator=torch.Generator().manual_seed(seed)).tolist()
        assert leaps([1.0 + 0.1 * each for each in noise], 0.0) == []


def test_a_plateau_after_a_rise_leaps_until_the_mean_has_followed() -> None:
    """Nine above a mean of 1 and of 1.8, each more than four times it; not of 2.52."""
    assert leaps([1.0] * 30 + [9.0] * 30, 0.0) == [30, 31]


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(pb.InputError, match="a finite loss, got inf"):
        LossCourse(None, 4.0).leaps(math.inf)
