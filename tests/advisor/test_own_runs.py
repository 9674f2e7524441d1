"""What runs of people's own loops showed: losses that are plain functions, weights that never move or start at zero."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.advisor.reading import least_loss
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from tests.advisor.runs import LEARNS, Line, a_run, found, losses

DEAD: Line = (0, "activations", {"dead": {"a": 0.9}})


def learn(monitor: pb.Monitor, model: nn.Module, loss_fn: Any, optimizer: Any, batch: tuple[Tensor, Tensor]) -> None:
    """One step of a watched loop."""
    x, y = batch
    loss = loss_fn(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(x, y, loss=loss)


def of_form(*forms: str | None, least: float | None = None, **values: Any) -> Run:
    """A loss function of one's own, told to be of these forms at measurements."""
    records = [
        (k, "loss", {"loss": 1.9, "constant_loss": 2.0} | ({"form": form} if form else {}) | values)
        for k, form in enumerate(forms)
    ]
    return a_run(*records, (40, "kernel", {}), least=least, loss=[4.0] * 20 + [1.98] * 20)


def test_a_function_of_a_known_form_has_a_smallest_value() -> None:
    run = of_form("cross-entropy", "cross-entropy")
    assert least_loss(run) == 0.0
    assert training_losses(run).share == pytest.approx(0.99)
    assert [f.name for f in pb.diagnose(run)] == ["not-learning"]  # although it fell to half of what it was
    assert least_loss(of_form("squared", None)) is None
    assert least_loss(of_form("squared", loss=-1.0)) is None
    assert least_loss(of_form("absolute", least=-3.0)) == -3.0  # what the user says stands
    assert least_loss(a_run(least=None, loss=[1.0])) is None


def test_a_constant_distance_is_that_of_all_measured_samples_less_one_each() -> None:
    measured = [(k, "kernel", {"num_samples": 5}) for k in range(3)]
    values = [(k, "loss", {"loss": 1.0, "constant_loss": 0.8, "form": "absolute"}) for k in range(3)]
    assert training_losses(a_run(*measured, *values, loss=[1.0] * 5)).constant == pytest.approx(0.8 * 5 / 4)


@pytest.mark.parametrize(("measured", "expected"), [(1.0, math.log(4)), (5.0, 5.0)])
def test_tokens_are_counted_over_all_batches(measured: float, expected: float) -> None:
    """Few neighbours in a text hold few of its tokens; a loss that is summed over tokens is no mean."""
    counts = [(k, "all_targets", {"token_entropy": math.log(3 + k), "num_tokens": 50.0 * k}) for k in range(2)]
    seen = [(k, "loss", {"loss": 1.0, "constant_loss": measured, "form": "cross-entropy"}) for k in range(2)]
    assert training_losses(a_run(*counts, *seen, loss=[1.0] * 5)).constant == pytest.approx(expected)


@pytest.mark.parametrize(("factors", "severity"), [((1.2, 3.0, 1.1, 2.4), "warning"), ((2.0, 2.1, 2.0, 1.9), "info")])
def test_losses_that_few_samples_put_apart_are_compared(factors: tuple[float, ...], severity: str) -> None:
    """Twice as large by chance, or always: then the loop's loss is another one, of which no constant is known."""
    records = [
        (10 * k + 1, "loss", {"loss": 1.0, "batch_loss": factor, "constant_loss": 2.0})
        for k, factor in enumerate([*factors, *factors])
    ]
    finding = found("dead-units", DEAD, *records, loss=[5.0] * 60 + [1.95] * 30)
    assert finding is not None
    assert finding.severity == severity


def stopped(ratio: float = 0.0, gradient: float = 1e-7, rate: float = 0.1, steps: tuple[int, ...] = (2, 4, 40)) -> Run:
    moved = [(k, "updates", {"ratio": {"a": 0.0, "b": ratio}, "median": ratio / 2}) for k in steps]
    sizes = [(k, "gradients", {"rms_gradient_norm": gradient}) for k in steps]
    return a_run(*moved, *sizes, loss=[2.0] * 40, learning_rate=[rate] * 40)


def test_a_model_of_which_nothing_moves() -> None:
    first, *_ = pb.diagnose(stopped())
    assert (first.name, first.severity, first.layer) == ("parameters-not-trained", "warning", None)
    assert first.change == pb.Change("train_parameters", ("a", "b"))
    assert "optimizer.step()" in first.action
    assert "learning-rate-too-low" not in [f.name for f in pb.diagnose(stopped())]  # no factor helps


@pytest.mark.parametrize("run", [stopped(1e-9), stopped(gradient=0.0), stopped(rate=0.0), stopped(steps=(2,))])
def test_what_may_move_or_has_another_reason_is_not_called_so(run: Run) -> None:
    assert "parameters-not-trained" not in [f.name for f in pb.diagnose(run)]


