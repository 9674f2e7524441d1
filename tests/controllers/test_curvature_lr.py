"""A learning rate by curvature: exact on quadratics, robust on networks, and it leaves no trace in the model."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback._rng import make_generator
from pullback.controllers import CurvatureLR
from pullback.functional import load_digits
from pullback.modules import MLP
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()


def quadratic() -> tuple[nn.Linear, Tensor, Tensor]:
    """Mean of (w . x)^2 with Hessian 2 X^T X / N = diag(8, 2)."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.tensor([[math.sqrt(8.0), 0.0], [0.0, math.sqrt(2.0)]], dtype=torch.float64)
    return model, x, torch.zeros(2, 1, dtype=torch.float64)


def one_step(controller: CurvatureLR, x: Tensor, y: Tensor) -> float:
    controller.optimizer.zero_grad()
    loss = controller.loss_fn(controller.model(x), y)
    loss.backward()
    controller.step(x, y, loss)
    controller.optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize(
    ("options", "bound"),
    [({}, 2.0), ({"momentum": 0.5}, 3.0), ({"momentum": 0.5, "nesterov": True}, 1.5)],
)
def test_the_bound_is_where_a_quadratic_begins_to_diverge(options: dict[str, float], bound: float) -> None:
    for target, falls in ((0.98, True), (1.02, False)):
        model, x, y = quadratic()
        optimizer = torch.optim.SGD(model.parameters(), 123.0, **options)  # type: ignore[arg-type]
        controller = CurvatureLR(optimizer, model, nn.MSELoss(), target=target, warmup=1.0, spike=1e30, cap=math.inf)
        losses = [one_step(controller, x, y) for _ in range(200)]
        assert controller.curvature == pytest.approx(8.0, rel=1e-2)
        assert controller.get_last_lr()[0] == pytest.approx(target * bound / 8, rel=1e-2)
        assert (losses[-1] < losses[0]) is falls


def test_adam_waits_for_its_second_moments() -> None:
    model, x, y = quadratic()
    optimizer = torch.optim.Adam(model.parameters(), 123.0, eps=0.0)
    controller = CurvatureLR(optimizer, model, nn.MSELoss(), target=1.0, warmup=1.0)
    one_step(controller, x, y)
    assert controller.get_last_lr() == [0.0]
    assert torch.equal(model.weight, torch.ones(1, 2, dtype=torch.float64))
    one_step(controller, x, y)
    # gradients 8 and 2, second moments their squares: diag(8 / 8, 2 / 2); 38 is Adam's bound at beta1 = 0.9
    assert controller.curvature == pytest.approx(1.0, rel=1e-2)
    assert controller.get_last_lr()[0] == pytest.approx(38.0, rel=1e-2)


def test_warm_up_hold_and_back_off() -> None:
    model, x, y = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    controller = CurvatureLR(optimizer, model, nn.MSELoss(), target=0.8, every=5, warmup=0.25, warmup_steps=8)
    rates, measured = [], []
    for step in range(40):
        controller.step(x, y, 9.0 if step == 15 else 1.0)
        rates.append(controller.get_last_lr()[0])
        measured.append(controller.num_measurements)
    full = 0.8 * 2 / 8
    warm = [full * 0.25 ** (1 - step / 8) for step in range(8)]
    assert rates[:8] == pytest.approx(warm, rel=1e-2)
    assert rates[8:15] == [rates[7]] * 7  # held
    assert rates[15:25] == [0.5 * rates[14]] * 10  # halved at the leap, and left there for ten steps
    assert rates[25] == pytest.approx(1.01 * rates[24])  # 0.34 of the bound: it grows again, to a half of it
    assert rates[-1] * 1.01**25 >= 0.5 * 2 / 8
    due = [0, 5, 7, 9, 14, 15, 20, 25, 30, 35]
    assert measured == [sum(at <= step for at in due) for step in range(40)]


def test_the_rate_grows_by_no_more_than_asked_in_the_warm_up() -> None:
    """The curvature falls to a hundredth; the rate follows by 1.5 a step, once the larger one is old enough."""
    model, x, y = quadratic()
    controller = CurvatureLR(
        torch.optim.SGD(model.parameters(), 1.0), model, nn.MSELoss(), target=0.5, warmup=1.0, every=1
    )
    rates = []
    for step in range(12):
        controller.step(x if step == 0 else 0.1 * x, y, 1.0)
        rates.append(controller.get_last_lr()[0])
    ratios = [later / earlier for earlier, later in itertools.pairwise(rates)]
    assert ratios == pytest.approx([1.5] * 11, rel=1e-6)
    assert rates[0] == pytest.approx(0.5 * 2 / 8, rel=1e-2)


