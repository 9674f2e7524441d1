"""Batch size and rate, scale-invariant weights, parities (S1-53, S1-55, S1-56, S1-61, S3-16)."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import dynamics
from pullback.dynamics import Quadratic

F64 = torch.float64
FILE = json.loads((Path(__file__).parents[1] / "data" / "dynamics.json").read_text())
QUADRATICS = FILE["quadratics"]
PROBLEM = Quadratic([1.0, 0.3, 0.05])
START = torch.tensor([1.0, -1.0, 1.0], dtype=F64)


def test_updates_against_batch_size() -> None:
    """S1-61, S3-16: never more with larger batches, saturated from the size that is reported on."""
    sizes = [16, 64, 256, 1024, 4096]
    found = dynamics.batch_size_curve(PROBLEM, START, 2e-3, sizes, noise_covariance=0.5)
    assert bool((found.steps[1:] <= found.steps[:-1]).all())
    assert found.steps[0] > 4 * found.steps[-1]
    assert found.least <= float(found.steps[-1]) <= 1.1 * found.least
    place = sizes.index(int(found.saturation))
    assert float(found.steps[place]) <= 2 * found.least < float(found.steps[place - 1])
    assert torch.equal(found.samples, found.steps * torch.tensor(sizes, dtype=F64))
    assert bool((found.samples[1:] >= found.samples[:-1] * 0.999).all())  # larger batches are never cheaper in samples
    assert float(found.lr[0]) < float(found.lr[-1])
    hopeless = dynamics.batch_size_curve(PROBLEM, START, 1e-9, [1, 2], noise_covariance=1.0, most=50)
    assert hopeless.steps.tolist() == [math.inf] * 2
    assert hopeless.saturation == hopeless.least == math.inf


def test_updates_as_simulated() -> None:
    """The same first update in a mean over many drawn runs."""
    sizes = [2, 32]
    found = dynamics.batch_size_curve(PROBLEM, START, 0.02, sizes, noise_covariance=0.5, lrs=[0.1, 0.4])
    for size, steps, lr in zip(sizes, found.steps, found.lr, strict=True):
        starts = START.expand(3000, 3)
        make = lambda p, lr=float(lr): torch.optim.SGD(p, lr=lr)
        drawn = dynamics.simulate(make, PROBLEM, starts, int(steps) + 5, noise_covariance=0.5 / size)
        mean = drawn.loss.mean(0)
        spread = 4 * drawn.loss.std(0) / math.sqrt(3000)
        at = int(steps)
        assert float(mean[at]) < 0.02 + float(spread[at])
        assert float(mean[at - 1]) >= 0.02 - float(spread[at - 1])


def test_adams_step() -> None:
    """S1-55: the reference, and Adam itself on gradients of drawn batches."""
    for size, expected in FILE["adam_effective_step"].items():
        assert float(dynamics.adam_effective_step(0.1, 1.0, int(size))) == pytest.approx(expected, abs=1e-10)
    assert float(dynamics.adam_effective_step(0.0, 0.0, 1)) == 0.0
    slope = lambda x: 0.1 * x.sum(-1)
    make = lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.99))
    for size in (1, 100):
        found = dynamics.simulate(make, slope, torch.zeros(4000, 1, dtype=F64), 500, noise_covariance=1 / size)
        moved = (found.x[:, 200, 0] - found.x[:, -1, 0]) / (300 * 1e-3)
        error = 4 * float(moved.std()) / math.sqrt(4000)
        known = float(dynamics.adam_effective_step(0.1, 1.0, size))
        assert error < 0.1 * known
        assert float(moved.mean()) == pytest.approx(known, abs=error + 0.01 * known)  # s varies by (1 - beta2) / 2


def test_single_steps_and_one_step() -> None:
    """S1-56: S steps of lr / S on a linear loss are one of lr on the mean; on a curved one they are not."""
    slopes = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    curved = lambda x, k: (slopes[k] * x).sum(-1) + (k + 1) * x.square().sum(-1)
    straight = lambda x, k: (slopes[k] * x).sum(-1)
    apart = {}
    for name, sample in (("straight", straight), ("curved", curved)):
        x = torch.ones(3, dtype=F64)
        for k in range(8):
            make = lambda p: torch.optim.SGD(p, lr=0.2 / 8)
            x = dynamics.simulate(make, partial(sample, k=k), x, 1).x[-1]
        mean = lambda x, sample=sample: sum(sample(x, k) for k in range(8)) / 8
        once = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=0.2), mean, torch.ones(3, dtype=F64), 1).x[-1]
        apart[name] = float((x - once).norm())
    assert apart["straight"] < 1e-14
    assert apart["curved"] > 0.05


def test_growth_of_scale_invariant_weights() -> None:
    known = QUADRATICS["scale_invariant_weight_growth_g=1"]
    found = dynamics.scale_invariant_growth(0.1, 1.0, 100_000)
    for steps, row in known.items():
        at = int(steps)
        assert float(found.squared_norm[at]) == pytest.approx(row["||w||^2"], rel=1e-10)
        assert float(found.law[at]) == pytest.approx(row["sqrt(1+2 eta^2 k)"], rel=1e-10)
        assert float(found.effective_rate[at]) == pytest.approx(row["eff_lr=eta/||w||^2"], rel=1e-10)
    assert found.equilibrium == math.inf
    slope = math.log(float(found.effective_rate[-1] / found.effective_rate[10_000])) / math.log(10)
    assert slope == pytest.approx(-0.5, abs=1e-3)
    rates = [float(dynamics.scale_invariant_growth(lr, 2.0, 100_000).effective_rate[-1]) for lr in (0.1, 0.3)]
    assert rates == pytest.approx([1 / (2 * math.sqrt(2e5))] * 2, rel=1e-2)  # whatever the rate


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_growth_of_a_network_without_scale(decay: float) -> None:
    """A loss of w / |w| that turns w with a gradient of constant length, by torch's own optimizer."""
    turning = lambda w: torch.atan2(w[..., 1], w[..., 0])
    make = lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=decay)
    found = dynamics.simulate(make, turning, [1.0, 0.0], 400).x.square().sum(-1)
    known = dynamics.scale_invariant_growth(0.1, 1.0, 400, weight_decay=decay)
    torch.testing.assert_close(found, known.squared_norm, rtol=1e-12, atol=0)
    if decay:
        assert known.equilibrium == pytest.approx(0.1 / math.sqrt(1 - 0.98**2))
        assert float(known.squared_norm[-1]) == pytest.approx(known.equilibrium, rel=1e-6)


