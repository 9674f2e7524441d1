"""What is said of the first steps: a rate that is out of reach, and nothing of one that may do well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.advisor.training_losses import constant_loss
from tests.advisor.runs import Line, a_run, found, losses

HIGH, LOW = "learning-rate-too-high", "learning-rate-too-low"


def measured(before: float, after: float, module: str = "Linear", **more: Any) -> pb.Finding | None:
    """A loss of a batch, and that of its samples after the step."""
    line: Line = (1, "loss", {"loss": after, "batch_loss": before, "constant_loss": 2.0})
    return found(HIGH, line, loss=[before], meta={"model": {"modules": {module: 1}}}, **more)


def test_a_step_that_makes_the_loss_of_its_own_samples_larger() -> None:
    """Above four times that of one answer for all, or of the batch where it is higher."""
    assert (first := measured(1.0, 8.01)) is not None
    assert first.severity == "warning"
    assert first.change == pb.Change("learning_rate", 0.1)
    assert measured(1.0, 7.99) is None
    assert measured(3.0, 11.9) is None
    assert measured(1.0, 8.01, "BatchNorm1d") is None  # which is measured by the statistics it was made with
    assert measured(1.0, 8.01, least=None) is None


def test_a_sum_over_the_batch_is_compared_as_a_mean() -> None:
    form: Line = (1, "loss_form", {"reduction": "sum", "batch_size": 10})
    for after, says in ((8.01, True), (7.99, False)):
        line: Line = (1, "loss", {"loss": after, "batch_loss": 10.0, "constant_loss": 2.0})
        finding = found(HIGH, form, line, loss=[10.0])
        assert (finding is not None) == says
        if finding is not None:
            assert "summed over 10 samples" in finding.summary
            assert finding.change == pb.Change("learning_rate", 0.1)


@pytest.mark.parametrize("steps", [1, 2, 10, 29])
def test_the_first_steps_of_runs_that_do_well(steps: int) -> None:
    """Steps of a third of the weights, a curvature at three limits, a batch that is harder than the ones before."""
    sharp = {"optimizer": "SGD", "learning_rate": 0.1, "limit": 20.0, "hessian": 60.0, "smallest_residual": 0.0}
    lines = [
        (1, "updates", {"median": 0.43, "ratio": {"a": 0.43}}),
        (1, "sharpness", sharp),
        (1, "loss", {"loss": 4.0}),
    ]
    lines += [(2, "loss", {"loss": 9.0}), (steps, "kernel", {})][steps < 2 :]
    run = a_run(*lines, loss=[3.7, 3.9, 3.0, *[2.9] * 26][:steps])
    assert [f.name for f in pb.diagnose(run) if f.severity != "info"] == []


def test_later_steps_are_judged_by_what_is_learnt() -> None:
    """The first step of Adam moves every weight by the whole rate: it is left out as soon as there are others."""
    lines = [(k, "updates", {"median": size}) for k, size in ((1, 0.45), (2, 0.08), (20, 0.01), (40, 0.01))]
    assert found(HIGH, (0, "loss", {"constant_loss": 2.0}), *lines, loss=[2.0] * 40) is None


def test_what_grew_by_the_choice_of_samples_is_no_divergence() -> None:
    grown = losses(0.9, 2.6)
    assert found("divergence", *grown, loss=[3.7, 3.9]) is None
    assert found("divergence", *grown, loss=[1.0, 2.6]) is not None


def course_of(start: float, last: float) -> list[float]:
    """From wild outputs to the loss of one answer, 3, in 20 steps, and from there evenly."""
    return [3.0 + (start - 3.0) * (1 - k / 20) for k in range(20)] + [3.0 + (last - 3.0) * k / 79 for k in range(80)]


@pytest.mark.parametrize("start", [3.0, 5.0, 20.0])
def test_a_fall_to_one_answers_loss_hides_none_that_follows(start: float) -> None:
    updates = [(step, "updates", {"median": 0.006}) for step in (2, 50, 100)]
    finding = found(LOW, (0, "loss", {"constant_loss": 3.0}), *updates, loss=course_of(start, 2.7))
    assert finding is not None
    assert finding.change == pb.Change("learning_rate", 5.0)


def test_what_one_answer_reaches_is_of_the_targets_of_all_batches() -> None:
    """Not of the few that were measured, whose variance has a median below the data's."""
    seen = {"form": "squared", "constant_loss": 0.3, "constant_scale": 0.5}
    sums = {
        "batches": 2,
        "num_samples": 40,
        "sums": [20.0, 0.0],
        "square_sums": [90.0, 40.0],
        "squared_sums": [1.0, 1.0],
    }
    lines: list[Line] = [(1, "loss", seen), (5, "all_targets", sums), (9, "all_targets", sums)]
    assert constant_loss(a_run(*lines)) == pytest.approx(0.5 * ((90 / 40 - 0.25) + 1.0) / 2)
    older = [(k, "loss", {"form": "squared", "constant_loss": c}) for k, c in ((1, 0.2), (2, 1.2))]
    counts: list[Line] = [
        (1, "targets", {"num_samples": 64}),
        (1, "kernel", {"num_samples": 4}),
        (2, "kernel", {"num_samples": 5}),
    ]
    assert constant_loss(a_run(*older, *counts)) == pytest.approx((4 * 0.2 + 5 * 1.2) / 7)
    older.append((3, "loss", {"form": "squared", "constant_loss": 0.4}))
    for apart, expected in ((3.0, 6.0), (0.1, (4 * 0.2 + 5 * 1.2 + 0.4) / 7)):  # -a, 0, a have the variance 2/3 a^2
        means: list[Line] = [(k, "targets", {"mean": apart * (k - 2)}) for k in (1, 2, 3)]
        assert constant_loss(a_run(*older, *counts[1:], *means)) == pytest.approx(expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_recorded_scale_is_that_of_the_loss(outputs: int, tmp_path: Path) -> None:
    """Of targets with a variance of nine in all and few samples a measurement, one answer has nine."""
    generator = torch.Generator().manual_seed(0)
    model, loss_fn = nn.Linear(4, outputs), nn.MSELoss()
    y = 3.0 * torch.randn(400, outputs, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pb.Monitor(model, loss_fn, tmp_path / "run", optimizer=optimizer, probes=("loss", "targets")) as monitor:
        for start in range(0, 400, 20):
            target = y[start : start + 20]
            loss = loss_fn(model(torch.randn(20, 4, generator=generator)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(torch.randn(20, 4, generator=generator), target, loss=loss)
    expected = float(y.double().var(0, correction=0).mean())
    assert constant_loss(pb.load_run(tmp_path / "run")) == pytest.approx(expected, rel=1e-6)


def test_by_how_much_the_curvature_is_over_its_limit() -> None:
    sharp = {"optimizer": "SGD", "learning_rate": 0.1, "limit": 20.0, "hessian": 140.0, "hessian_residual": 0.0}
    finding = found(HIGH, (1, "sharpness", sharp | {"smallest_residual": 0.0}), loss=[2.0])
    assert finding is not None
    assert finding.evidence == {"curvature over its limit": pytest.approx(140 / 20)}
    assert finding.change is not None
    assert finding.change.value == pytest.approx(0.25 * 20 / 140)