@pytest.mark.parametrize(("target", "bears"), [(0.5, 1.0), (2.0, 6.0)])
def test_a_held_rate_falls_where_the_curvature_leaves_what_is_stated(target: float, bears: float) -> None:
    """Beyond the bound for a target below it, beyond three times the target above; not for a little less."""
    for factor, falls in ((0.95, False), (1.05, True)):
        model, x, y = quadratic()
        how: dict[str, Any] = {"target": target, "warmup": 1.0, "warmup_steps": 1, "every": 1}
        controller = CurvatureLR(torch.optim.SGD(model.parameters(), 1.0), model, nn.MSELoss(), **how)
        controller.step(x, y, 1.0)
        held = controller.get_last_lr()[0]
        grown = factor * bears / target
        for _ in range(3):
            controller.step(grown**0.5 * x, y, 1.0)
        assert controller.curvature == pytest.approx(8 * grown, rel=1e-2)
        assert controller.get_last_lr()[0] == pytest.approx(held / grown if falls else held, rel=1e-2)


def test_groups_keep_their_ratios() -> None:
    model = MLP([4, 3, 2])
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    groups = [
        {"params": model.layers[0].parameters(), "lr": 0.2},
        {"params": model.layers[1].parameters(), "lr": 0.4},
    ]
    controller = CurvatureLR(torch.optim.SGD(groups), model, CE, target=1.0, warmup=1.0)
    one_step(controller, x, y)
    slow, fast = controller.get_last_lr()
    assert fast == pytest.approx(2 * slow)
    assert controller.curvature is not None
    assert fast == pytest.approx(2 / controller.curvature)


@pytest.mark.parametrize(
    ("rates", "flipped"), thinned([(1.0, 1.0), (1.0, 0.01), (0.01, 1.0), (0.5, 0.0)], [False, True])
)
def test_the_bound_of_unequal_groups_is_exact(rates: tuple[float, float], flipped: bool) -> None:
    """On a quadratic of Hessian diag(8, 2) whose two weights are groups, in either order."""
    for target, falls in ((0.97, True), (1.03, False)):
        model, x, y = two_weights()
        weights = [model.first, model.second]
        groups = [{"params": [w], "lr": rate} for w, rate in zip(weights, rates, strict=True)]
        optimizer = torch.optim.SGD(groups[::-1] if flipped else groups)
        controller = CurvatureLR(optimizer, model, nn.MSELoss(), target=target, warmup=1.0, spike=1e30, cap=math.inf)
        losses = [one_step(controller, x, y) for _ in range(60)]
        ratios = [rate / max(rates) for rate in rates]
        assert controller.curvature == pytest.approx(max(8 * ratios[0], 2 * ratios[1]), rel=1e-2)
        found = controller.get_last_lr()[:: -1 if flipped else 1]
        assert found == pytest.approx([target * 2 / controller.curvature * ratio for ratio in ratios], rel=1e-6)
        assert (losses[-1] < losses[0]) is falls