def test_parities_by_brute_force() -> None:
    """S1-53: the reference, and all targets of four bits one by one."""
    known = QUADRATICS["parity_gradient_variance_d8"]
    line = lambda w, x: torch.tanh(w @ (2 * x - 1))
    found = dynamics.parity_variance(line, known["w"], 8)
    assert found.variance == pytest.approx(known["var_exact"], abs=1e-10)
    assert found.bound == pytest.approx(known["bound_E||g||^2/2^d"], abs=1e-10)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def network(w: Tensor, x: Tensor) -> Tensor:
        a, b, c, d = w.split([20, 5, 5, 1])
        return (c @ torch.tanh(a.reshape(5, 4) @ x + b) + d).sum()

    inputs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=F64)
    gradients = []
    for v in inputs:
        target = 1 - 2 * ((inputs @ v) % 2)
        output = model(inputs)[:, 0]
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad((target * output).mean(), model.parameters())])
        )
    each = torch.stack(gradients)
    found = dynamics.parity_variance(network, flat, 4)
    assert found.variance == pytest.approx(float((each - each.mean(0)).square().sum(1).mean()), rel=1e-10)
    assert found.mean == pytest.approx(float(each.mean(0).square().sum()), rel=1e-10)
    distances = (each - each.mean(0)).square().sum(1)
    drawn = dynamics.sampled_parity_variance(network, flat, 4, draws=6)
    for size in range(5):
        of_size = distances[inputs.sum(1) == size]
        assert float(drawn.by_size[size]) == pytest.approx(float(of_size.mean()), rel=1e-10)
    assert drawn.variance == pytest.approx(found.variance, rel=1e-10)
    assert drawn.stderr == 0


def test_drawn_parities_estimate_all() -> None:
    """Over many draws: the mean is that of all parities, and the standard error is that of the draws."""
    w = torch.linspace(-1, 1, 8, dtype=F64)
    line = lambda w, x: torch.tanh(w @ (2 * x - 1))
    known = dynamics.parity_variance(line, w, 8).variance
    drawn = [dynamics.sampled_parity_variance(line, w, 8, draws=4, seed=seed) for seed in range(60)]
    variances = torch.tensor([each.variance for each in drawn], dtype=F64)
    spread = float(variances.std())
    assert abs(float(variances.mean()) - known) < 4 * spread / math.sqrt(len(drawn))
    assert float(torch.tensor([each.stderr**2 for each in drawn]).mean()) == pytest.approx(spread**2, rel=0.4)
    again = dynamics.sampled_parity_variance(line, w, 8, draws=4, seed=3)
    assert torch.equal(again.by_size, drawn[3].by_size)
    assert bool((again.by_size_stderr[[0, 8]] == 0).all())  # one parity of that size