@pytest.mark.parametrize(("left", "severity"), [(0.5, "warning"), (0.2, "info")])
def test_a_part_without_a_gradient_that_holds_the_rest_back(left: float, severity: str) -> None:
    moved = [(k, "updates", {"ratio": {"a": 0.0, "b": 0.01}}) for k in (1, 2)]
    constant = (0, "loss", {"constant_loss": 2.0})
    finding = found("parameters-not-trained", constant, *moved, loss=[2.0] * 20 + [2.0 * left] * 20)
    assert finding is not None
    assert (finding.severity, finding.layer) == (severity, "a")


def zeros(norm: float = 0.0, ratio: dict[str, float] | None = None, activation: str = "Tanh") -> Run:
    flows = [
        (k, "flow", {"gradient_norm": {"a": norm, "b": 0.9}, "verdict": "vanishing", "slope": -9.0}) for k in (1, 2)
    ]
    moved = [(k, "updates", {"ratio": {"b": 1.0} | (ratio or {}), "median": 1.0}) for k in (2, 3)]
    return a_run(*flows, *moved, *losses(2.3, 2.3, 2.3), meta={"model": {"modules": {activation: 1}}})


def test_weights_that_start_at_zero_are_no_rate_too_high() -> None:
    first, second = pb.diagnose(zeros())
    assert (first.name, first.layer, first.change) == (
        "ordered-initialisation",
        "a",
        pb.Change("initialisation", "xavier"),
    )
    assert (second.name, second.because) == ("vanishing-gradients", ("ordered-initialisation",))
    assert pb.diagnose(zeros(activation="ReLU"))[0].change == pb.Change("initialisation", "he")
    for other in (zeros(norm=1e-9), zeros(ratio={"a": 0.0})):  # which has a gradient, or weights
        assert "ordered-initialisation" not in [f.name for f in pb.diagnose(other)]


def flows(*verdicts: str) -> list[Line]:
    return [(2**k, "flow", {"verdict": verdict, "slope": -3.0}) for k, verdict in enumerate(verdicts)]


@pytest.mark.parametrize("verdicts", [("steady", "steady", "vanishing", "vanishing"), ("steady", *["vanishing"] * 5)])
def test_gradients_that_the_first_steps_killed_are_no_matter_of_the_architecture(verdicts: tuple[str, ...]) -> None:
    first = found("vanishing-gradients", *flows(*verdicts), *losses(2.3, 2.3, 2.3))
    assert first is not None
    assert first.change == pb.Change("learning_rate", 0.1)
    assert "came through at the start" in first.summary


@pytest.mark.parametrize("verdicts", [["vanishing"] * 4, ["steady", "vanishing", "steady", "vanishing", "vanishing"]])
def test_gradients_that_vanish_from_the_start_or_now_and_then_are(verdicts: list[str]) -> None:
    first = found("vanishing-gradients", *flows(*verdicts), *losses(2.3, 2.3, 2.3))
    assert first is not None
    assert first.change is not None
    assert first.change.kind == "initialisation"


@pytest.mark.parametrize(("module", "layer"), [("MultiheadAttention", "a"), ("Linear", "h.0.attn.c_proj")])
def test_a_transformer_is_not_told_to_add_the_skips_it_has(module: str, layer: str) -> None:
    model = {"model": {"modules": {module: 2, "LayerNorm": 4}, "layers": [layer, "b"]}}
    finding = found("vanishing-gradients", *flows(*["vanishing"] * 5), *losses(2.3, 2.3, 2.3, 2.3, 2.3), meta=model)
    assert finding is not None
    assert finding.change == pb.Change("warmup_steps", 4)
    assert "skip" not in finding.action


def test_an_opponent_that_learns_as_well_is_no_run_that_learns_nothing() -> None:
    constant = (0, "loss", {"constant_loss": 0.69})
    course = [*np.linspace(0.8, 0.3, 40), *np.linspace(0.3, 0.69, 40), *[0.69] * 40]
    assert found("not-learning", constant, loss=course) is None
    assert found("not-learning", constant, loss=[0.8] * 40 + [0.69] * 80) is not None


def test_a_test_accuracy_that_falls_needs_no_loss_beside_it() -> None:
    train = [(k, "loss", {"loss": 1.0 - k / 50, "accuracy": 0.8}) for k in range(20)]
    fell = [(k, "test", {"accuracy": 0.9 - k / 100}) for k in range(20)]
    finding = found("memorisation", *train, *fell, loss=[1.0 - k / 50 for k in range(40)])
    assert finding is not None
    assert (finding.severity, finding.change) == ("warning", pb.Change("early_stopping"))
    assert found("memorisation", *train, *fell, loss=[1.0 + k / 50 for k in range(40)]) is None  # a wreck


def pairs(z: Tensor, y: Tensor) -> Tensor:
    half = len(z) // 2
    return F.cross_entropy(z[:half] @ z[half:].T, torch.arange(half))