class TwoWeights(nn.Module):
    """Of ``quadratic``, each a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.stack([self.first, self.second])


def two_weights() -> tuple[TwoWeights, Tensor, Tensor]:
    _, x, y = quadratic()
    return TwoWeights(), x, y


def test_groups_added_frozen_and_tensors() -> None:
    """A group that comes later keeps its own proportion; what is frozen is no matter; a tensor stays that tensor."""
    model, x, y = two_weights()
    held = torch.tensor(0.2)
    optimizer = torch.optim.SGD([{"params": [model.second], "lr": held}])
    controller = CurvatureLR(optimizer, model, nn.MSELoss(), target=1.0, warmup=1.0, every=1, cap=math.inf)
    one_step(controller, x, y)
    assert controller.get_last_lr() == [pytest.approx(1.0, rel=1e-2)]  # 2 / 2: the first weight takes no steps
    assert optimizer.param_groups[0]["lr"] is held
    optimizer.add_param_group({"params": [model.first], "lr": 0.1})
    for _ in range(4):
        one_step(controller, x, y)
    assert controller.curvature == pytest.approx(max(2.0, 0.5 * 8), rel=1e-2)
    second, first = controller.get_last_lr()
    assert (second, first) == (pytest.approx(0.5, rel=1e-2), pytest.approx(0.25, rel=1e-2))
    model.first.requires_grad_(False)
    model.first.grad = None
    for _ in range(12):
        one_step(controller, x, y)
    assert controller.curvature == pytest.approx(2.0, rel=1e-2)
    model.second.requires_grad_(False)
    before = controller.get_last_lr()
    for _ in range(12):
        controller.step(x, y, 1.0)
    assert controller.get_last_lr() == before  # nothing takes steps


def test_rates_are_put_back_where_a_measurement_fails() -> None:
    model, x, y = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), 0.25)
    with pytest.raises(pb.InputError):
        CurvatureLR(optimizer, model, nn.MSELoss()).step(x, y[:1], 1.0)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("shift", [0.0, -50.0, -3.0, 7.0])
@pytest.mark.parametrize("falls", [0.0, 0.05])
def test_a_constant_added_to_the_loss_is_no_matter(shift: float, falls: float) -> None:
    """The same losses but for a constant, negative or not: the rate is halved where they leap, and nowhere else."""

    def log_density(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().flatten(1).sum(1) + shift

    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = [shift + 1.0 - falls * k + 0.1 * float(noise[k]) for k in range(60)]
    halved = []
    for leap in (None, 40):
        model, x, y = quadratic()
        controller = CurvatureLR(torch.optim.SGD(model.parameters(), 1.0), model, log_density, warmup=1.0, every=100)
        rates = []
        for k, loss in enumerate(losses):
            controller.step(x, y, loss + (3.0 if k == leap else 0.0))
            rates.append(controller.get_last_lr()[0])
        halved.append([k for k in range(1, 60) if rates[k] < 0.9 * rates[k - 1]])
    assert halved == [[], [40]]


def test_a_loss_known_not_to_be_negative_is_counted_from_zero() -> None:
    """Squared error, and one that says so itself; where it turns out to be wrong, it is not believed."""

    def own(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().flatten(1).sum(1)

    own.least_loss = 0.0  # type: ignore[attr-defined]
    for loss_fn in (nn.MSELoss(), own):
        for loss, leaps in ((1.9, False), (2.1, True)):
            model, x, y = quadratic()
            how: dict[str, Any] = {"target": 0.8, "warmup": 1.0, "spike": 2.0}
            controller = CurvatureLR(torch.optim.SGD(model.parameters(), 1.0), model, loss_fn, **how)
            controller.step(x, y, 1.0)
            rate = controller.get_last_lr()[0]
            controller.step(x, y, loss)
            assert (controller.get_last_lr()[0] < rate) is leaps
    controller = CurvatureLR(torch.optim.SGD(model.parameters(), 1.0), model, nn.MSELoss(), warmup=1.0, every=100)
    rates = []
    for loss in (-1.0, -1.1, -0.9, -1.0, -1.1, -0.9, -1.0):
        controller.step(x, y, loss)
        rates.append(controller.get_last_lr()[0])
    assert len(set(rates)) == 1


def test_state_goes_on_as_if_nothing_had_happened() -> None:
    data = load_digits()
    x, y = data.x_train[:64], data.y_train[:64]

    def made() -> CurvatureLR:
        torch.manual_seed(0)
        model = MLP([64, 16, 10])
        return CurvatureLR(torch.optim.SGD(model.parameters(), 0.1), model, CE, every=3)

    whole, first, second = made(), made(), made()
    expected = [(one_step(whole, x, y), whole.get_last_lr()) for _ in range(12)][7:]
    for _ in range(7):
        one_step(first, x, y)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [(one_step(second, x, y), second.get_last_lr()) for _ in range(5)] == expected


def test_it_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    loss = CE(model(x), y)
    loss.backward()
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    random = torch.get_rng_state()
    CurvatureLR(torch.optim.SGD(model.parameters(), 0.1), model, CE).step(x, y, loss)
    assert model.training
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before[1], strict=True))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random)


def test_a_gradient_longer_than_those_before_is_shortened_for_once() -> None:
    """To 1.2 times their running mean, in which it counts as no more; with momentum too, and not for Adam."""
    for make, shortened in ((torch.optim.SGD, True), (torch.optim.Adam, False)):
        model, x, y = quadratic()
        optimizer = make(model.parameters(), lr=1.0)
        controller = CurvatureLR(optimizer, model, nn.MSELoss(), warmup=1.0, every=100, warmup_steps=1)
        one_step(controller, x, y)
        rates = []
        for norm in (5.0, 5.0, 20.0, 5.0):
            model.weight.grad = torch.tensor([[0.6 * norm, 0.8 * norm]], dtype=torch.float64)
            controller._norm = controller._norm if rates else 5.0
            controller.step(x, y, 1.0)
            rates.append(controller.get_last_lr()[0])
        if shortened:
            assert rates == pytest.approx([rates[0], rates[0], 1.2 * 5 / 20 * rates[0], rates[0]])
            assert controller._norm == pytest.approx(0.9 * (0.9 * 5 + 0.1 * 6) + 0.1 * 5)
        else:
            assert len(set(rates[1:])) == 1


def test_the_scale_is_a_mean_of_several_measurements() -> None:
    """One batch of forty times the curvature changes the rate by the fourth root of it at most."""
    rates = []
    for factor in (1.0, 40.0):
        model, x, y = quadratic()
        how: dict[str, Any] = {"target": 0.5, "warmup": 1.0, "warmup_steps": 12, "every": 1}
        controller = CurvatureLR(torch.optim.SGD(model.parameters(), 1.0), model, nn.MSELoss(), **how)
        for step in range(12):
            controller.step(x * (factor**0.5 if step == 9 else 1.0), y, 1.0)
        rates.append(controller.get_last_lr()[0])
    assert rates[0] / rates[1] == pytest.approx(40**0.25, rel=0.05)


def test_bad_arguments_are_refused() -> None:
    model, x, y = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for name in ("target", "every", "warmup", "num_samples"):
        with pytest.raises(pb.InputError, match=f"`{name}` above 0"):
            CurvatureLR(optimizer, model, CE, **{name: 0})  # type: ignore[arg-type]
    for name in ("growth", "spike", "cap"):
        with pytest.raises(pb.InputError, match=f"`{name}` above 1"):
            CurvatureLR(optimizer, model, CE, **{name: 1.0})  # type: ignore[arg-type]
    with pytest.raises(pb.UnsupportedError, match="SGD, Adam or AdamW, got Adagrad"):
        CurvatureLR(torch.optim.Adagrad(model.parameters()), model, CE)
    with pytest.raises(pb.InputError, match=r"\['lr'\]` above 0"):
        CurvatureLR(torch.optim.SGD(model.parameters(), 0.0), model, CE)
    unknown = torch.optim.SGD(model.parameters(), 0.1)
    unknown.param_groups[0]["lr"] = None
    with pytest.raises(pb.InputError, match=r"\['lr'\]` above 0, got nan"):
        CurvatureLR(unknown, model, CE)
    with pytest.raises(pb.InputError, match="a finite loss, got nan"):
        CurvatureLR(optimizer, model, nn.MSELoss()).step(x, y, math.nan)
    with pytest.raises(pb.InputError, match="a positive curvature at the first measurement, got 0"):
        CurvatureLR(optimizer, model, nn.MSELoss()).step(torch.zeros_like(x), y, 1.0)


def trained(lr: float, seed: int, *, steered: bool) -> tuple[float, float]:
    """Mean training loss after 15 epochs of the digits (nan if it diverged), and the rate of the first step."""
    data, generator, first = load_digits(), make_generator(seed), lr
    torch.manual_seed(seed)
    model = MLP([64, 64, 64, 10])
    optimizer = torch.optim.SGD(model.parameters(), lr)
    controller = CurvatureLR(optimizer, model, CE) if steered else None
    for epoch in range(15):
        for step, (x, y) in enumerate(data.batches(128, generator)):
            optimizer.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            if not bool(loss.isfinite()):
                return math.nan, first
            if controller is not None:
                controller.step(x, y, loss)
            if epoch == step == 0:
                first = optimizer.param_groups[0]["lr"]
            optimizer.step()
    with torch.no_grad():
        return float(CE(model(data.x_train), data.y_train)), first


@pytest.mark.slow
def test_started_far_off_it_trains_like_a_tuned_rate() -> None:
    """Thirty times and a thirtieth of a tuned rate, both of which do not train.

    A run at the edge of stability is chaotic: rounding decides which of them loses its units to a spike, about one in
    eight here. Most end far below what guessing costs, ln 10; the runs alone end at about that.
    """
    low, guessing = 0.1 * math.log(10), math.log(10)
    assert math.isnan(alone := trained(9.0, 0, steered=False)[0]) or alone > 0.5 * guessing
    assert trained(0.01, 0, steered=False)[0] > 0.5 * guessing
    ends = [trained(9.0, seed, steered=True) for seed in range(6)]
    assert sum(loss < low for loss, _ in ends) >= 3, ends
    assert trained(0.01, 0, steered=True)[1] == pytest.approx(ends[0][1], rel=1e-6)  # the start's rate is forgotten
