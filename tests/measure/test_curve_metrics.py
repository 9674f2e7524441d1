"""Metrics of curves: known curves, differences along the curve, and theory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.measure import NetworkSpec, curve_metrics
from pullback.modules import MLP, initialise_weights
from pullback.theory import MeanField

PER_POINT = ("euclidean", "curvature", "gauss", "euclidean_length", "gauss_length")


def identity(n: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(n, n, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(scale * torch.eye(n))
    return layer


def polynomial(theta: Tensor) -> Tensor:
    """A random trigonometric polynomial of degree 3 in five dimensions, (M, 5)."""
    drawn = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    angles = theta[:, None] * torch.arange(1, 4, dtype=torch.float64)
    return angles.cos() @ drawn[0] + angles.sin() @ drawn[1]


def test_a_circle() -> None:
    """S1-16: N = 2 and q = 1 / 2: g^E = 1 in all, 1 / 2 a unit; kappa = 1."""
    found = curve_metrics(identity(2), lambda t: torch.stack([t.cos(), t.sin()], 1), points=7)
    values = [2 * float(found.euclidean.value), float(found.curvature.value) / 2, float(found.gauss.value)]
    assert values == pytest.approx([1, 1, 1], abs=1e-12)
    assert 2**0.5 * float(found.euclidean_length.value) == pytest.approx(2 * math.pi)
    assert float(found.gauss_length.value) == pytest.approx(2 * math.pi)


def test_the_gauss_metric_is_the_speed_of_the_unit_tangent() -> None:
    """S1-17: g^G = |d v_hat / d theta|^2, by autograd of the tangent itself, equals kappa^2 g^E to 1e-8."""
    points = 50
    theta = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    tangents = []
    for at in theta:

        def unit(t: Tensor) -> Tensor:
            v = torch.autograd.functional.jvp(lambda s: polynomial(s)[0], t, torch.ones(1).double(), create_graph=True)[
                1
            ]
            return v / v.norm()

        turn = torch.autograd.functional.jacobian(unit, at[None])[:, 0]
        speed = torch.autograd.functional.jacobian(lambda s: polynomial(s)[0], at[None])[:, 0].square().sum()
        tangents.append((float(turn.square().sum()), float(turn.square().sum() / speed)))
    gauss, curvature = np.mean(tangents, 0)
    found = curve_metrics(identity(5), polynomial, points=points)
    assert float(found.gauss.value) == pytest.approx(gauss, rel=1e-8)
    assert float(found.curvature.value) / 5 == pytest.approx(curvature, rel=1e-8)


def test_scaling() -> None:
    """S1-18: three times the curve: g^E 9 times, kappa a third, g^G the same."""
    one, three = (curve_metrics(identity(5, s), polynomial) for s in (1.0, 3.0))
    for name, factor in (("euclidean", 9), ("curvature", 1 / 9), ("gauss", 1), ("euclidean_length", 3)):
        ratio = float(getattr(three, name).value / getattr(one, name).value)
        assert ratio == pytest.approx(factor, rel=1e-12), name


def test_a_network_by_differences_along_the_curve() -> None:
    """Central differences of the layers' outputs, and lengths of polygons, take the place of derivatives."""
    model = NetworkSpec("tanh", 1.8, 0.2, depth=3, width=9, inputs=5).build()
    points = 20
    found = curve_metrics(model, polynomial, points=points)
    theta = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)

    def layers(at: Tensor) -> list[Tensor]:
        inputs, states = polynomial(at), []
        for layer in model:
            states.append(layer.linear(inputs).detach())
            inputs = torch.tanh(states[-1])
        return states

    step = 1e-4
    for k, (ahead, here, behind) in enumerate(
        zip(layers(theta + step), layers(theta), layers(theta - step), strict=True)
    ):
        v, a = (ahead - behind) / (2 * step), (ahead - 2 * here + behind) / step**2
        vv, aa, va = (v * v).sum(1), (a * a).sum(1), (v * a).sum(1)
        bend = (vv * aa - va**2) / vv**3
        for name, expected in (("euclidean", vv / 9), ("curvature", 9 * bend), ("gauss", bend * vv)):
            value = float(getattr(found, name).value[k])
            assert value == pytest.approx(float(expected.mean()), rel=1e-5), (name, k)
    many = 4000
    fine = layers(torch.arange(many, dtype=torch.float64) * (2 * math.pi / many))[-1]
    sides = fine.roll(-1, 0) - fine
    unit = sides / sides.norm(dim=1, keepdim=True)
    smooth = curve_metrics(model, polynomial, points=400)
    assert float(smooth.euclidean_length.value[-1]) * 3 == pytest.approx(float(sides.norm(dim=1).sum()), rel=1e-3)
    turns = (unit.roll(-1, 0) - unit).norm(dim=1).sum()
    assert float(smooth.gauss_length.value[-1]) == pytest.approx(float(turns), rel=1e-3)