def standardised(z: Tensor, y: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return F.cross_entropy(centred / centred.square().mean(0).sqrt(), y)


@pytest.mark.filterwarnings("ignore:Monitor")
@pytest.mark.parametrize("mixing", [pairs, standardised])
def test_a_loss_across_samples_that_is_none_of_one_is_no_divergence(mixing: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(8, 6), torch.arange(8) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pb.Monitor(model, mixing, tmp_path / "run", optimizer=optimizer) as monitor:
        for _ in range(12):
            learn(monitor, model, mixing, optimizer, (x, y))
    run = pb.load_run(tmp_path / "run")
    assert any("the mean or the sum of its samples' own" in str(record.error) for record in run.failed)
    assert [f.name for f in pb.diagnose(run) if f.severity != "info"] == ["not-measured"]


@pytest.mark.parametrize(("momentum", "left", "told"), [(0.999, 0.8, True), (0.99, 0.8, False), (0.999, 0.1, False)])
def test_momentum_that_remembers_more_steps_than_there_are(momentum: float, left: float, told: bool) -> None:
    meta = {"optimizer": {"class": "Adam", "learning_rate": 0.01, "momentum": momentum}}
    run = a_run((0, "loss", {"constant_loss": 2.0}), (200, "kernel", {}), meta=meta, loss=[2.0] * 60 + [2 * left] * 140)
    found_ = [f for f in pb.diagnose(run) if f.name == "learning-rate-too-high"]
    assert [f.change for f in found_] == ([pb.Change("learning_rate", 0.1)] if told else [])
    assert all("0.9" in f.action and "1,000 steps" in f.summary for f in found_)


@pytest.mark.filterwarnings("ignore:Monitor")
@pytest.mark.parametrize(
    ("end", "told"), [(nn.ReLU, True), (nn.ReLU6, True), (nn.LeakyReLU, False), (nn.Identity, False)]
)
def test_outputs_that_cannot_reach_the_targets(end: Any, told: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1), end())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.95, 0.999))
    loss_fn = lambda z, y: F.smooth_l1_loss(z.squeeze(1), y)
    with pb.Monitor(model, loss_fn, tmp_path / "run", optimizer=optimizer, every=10, budget=None) as monitor:
        for _ in range(60):
            x = torch.randn(32, 4)
            y = x[:, 0] - x[:, 1]
            learn(monitor, model, loss_fn, optimizer, (x, y))
    run = pb.load_run(tmp_path / "run")
    assert run.meta["optimizer"]["momentum"] == 0.95
    assert [f.change for f in pb.diagnose(run) if f.name == "dead-units"] == (
        [pb.Change("activation", "identity")] if told else []
    )


@pytest.mark.parametrize(("best", "looks", "told"), [(0.3, 6, True), (0.3, 5, False), (0.4, 6, False)])
def test_what_is_learnt_by_heart_of_labels_that_belong_to_others(best: float, looks: int, told: bool) -> None:
    """The loss falls to nothing, and held-out samples are right by chance."""
    counts = (0, "targets", {"counts": {str(k): 30 - k for k in range(4)}})
    held_out = [(k, "test", {"accuracy": best if k == 2 else 0.25}) for k in range(looks)]
    finding = found("not-learning", counts, *held_out, loss=[1.4 * 0.95**k for k in range(100)])
    assert (finding is not None) == told
    assert finding is None or "order" in finding.action


def binary(low: float, high: float, folder: Path) -> list[str]:
    """What is said of a run whose two classes are these numbers."""
    torch.manual_seed(2)
    model, loss_fn = nn.Linear(4, 1), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    of_one = lambda z, y: loss_fn(z[:, 0], y)
    with pb.Monitor(model, of_one, folder, optimizer=optimizer) as monitor:
        for _ in range(40):
            x = torch.randn(16, 4)
            y = torch.where(x[:, 0] > 0, high, low)
            learn(monitor, model, of_one, optimizer, (x, y))
    return [f.name for f in pb.diagnose(folder) if f.severity != "info"]


@pytest.mark.filterwarnings("ignore:Monitor")
@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (-1.0, 1.0), (0.0, 1.0), (0.1, 0.9)])
def test_a_binary_loss_of_classes_that_are_no_shares(low: float, high: float, tmp_path: Path) -> None:
    told = binary(low, high, tmp_path / "run")
    assert told[:1] == (["targets-not-normalised"] if low < 0 or high > 1 else [])


@pytest.mark.parametrize(("ratios", "told"), [((0.2, 0.2, 0.2, 0.05, 0.02), False), ((0.2, 0.2, 0.2, 0.05, 0.2), True)])
def test_long_steps_of_the_start_alone_are_no_rate_too_high_of_a_run_that_learns(ratios: Any, told: bool) -> None:
    """Measurements are dense at the start, in which small weights grow."""
    moved = [(2**k, "updates", {"median": ratio}) for k, ratio in enumerate(ratios, start=1)]
    finding = found("learning-rate-too-high", (0, "loss", {"constant_loss": 2.0}), *moved, loss=[2.0] * 25 + [1.0] * 5)
    assert (finding is not None) == told


def test_a_run_that_learns_is_told_nothing_of_this() -> None:
    moved = [(k, "updates", {"ratio": {"a": 0.01, "b": 0.02}, "median": 0.015}) for k in (1, 2, 4)]
    assert [f.name for f in pb.diagnose(a_run(*LEARNS, *moved, *flows(*["steady"] * 4)))] == []
