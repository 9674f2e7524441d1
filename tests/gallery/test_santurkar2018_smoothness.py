"""The page on what batch norm smooths: its noise, its bounds, watching that does not disturb, the checklist."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback import measure

SIZES = [64, 8, 8, 8, 10]


@pytest.fixture
def script(load):
    return load("santurkar2018_smoothness")


@pytest.fixture
def page(load):
    return load("kit.page").Page("santurkar2018_smoothness", "A title.")


@pytest.fixture(scope="module")
def data():
    return pb.functional.load_digits(0)


def test_noise_is_the_paper_s(script):
    """Shifts of U(-1/2, 1/2) within 1/10, scales of U(1, 5/4) with a spread of 1/10; one draw for a step."""
    noise = script.Noise(3)
    zeros, ones = torch.zeros(400, 50, dtype=torch.float64), torch.ones(400, 50, dtype=torch.float64)
    shifts, scales = [], []
    for step in range(40):
        noise.step = step
        shift = noise(zeros)
        assert torch.equal(shift, noise(zeros))
        scale = noise(ones) - shift
        assert 0.19 < float((shift.amax(0) - shift.amin(0)).max()) <= 0.2
        assert float(scale.std(0).mean()) == pytest.approx(0.1, rel=0.02)
        shifts.append(shift.mean(0))
        scales.append(scale.mean(0))
    shift, scale = torch.stack(shifts), torch.stack(scales)
    assert float(shift.abs().max()) < 0.52
    assert float(shift.mean()) == pytest.approx(0, abs=0.03)
    assert float(shift.std()) == pytest.approx(12**-0.5, rel=0.05)
    assert float(scale.mean()) == pytest.approx(1.125, abs=0.01)
    assert float(scale.std()) == pytest.approx(0.25 * 12**-0.5, rel=0.05)
    other = script.Noise(4)
    other.step = noise.step
    assert not torch.equal(other(zeros), noise(zeros))


def test_all_kinds_start_from_the_same_weights(script):
    models = [script.network(kind, SIZES) for kind in script.KINDS]
    for layers in zip(*(model.layers[:-1] for model in models), strict=True):
        first, *others = (layer.linear.weight for layer in layers)
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ["standard", "batch norm", "noisy batch norm"])
def test_watching_does_not_disturb_training(script, data, kind):
    watched, plain = script.network(kind, SIZES), script.network(kind, SIZES)
    losses, seen = script.train(watched, data, 64, 5, 0.1, every=2)
    assert losses == script.train(plain, data, 64, 5, 0.1)[0]
    assert len(seen) == 3
    assert [each.shift.shape for each in seen] == [(2,)] * 3  # of hidden layers 2 and 3
    assert [each.drift.shape for each in seen] == [(3,)] * 3
    assert all(torch.equal(a, b) for a, b in zip(watched.buffers(), plain.buffers(), strict=True))


def test_without_a_step_nothing_drifts(script, data):
    tiny = 1e-30
    for kind in script.KINDS[:2]:
        (seen,) = script.train(script.network(kind, SIZES), data, 64, 1, tiny, every=1)[1]
        assert float(seen.drift.max()) == 0
        assert float(seen.shift.max()) == 0
    (seen,) = script.train(script.network(script.KINDS[2], SIZES), data, 64, 1, tiny, every=1)[1]
    assert float(seen.drift.min()) > 0.1  # the noise alone
    assert float(seen.shift.max()) == 0


def test_a_ratio_holds_by_two_standard_errors(script, page):
    below = torch.tensor([1.0, 2.0, 3.0])
    for scatter in (0.0, 0.01, 1.0):
        above = 2 * below * torch.tensor([1 - scatter / 2, 1.0, 1 + scatter])
        script.sure(page, f"scatter of {scatter}", 1, above, below, "made up")
    assert [row.holds for row in page.rows] == [True, True, False]
    logs = (2 * torch.tensor([0.995, 1.0, 1.01])).log()
    mean = measure.Profile.over_seeds(logs[:, None])
    assert page.rows[1].here == pytest.approx(float((mean.value - 2 * mean.stderr).exp()), rel=1e-6)


def test_steps_are_counted_until_a_network_has_learnt(script):
    losses = torch.full((3, 40), 2.0)
    losses[0, 20:] = 0.1  # the mean of ten is below 0.5 when eight of them are 0.1
    losses[1, 20] = 0.1
    losses[2] = 0.2
    assert script.steps_needed(losses).tolist() == [28, 40, 10]


def test_small_steps_are_products_with_the_hessian(script, page, data):
    script.small_steps(page, data, SIZES)
    assert [row.holds for row in page.rows] == [True, True]


@pytest.mark.slow
def test_rates_that_converge(filled):
    """S1-37: the largest rates that converge, reported, and the gradient's Lipschitz estimate along the step."""
    page = filled("santurkar2018_smoothness")
    table = next(table for table in page.tables if table.caption.startswith("Learning rates"))
    largest = {row[0]: row[2] for row in table.rows}
    rows = {row.quantity: row.here for row in page.rows}
    ratio = largest["batch norm"] / largest["standard"]
    assert rows["largest rate that converges, batch norm over standard"] == ratio >= 4
    overview = next(table for table in page.tables if table.caption.startswith("While training"))
    beta = {row[0]: row[overview.header.index("effective β")] for row in overview.rows}
    assert beta["standard, rate 0.05"] > 2 * beta["batch norm, rate 0.05"] > 0