def test_the_signal_halves_with_each_bit() -> None:
    variances = [
        dynamics.parity_variance(lambda w, x: torch.tanh(w @ (2 * x - 1)), torch.ones(d) / math.sqrt(d), d).bound
        for d in (4, 6, 8, 10)
    ]
    for one, other in itertools.pairwise(variances):
        assert other / one == pytest.approx(1 / 4, rel=0.5)
        assert other < one / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dynamics.batch_size_curve(PROBLEM, START, 0.0, [1], noise_covariance=1.0), "`target` above 0"),
        (lambda: dynamics.batch_size_curve(PROBLEM, START, 0.1, [0], noise_covariance=1.0), "`batch_sizes` above 0"),
        (lambda: dynamics.batch_size_curve(PROBLEM, START, 0.1, [], noise_covariance=1.0), "`batch_sizes` above 0"),
        (lambda: dynamics.batch_size_curve(PROBLEM, START, 0.1, [1], noise_covariance=1.0, lrs=[0.0]), "`lr` above 0"),
        (
            lambda: dynamics.batch_size_curve("ravine", START, 0.1, [1], noise_covariance=1.0),
            "`problem` to be a Quadratic, got 'ravine'",
        ),
        (
            lambda: dynamics.batch_size_curve(PROBLEM, START, 0.1, [1.5], noise_covariance=1.0),
            "whole numbers `batch_sizes` above 0",
        ),
        (
            lambda: dynamics.parity_variance(lambda w, x: w * x, [1.0, 1.0], 2),
            "`model` that returns one number, got shape",
        ),
        (lambda: dynamics.scale_invariant_growth("0.1", 1.0, 1), "`lr` above 0, got '0.1'"),
        (lambda: dynamics.adam_effective_step(1.0, 1.0, 0), "`batch_size` above 0, got 0"),
        (lambda: dynamics.adam_effective_step(1.0, -1.0, 1), "`variance` of at least 0, got -1.0"),
        (lambda: dynamics.scale_invariant_growth(0.0, 1.0, 1), "`lr` above 0"),
        (lambda: dynamics.scale_invariant_growth(0.1, 1.0, -1), "`steps` at least 0, got -1"),
        (lambda: dynamics.scale_invariant_growth(0.1, 1.0, 1, weight_decay=10.0), r"`weight_decay` in \[0, 1 / lr\)"),
        (lambda: dynamics.scale_invariant_growth(0.1, 1.0, 1, weight_decay=-1.0), r"`weight_decay` in \[0, 1 / lr\)"),
        (lambda: dynamics.parity_variance(lambda w, x: w @ x, [1.0], 0), "`bits` from 1 to 20, got 0"),
        (lambda: dynamics.parity_variance(lambda w, x: w @ x, [[1.0]], 1), r"`w` \(P,\), got shape \(1, 1\)"),
        (lambda: dynamics.sampled_parity_variance(lambda w, x: w @ x, [1.0], 1, 1), "`draws` at least 2, got 1"),
        (lambda: dynamics.sampled_parity_variance(lambda w, x: w @ x, [1.0], 21), "`bits` from 1 to 20, got 21"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_rates_that_are_tried_end_at_the_fastest() -> None:
    """Of one curvature, without noise, that is there in a single step."""
    found = dynamics.batch_size_curve(Quadratic([2.0]), [1.0], 1e-12, [1, 8], noise_covariance=0.0)
    assert found.steps.tolist() == [1.0, 1.0]


def test_a_batch_that_needs_just_twice_the_updates_saturates() -> None:
    """At h = 1, lr = 1/2 the mean excess loss after k updates is 4^-k / 2 + (1 - 4^-k) C / 6 S."""
    found = dynamics.batch_size_curve(Quadratic([1.0]), [1.0], 0.1, [1], noise_covariance=6 * 0.096, lrs=[0.5])
    losses = [4.0**-k / 2 + (1 - 4.0**-k) * 0.096 for k in range(6)]
    assert next(k for k, loss in enumerate(losses) if loss < 0.1) == 4
    assert (found.least, found.steps.tolist(), found.saturation) == (2.0, [4.0], 1.0)


def test_growth_begins_at_the_norm_of_the_start() -> None:
    found = dynamics.scale_invariant_growth(0.1, 1.0, 3, norm=2.0)
    assert (float(found.law[0]), float(found.squared_norm[0])) == (4.0, 4.0)
