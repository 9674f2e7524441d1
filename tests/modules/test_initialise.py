"""Weights on the critical line: scales, whatever the model, and signals that survive a hundred layers."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import modules
from pullback.theory import MeanField, critical_sigma_w


def scale(layer: nn.Module) -> float:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().double().pow(2).mean() * weight[0].numel()) ** 0.5


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_scales(weights: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 16, 5), nn.ReLU(), nn.Conv2d(16, 400, 5), nn.Flatten(), nn.Tanh(), nn.Linear(400, 400),
        nn.BatchNorm1d(400), nn.LeakyReLU(0.3), nn.Linear(400, 400), nn.Dropout(0.1), nn.Hardtanh(), nn.Linear(400, 9),
    )  # fmt: skip
    pb.initialise(model, weights=weights)
    expected = {0: math.sqrt(2), 2: 1.0, 5: math.sqrt(2 / (1 + 0.09)), 8: 1.0, 11: 1.0}
    for place, sigma_w in expected.items():
        assert scale(model[place]) == pytest.approx(sigma_w, rel=0.04), place
        assert model[place].bias.abs().max() == 0


def test_orthogonal_weights_are() -> None:
    model = pb.initialise(nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5)), weights="orthogonal").double()
    w = model[0].weight
    assert torch.allclose(w @ w.T, 2 * torch.eye(30, dtype=torch.float64), atol=1e-5)


def test_phases() -> None:
    for phase, chi in (("ordered", 0.8), ("critical", 1.0), ("chaotic", 1.25)):
        model = nn.Sequential(nn.Linear(2000, 2000), nn.Tanh(), nn.Linear(2000, 2))
        pb.initialise(model, phase=phase, sigma_b=0.3)
        assert MeanField("tanh", scale(model[0]), 0.3).chi == pytest.approx(chi, rel=0.01)
        assert float(model[0].bias.detach().std()) == pytest.approx(0.3, rel=0.1)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(50, 800), nn.Linear(800, 800), nn.Linear(800, 800)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.erf(self.second(torch.erf(self.first(x)))))


@pytest.mark.parametrize("given", [{}, {"activation": "erf"}, {"x": torch.zeros(2, 50)}])
def test_an_activation_that_is_no_module(given: dict[str, Any]) -> None:
    model = pb.initialise(Functional(), **given)
    assert scale(model.second) == pytest.approx(critical_sigma_w("erf", 0.0), rel=0.01)
    assert scale(model.out) == pytest.approx(1, rel=0.01)


def test_bad_input_draws_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    for call, message in (
        (lambda: pb.initialise(model, sigma_b=0.1), "a `sigma_b` for which relu has a critical"),
        (lambda: pb.initialise(model, phase="edge"), "`phase`"),
        (lambda: pb.initialise(model, weights="uniform"), "`weights`"),
        (lambda: pb.initialise(nn.ReLU()), r"a model with linear or convolutional layers, got none"),
    ):
        with pytest.raises(pb.InputError, match=message):
            call()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    pb.initialise(model)
    assert torch.equal(state, torch.random.get_rng_state())


def _signal(init: Any) -> float:
    """Size of the gradient at the first of a hundred layers against the last."""
    torch.manual_seed(0)
    model = modules.MLP([64, *[100] * 100, 10], "tanh")
    init(model)
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    nn.functional.cross_entropy(model(x), y).backward()
    first, last = (model.layers[k].linear.weight.grad.norm() for k in (0, 99))
    return float(first / last)


def test_a_hundred_layers() -> None:
    assert _signal(lambda model: None) < 1e-10
    assert 0.05 < _signal(lambda model: pb.initialise(model, weights="orthogonal")) < 20


def _gradients(activation: str, init: Any) -> list[float]:
    """Mean squared gradients in the outputs of the first and the last of fifty layers of width 256."""
    torch.manual_seed(0)
    model = modules.MLP([64, *[256] * 50, 10], activation).double()
    init(model)
    signals = []

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        output.retain_grad()
        signals.append(output)

    for layer in model.layers[:-1]:
        layer.linear.register_forward_hook(keep)
    x, y = torch.randn(32, 64, dtype=torch.float64), torch.randint(10, (32,))
    nn.functional.cross_entropy(model(x), y).backward()
    return [float(h.grad.square().mean()) for h in (signals[0], signals[-1])]


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
def test_fifty_layers_keep_their_gradients(activation: str) -> None:
    """GELU and SiLU need biases for that; torch's own start and He's lose everything, or eleven decades and more."""
    first, last = _gradients(activation, pb.initialise)
    assert 0.4 < first / last < 2
    first, last = _gradients(activation, lambda model: None)
    assert first / last < 1e-30
    if activation != "relu":
        first, last = _gradients(activation, lambda model: modules.initialise_weights(model, "he"))
        assert first / last < 1e-10


def test_biases_where_the_activation_needs_them() -> None:
    """Each layer gets the point of its own activation; the approximate GELU counts as another function."""
    model = nn.Sequential(
        nn.Linear(600, 600), nn.GELU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600), nn.GELU("tanh"),
        nn.Linear(600, 600),
    )  # fmt: skip
    pb.initialise(model)
    for place, sigma_w, sigma_b in ((0, 1.3985, 0.572), (2, math.sqrt(2), 0), (4, 1.3985, 0.572), (6, 1.0, 0)):
        assert scale(model[place]) == pytest.approx(sigma_w, rel=0.01), place
        assert float(model[place].bias.detach().std()) == pytest.approx(sigma_b, rel=0.15), place


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU])
def test_phases_with_biases(activation: type[nn.Module]) -> None:
    for phase, chi in (("ordered", 0.8), ("chaotic", 1.25)):
        model = nn.Sequential(nn.Linear(2000, 2000), activation(), nn.Linear(2000, 2))
        pb.initialise(model, phase=phase)
        name, bias = activation.__name__.lower(), {nn.GELU: 0.5722, nn.SiLU: 1.0199}[activation]
        assert MeanField(name, scale(model[0]), bias).chi == pytest.approx(chi, rel=0.02)


def test_a_phase_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that ends where chi_1 jumps has not found its phase."""
    monkeypatch.setattr(import_module("pullback.modules.initialise"), "brentq", lambda *_, **__: 1.5)
    with pytest.raises(pb.InputError, match=r"initialise: expected a phase with chi_1 = 0.8, got 1.12 for relu with"):
        pb.initialise(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), phase="ordered")