@pytest.mark.slow
def test_a_circle_through_a_chaotic_network() -> None:
    """S1-20: tanh (2.5, 0.3), 1000 units: g^E of layer 3 16.40 +- 0.9, k 2.99 +- 0.3; all layers as predicted."""
    spec = NetworkSpec("tanh", 2.5, 0.3, depth=5, width=1000)
    found = curve_metrics(spec, points=64, seeds=12, dtype=torch.float32)
    known = spec.theory().curve_metrics(5)
    assert float(found.euclidean.value[2]) == pytest.approx(16.40, abs=0.9)
    assert float(found.curvature.value[2]) == pytest.approx(2.99, abs=0.3)
    for name in ("euclidean", "gauss"):
        profile, expected = getattr(found, name), getattr(known, name)[1:]
        assert (np.abs(profile.value.numpy() - expected) <= 3 * profile.stderr.numpy()).all(), name
    # the mean of kappa^2, which has |v|^6 below, is above the theory by about 25 / n in layer 5
    assert found.curvature.value.numpy() == pytest.approx(known.curvature[1:], rel=0.05)
    for name in PER_POINT[3:]:  # the root of a mean is above the mean of roots, by the spread of the speed
        assert getattr(found, name).value.numpy() == pytest.approx(getattr(known, name)[1:], rel=0.1), name


@pytest.mark.slow
def test_a_circle_through_an_ordered_network() -> None:
    """S1-20: tanh (0.9, 0.3): the image shrinks and bends, its unit tangent's path stays short."""
    spec = NetworkSpec("tanh", 0.9, 0.3, depth=5, width=1000)
    found = curve_metrics(spec, points=64, seeds=12, dtype=torch.float32)
    known = spec.theory().curve_metrics(5)
    for name in PER_POINT:
        profile = getattr(found, name)
        assert profile.value.numpy() == pytest.approx(getattr(known, name)[1:], rel=0.1), name
    assert (found.euclidean_length.value.diff() < 0).all()
    assert (found.curvature.value.diff() > 0).all()


def test_convolutions_and_single_networks() -> None:
    """A stack of maps that is a matrix in disguise: 1 by 1 filters act on channels, positions are averaged."""
    conv, linear = nn.Conv2d(5, 7, 1).double(), nn.Linear(5, 7).double()
    with torch.no_grad():
        linear.weight.copy_(conv.weight[:, :, 0, 0])
    maps = curve_metrics(conv, lambda t: polynomial(t)[:, :, None, None].expand(-1, -1, 2, 3))
    flat = curve_metrics(linear, polynomial)
    for name in PER_POINT[:1] + PER_POINT[2:]:
        assert float(getattr(maps, name).value) == pytest.approx(float(getattr(flat, name).value), rel=1e-12), name
        assert float(getattr(maps, name).stderr) == pytest.approx(float(getattr(flat, name).stderr), rel=1e-12), name
        assert float(getattr(flat, name).stderr) > 0


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4)).double()
    state, before = torch.random.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    one, two = curve_metrics(model, polynomial), curve_metrics(model, polynomial)
    assert torch.equal(one.curvature.value, two.curvature.value)  # eval mode: no masks
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_attention_without_its_fast_path() -> None:
    """Torch's encoder in eval mode, all frozen: speeds by central differences."""
    layer = nn.TransformerEncoderLayer(5, 1, 6, activation="gelu", batch_first=True, dtype=torch.float64)
    layer.requires_grad_(False)

    def tokens(theta: Tensor) -> Tensor:
        return torch.stack([polynomial(theta), polynomial(2 * theta)], 1)  # (M, 2, 5)

    assert torch.backends.mha.get_fastpath_enabled()
    found = curve_metrics(layer, tokens, points=6)
    assert torch.backends.mha.get_fastpath_enabled()
    assert found.layers == ("linear1", "linear2")
    theta, step = torch.arange(6, dtype=torch.float64) * (math.pi / 3), 1e-5
    states: list[Tensor] = []
    handle = layer.linear1.register_forward_hook(lambda _, x, y: states.append(y))
    for at in (theta + step, theta - step):
        layer.eval()(tokens(at))
    handle.remove()
    expected = ((states[0] - states[1]) / (2 * step)).square().mean()
    assert float(found.euclidean.value[0]) == pytest.approx(float(expected), rel=1e-7)


