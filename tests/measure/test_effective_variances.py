"""Effective variances of layers against the ones they were drawn with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.measure import NetworkSpec, effective_variances
from pullback.theory import MeanField


@pytest.mark.parametrize(("name", "sigma_w", "sigma_b"), [("tanh", 0.9, 0.3), ("relu", 1.2, 0.1), ("erf", 2.5, 0.3)])
def test_the_variances_that_were_drawn(name: str, sigma_w: float, sigma_b: float) -> None:
    """Within three standard errors in 95 percent of 60 layers, and chi with them."""
    model = NetworkSpec(name, sigma_w, sigma_b, depth=60, width=80, inputs=40).build()
    found, net = effective_variances(model), MeanField(name, sigma_w, sigma_b)
    for profile, known in ((found.sigma_w, sigma_w), (found.sigma_b, sigma_b), (found.chi, net.chi)):
        inside = (profile.value - known).abs() <= 3 * profile.stderr
        assert inside.double().mean() >= 0.95
        assert profile.stderr.max() < 0.3 * known
    assert set(found.phase) == {net.phase}
    assert found.layers[:2] == ("0.linear", "1.linear")
    if name != "erf":  # a function, known by another name
        assert set(found.activations) == {name}


@pytest.mark.slow
def test_the_standard_error_is_that_of_repeated_draws() -> None:
    """Spread of the estimates over layers drawn alike, against the mean standard error.

    Of n layers the spread itself is known to 1 / sqrt(2 n): four times that is 23 percent here.
    """
    n = 150
    found = effective_variances(NetworkSpec("tanh", 1.5, 0.3, depth=n, width=30).build())
    for profile in (found.sigma_w, found.sigma_b, found.chi):
        assert float(profile.value.std()) == pytest.approx(float(profile.stderr.mean()), rel=4 / math.sqrt(2 * n))


def test_an_initialised_model_is_critical() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 60, 3), nn.Tanh(), nn.Conv2d(60, 60, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(9)
    )
    model(torch.randn(2, 8, 7, 7))
    pb.initialise(model, sigma_b=0.3)
    found = effective_variances(model)
    assert found.layers == ("0", "2", "5")
    assert found.activations == ("tanh", "tanh", "linear")
    assert found.phase[:2] == ("critical", "critical")
    assert float(found.sigma_w.value[1]) == pytest.approx(1.395584, rel=0.02)


def test_torch_s_own_start_is_ordered() -> None:
    """Uniform in +-1 / sqrt(fan_in): sigma_w^2 = 1 / 3."""
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 10))
    found = effective_variances(model)
    assert float(found.sigma_w.value[0]) == pytest.approx(3**-0.5, rel=0.01)
    assert found.phase == ("ordered", "ordered")
    assert float(found.chi.value[1]) == pytest.approx(1 / 3, rel=0.1)  # a layer no activation follows is linear


def test_layers_of_zeros_and_of_one_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(1, 1), nn.Tanh())
    nn.init.zeros_(model[0].weight)
    found = effective_variances(model)
    assert (float(found.sigma_w.value[0]), float(found.sigma_b.value[0]), found.phase[0]) == (0, 0, "ordered")
    assert float(found.chi.value[0]) == float(found.chi.stderr[0]) == 0
    assert math.isnan(found.sigma_w.stderr[1])
    assert math.isnan(found.chi.stderr[1])


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(50, 50), nn.Linear(50, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sin(self.first(x)))


def test_activations_that_are_no_modules() -> None:
    for given in ({}, {"activation": "sin"}, {"x": torch.zeros(2, 50)}):
        assert effective_variances(Functional(), **given).activations == ("sin", "linear")
    with pytest.raises(pb.InputError, match=r"effective_variances: expected calls of activations, got none"):
        effective_variances(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    with pytest.raises(pb.InputError, match=r"effective_variances: expected a model with linear or convolutional"):
        effective_variances(nn.Tanh())


def test_parametrised_layers_are_left_as_they_are() -> None:
    """Reading a weight under a spectral norm moves its vectors in train mode; one under autograd has no graph here."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(30, 30)), nn.Tanh())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = effective_variances(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    with torch.no_grad():
        expected = model.eval()[0].weight.square().mean().sqrt() * 30**0.5
    assert float(found.sigma_w.value) == pytest.approx(float(expected), rel=1e-6)


def test_activations_that_work_in_place() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Hardtanh(inplace=True), nn.Linear(30, 30), nn.ReLU(inplace=True))
    found, apart = (
        effective_variances(nn.Sequential(model[0], one, model[2], two))
        for one, two in ((model[1], model[3]), (nn.Hardtanh(), nn.ReLU()))
    )
    assert torch.equal(found.chi.value, apart.chi.value)
    assert found.activations == ("hard_tanh", "relu")


def test_the_error_of_sigma_w_is_that_of_a_root_mean_square() -> None:
    """Of n normal weights sigma / sqrt(2 n): 1200 of them tell it to within a few percent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30, bias=False), nn.Tanh())
    nn.init.normal_(model[0].weight, std=1.5 / math.sqrt(40))
    found = effective_variances(model).sigma_w
    assert float(found.stderr[0]) == pytest.approx(float(found.value[0]) / math.sqrt(2 * 1200), rel=0.1)