def test_a_sigma_b_without_a_critical_point() -> None:
    model = nn.Sequential(nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 2))
    with pytest.raises(
        pb.InputError, match=r"gelu has a critical sigma_w that layers settle at, got 0.1. Use sigma_b=0.5"
    ):
        pb.initialise(model, sigma_b=0.1)
    pb.initialise(model, sigma_b=0.5)
    assert model[0].bias.std() > 0.1


@pytest.mark.slow
def test_a_hundred_layer_network_learns_the_digits() -> None:
    """To 95 percent with critical orthogonal weights; at chance with torch's own after the same steps."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    x, y = (x - x.mean(0)) / (x.std(0) + 1e-3), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]

    def accuracy(critical: bool, steps: int) -> float:
        torch.manual_seed(0)
        model = modules.MLP([64, *[64] * 100, 10], "tanh")
        if critical:
            pb.initialise(model, weights="orthogonal")
        optimizer = torch.optim.SGD(model.parameters(), 3e-3, momentum=0.9)
        batches = torch.Generator().manual_seed(1)
        best = 0.0
        for step in range(steps):
            index = torch.randint(1400, (128,), generator=batches)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            if step % 50 == 49:
                with torch.no_grad():
                    best = max(best, float((model(x[1400:]).argmax(1) == y[1400:]).float().mean()))
                if best >= 0.95:
                    break
        return best

    assert accuracy(True, 600) >= 0.95
    assert accuracy(False, 100) < 0.2