def test_redrawn_models() -> None:
    model = MLP([5, 40, 40], "erf").double()
    found = curve_metrics(
        model, polynomial, seeds=3, redraw=lambda m, s: initialise_weights(m, "gaussian", sigma_w=1.5, seed=s)
    )
    assert found.num_seeds == 3
    assert found.layers == ("layers.0.linear", "layers.1")
    assert (found.euclidean.stderr > 0).all()


SPEC = NetworkSpec("tanh", 1.5, 0.2, depth=2, width=6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curve_metrics(SPEC, points=2), r"curve_metrics: expected `points` at least 3, got 2"),
        (lambda: curve_metrics("mlp", polynomial), r"curve_metrics: expected an nn.Module or a NetworkSpec, got str"),
        (lambda: curve_metrics(nn.Linear(2, 2)), r"curve_metrics: expected a `curve` for a module, got None"),
        (lambda: curve_metrics(NetworkSpec("relu", 1.5, depth=2, width=6)), r"a smooth activation, got relu"),
        (
            lambda: curve_metrics(nn.Sequential(nn.Linear(5, 2), nn.Hardtanh()).double(), polynomial),
            r"a smooth activation, got hard_tanh, whose slope jumps. Use tanh, erf or gelu",
        ),
        (
            lambda: curve_metrics(NetworkSpec("tanh", 1.5, depth=2, width=6, keep_prob=0.9)),
            r"layers without dropout and batch norm, got one of them. Leave it out",
        ),
        (lambda: curve_metrics(NetworkSpec("tanh", 0.5, depth=2, width=6)), r"a finite length q\* above zero, got 0"),
        (
            lambda: curve_metrics(SPEC, lambda t: t),
            r"a curve from theta \(M,\) to inputs \(M, …\), M = 64, got \(64,\)",
        ),
        (lambda: curve_metrics(nn.Tanh(), polynomial), r"a model with linear or convolutional layers"),
        (
            lambda: curve_metrics(identity(5, 1e300), lambda t: 1e300 * polynomial(t)),
            r"finite signals, got NaN or infinity in `\(model\)`",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 - ctx.saved_tensors[0] ** 2)


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5).double(), nn.Linear(5, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Backward.apply(self.first(x)))


def test_no_forward_derivative() -> None:
    model = Opaque()
    with pytest.raises(pb.UnsupportedError, match=r"curve_metrics: expected operations with a forward derivative"):
        curve_metrics(model, polynomial)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_theory_of_a_circle() -> None:
    """S1-19: chi_2 and the curvature's fixed points, tanh (2.5, 0.3) and (4, 0.3)."""
    metrics = MeanField("tanh", 2.5, 0.3).curve_metrics(3)
    assert metrics.curvature[1:] == pytest.approx([1.58251, 2.42615, 2.95833], abs=1e-5)
    assert metrics.fixed_point == pytest.approx(3.867710, abs=1e-6)
    assert MeanField("tanh", 4.0, 0.3).curve_metrics(1).fixed_point == pytest.approx(1.721379, abs=1e-6)
    assert MeanField("tanh", 2.5, 0.3).bend_gain == pytest.approx(1.196041, abs=1e-6)
