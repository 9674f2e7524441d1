"""Jacobian spectra of real networks: against loops of autograd, D W by hand, and theory."""

from __future__ import annotations

import copy
import math
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from torch import Tensor, nn

import pullback as pb
from pullback._rng import make_generator
from pullback._statistics import student
from pullback.measure import NetworkSpec, jacobian_extremes, jacobian_spectrum
from pullback.measure.networks.drawn import DATA
from pullback.measure.networks.settled import settled_inputs
from pullback.theory import MeanField, critical_sigma_w, jacobian_density
from tests.compare import assert_different, assert_same

SMOOTH = ("tanh", "gelu", "sigmoid")


def squares_by_loops(model: nn.Module, x: Tensor) -> Tensor:
    """(S, n): one backward pass for every output and sample, then the eigenvalues of J J^T or J^T J."""
    rows = []
    for sample in x:
        leaf = sample.unsqueeze(0).clone().requires_grad_()
        outputs = model(leaf).reshape(-1)
        J = torch.stack([torch.autograd.grad(z, leaf, retain_graph=True)[0].reshape(-1) for z in outputs])
        gram = J @ J.T if len(J) <= J.shape[1] else J.T @ J
        rows.append(torch.linalg.eigvalsh(gram).flip(0).clamp(min=0))
    return torch.stack(rows)


@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    activation=st.sampled_from(SMOOTH),
    count=st.integers(1, 4),
)
def test_any_shape(widths: list[int], activation: str, count: int) -> None:
    model = pb.modules.MLP(widths, activation, init="gaussian", sigma_w=1.5).double()
    x = torch.randn(count, widths[0], dtype=torch.float64)
    found = jacobian_spectrum(model, x, layers=True)
    expected = squares_by_loops(model, x)
    assert_same(found.squares, expected, 1e-9, scale=float(expected.max()))
    assert bool((found.squares.diff(dim=1) <= 1e-15).all())
    assert found.mean.value == pytest.approx(float(expected.mean()), rel=1e-9)
    assert found.variance.value == pytest.approx(float(expected.var(1, correction=0).mean()), rel=1e-7, abs=1e-12)
    assert found.across == "samples"
    assert len(found.layers) == len(widths) - 1


def test_layers_are_d_times_w() -> None:
    """S1-29: J = D_L W_L ... D_1 W_1, D and W read off the network by hand."""
    spec = NetworkSpec("tanh", 1.7, 0.2, depth=3, width=9, inputs=6)
    model, h = spec.build(), torch.randn(1, 6, dtype=torch.float64)
    found = jacobian_spectrum(model, h, layers=True)
    product = torch.eye(6, dtype=torch.float64)
    for layer, squares in zip(model, found.layers, strict=True):
        linear = layer.linear
        h = torch.tanh(h @ linear.weight.T + linear.bias).detach()
        DW = (1 - h.T.square()) * linear.weight.detach()
        product = DW @ product
        assert_same(squares[0], torch.linalg.svdvals(DW).square(), 1e-12)
    assert_same(found.squares[0], torch.linalg.svdvals(product).square(), 1e-12)
    assert found.layer_means is not None
    assert_same(found.layer_means.value, torch.stack([s[0].mean() for s in found.layers]), 1e-12)
    assert float(found.squares[0, 0]) <= math.prod(float(s[0, 0]) for s in found.layers)
    assert_different(found.squares[0], found.layers[0][0], 0.01)


def test_images_through_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    assert_same(jacobian_spectrum(model, x).squares, squares_by_loops(model, x), 1e-9)


def test_linear_orthogonal_networks_are_isometries() -> None:
    """S1-29: all singular values 1."""
    spec = NetworkSpec("linear", 1.0, depth=8, width=40, weights="orthogonal")
    found = jacobian_spectrum(spec, seeds=3, layers=True)
    assert_same(found.squares, torch.ones(3, 40, dtype=torch.float64), 1e-10)
    assert all(bool((s - 1).abs().max() < 1e-12) for s in found.layers)
    assert found.relative_variance.value < 1e-20
    assert found.across == "seeds"


CRITICAL = [
    ("linear", 0.0, "gaussian", 8.0),
    ("linear", 0.0, "orthogonal", 0.0),
    ("relu", 0.0, "gaussian", 16.0),
    ("relu", 0.0, "orthogonal", 8.0),
    ("hard_tanh", 0.3, "gaussian", 9.966),
    ("hard_tanh", 0.3, "orthogonal", 1.966),
    ("tanh", 0.3, "gaussian", 11.643),
    ("tanh", 0.3, "orthogonal", 3.643),
]


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "sigma_b", "weights", "expected"), CRITICAL)
def test_spread_of_eight_critical_layers(activation: str, sigma_b: float, weights: str, expected: float) -> None:
    """S1-30, S1-29, S1-32: variance over squared mean within 10 percent of theory at width 300, mean within 15."""
    sigma_w = critical_sigma_w(activation, sigma_b)
    spec = NetworkSpec(activation, sigma_w, sigma_b, depth=8, width=300, weights=weights)
    predicted = spec.theory().jacobian_moments(8, weights)
    assert predicted.relative_variance == pytest.approx(expected, abs=1e-3)
    found = jacobian_spectrum(spec, seeds=8)
    assert found.mean.value == pytest.approx(1, rel=0.15)
    assert found.relative_variance.value == pytest.approx(expected, rel=0.1, abs=1e-9)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_the_whole_distribution(weights: str) -> None:
    """S1-30: shares of s^2 above five values, against the density of infinitely wide ReLU networks."""
    spec = NetworkSpec("relu", 2**0.5, depth=3, width=200, weights=weights)
    squares = jacobian_spectrum(spec, seeds=6).squares.flatten()
    density = jacobian_density(spec.theory(), 3, weights)
    for value in (0.1, 0.5, 1.0, 2.0, 4.0):
        above = density.squares > value
        expected = density.top + float(trapezoid(density.density[above], density.squares[above]))
        assert float((squares > value).double().mean()) == pytest.approx(expected, abs=0.01)


def test_isometry_is_open_to_some_activations() -> None:
    """S1-32: per layer ReLU adds 2 (Gaussian) or 1 (orthogonal) at its only critical point; hard tanh tends to 1, 0."""
    relu = MeanField("relu", critical_sigma_w("relu", 0.0))
    assert [relu.jacobian_moments(1, w).relative_variance for w in ("gaussian", "orthogonal")] == pytest.approx([2, 1])
    with pytest.raises(pb.InputError, match="critical_sigma_w"):
        critical_sigma_w("relu", 0.3)  # q* is infinite there: no other critical point
    gaps = []
    for sigma_b, expected in ((0.3, 0.2457796), (0.05, 0.01779), (0.01, None)):
        net = MeanField("hard_tanh", critical_sigma_w("hard_tanh", sigma_b), sigma_b)
        gaussian, orthogonal = (net.jacobian_moments(1, w).relative_variance for w in ("gaussian", "orthogonal"))
        assert gaussian == pytest.approx(1 + orthogonal)
        if expected is not None:
            assert orthogonal == pytest.approx(expected, abs=5e-6)
        gaps.append(orthogonal)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 200
    sigma_w = critical_sigma_w("hard_tanh", 0.05)
    spec = NetworkSpec("hard_tanh", sigma_w, 0.05, depth=4, width=150, weights="orthogonal")
    assert jacobian_spectrum(spec, seeds=4).relative_variance.value == pytest.approx(4 * 0.01779, abs=0.04)


@pytest.mark.slow
def test_residual_networks_grow_slowly() -> None:
    """S1-05: x + eps W x multiplies E |J v|^2 by 1 + eps^2 a layer: 2.7048 after 100 of eps = 0.1."""
    spec = NetworkSpec("linear", 1.0, depth=100, width=300, residual=0.1)
    found = jacobian_spectrum(spec, seeds=2)
    assert found.mean.value == pytest.approx(2.7048, rel=0.1)


def test_a_skip_around_nothing_is_the_identity() -> None:
    """S1-05: J = I + F', so that a zero branch leaves I."""
    spec = NetworkSpec("tanh", 1.0, depth=3, width=5, residual=0.0)
    assert_same(jacobian_spectrum(spec, seeds=2).squares, torch.ones(2, 5, dtype=torch.float64), 1e-14)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"), [("tanh", 1.3, 0.3), ("tanh", 2.5, 0.3), ("hard_tanh", 1.2, 0.1)]
)
def test_inputs_have_the_settled_length(activation: str, sigma_w: float, sigma_b: float) -> None:
    spec = NetworkSpec(activation, sigma_w, sigma_b, depth=2, width=2000)
    x = settled_inputs(spec, 2, make_generator(DATA), "test")
    first, second = spec.build().requires_grad_(False)
    assert float(first.linear(x).square().mean()) == pytest.approx(spec.theory().q_star, rel=0.08)
    assert float(second.linear(first(x)).square().mean()) == pytest.approx(spec.theory().q_star, rel=0.08)


def test_a_network_that_shrinks_everything_has_the_slope_at_zero() -> None:
    spec = NetworkSpec("tanh", 0.5, depth=2, width=30, weights="orthogonal")
    assert_same(jacobian_spectrum(spec, seeds=2).squares, torch.full((2, 30), 0.0625, dtype=torch.float64), 1e-12)


def test_networks_are_those_of_the_seeds_and_inputs_are_drawn_apart() -> None:
    spec = NetworkSpec("tanh", 1.5, 0.1, depth=2, width=8)
    x = torch.randn(1, 8, dtype=torch.float64)
    found = jacobian_spectrum(spec, x, seeds=3, seed=5)
    for i in range(3):
        assert_same(found.squares[i], squares_by_loops(spec.build(5 + i), x)[0], 1e-10)
    wide = NetworkSpec("tanh", 1.5, 0.1, depth=1, width=400)
    drawn = settled_inputs(wide, 1, make_generator(DATA), "test")[0]
    weights = wide.build(0)[0].linear.weight.detach()
    assert float((weights @ drawn / weights.norm(dim=1) / drawn.norm()).abs().max()) < 0.25  # a repeated row has 1


@pytest.mark.slow
def test_standard_errors() -> None:
    """Those of the mean over networks: nan for one Jacobian, and for many compared with means of disjoint seeds."""
    model, x = nn.Linear(3, 2).double(), torch.ones(1, 3, dtype=torch.float64)
    assert math.isnan(jacobian_spectrum(model, x).mean.stderr)
    spec = NetworkSpec("tanh", 1.5, 0.1, depth=2, width=20)
    found = [jacobian_spectrum(spec, seeds=10, seed=100 * i).mean for i in range(30)]
    actual = float(torch.tensor([each.value for each in found]).std())
    assert sum(each.stderr for each in found) / 30 == pytest.approx(student(9) * actual, rel=0.4)


@pytest.mark.slow
@given(shape=st.sampled_from([(60, 40), (40, 60), (50, 50)]), which=st.sampled_from(["largest", "both"]))
def test_extremes_without_the_matrix(shape: tuple[int, int], which: str) -> None:
    inputs, outputs = shape
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh()).double()
    x = torch.randn(1, inputs, dtype=torch.float64)
    exact = jacobian_spectrum(model, x).squares[0]
    found = jacobian_extremes(model, x, 2, which, tol=1e-8)
    assert float(jacobian_extremes(model, x).values[0]) == pytest.approx(float(exact[0]), rel=1e-6)
    assert found.converged
    expected = exact[:2] if which == "largest" else torch.cat([exact[:2], exact[-2:]])
    assert bool(((found.values - expected).abs() <= found.residuals + 1e-12).all())
    assert_same(found.values, expected, 1e-7)


def test_nothing_is_disturbed() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3)).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    jacobian_spectrum(model, torch.randn(3, 4), layers=True)
    torch.set_rng_state(state)
    jacobian_spectrum(NetworkSpec("tanh", 1.0, depth=2, width=4), seeds=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_dtype_follows() -> None:
    assert jacobian_spectrum(nn.Linear(3, 2), torch.ones(1, 3)).squares.dtype == torch.float32
    spec = NetworkSpec("tanh", 1.0, depth=2, width=4)
    assert jacobian_spectrum(spec, seeds=2, dtype=torch.float32).squares.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double(), torch.randn(2, 5, dtype=torch.float64)
    expected = jacobian_spectrum(model, x).squares
    assert_same(jacobian_spectrum(model.cuda(), x.cuda()).squares.cpu(), expected)


def test_printed() -> None:
    text = str(jacobian_spectrum(NetworkSpec("linear", 1.0, depth=2, width=4, weights="orthogonal"), seeds=2))
    assert "2 Jacobians (seeds), 4 squared singular values each" in text
    assert "largest 1, smallest 1" in text


SPEC = NetworkSpec("tanh", 1.0, depth=2, width=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jacobian_spectrum(nn.Linear(2, 2)), r"jacobian_spectrum: expected `x` for a module, got None"),
        (lambda: jacobian_spectrum(SPEC, seeds=1), r"jacobian_spectrum: expected `seeds` at least 2, got 1"),
        (
            lambda: jacobian_spectrum(SPEC, torch.ones(2, 4)),
            r"expected one input \(1, 4\) for a spec, got shape \(2, 4\)",
        ),
        (
            lambda: jacobian_spectrum(NetworkSpec("tanh", 1.0, depth=2, width=4, batch_norm=True)),
            r"expected a spec without batch norm and dropout, got batch norm",
        ),
        (
            lambda: jacobian_spectrum(NetworkSpec("tanh", 1.0, depth=2, width=4, keep_prob=0.5)),
            r"expected a spec without batch norm and dropout, got keep_prob 0.5",
        ),
        (
            lambda: jacobian_spectrum(NetworkSpec("gelu", 3.0, 1.0, depth=2, width=4)),
            r"expected lengths that layers settle at, got q_star inf",
        ),
        (
            lambda: jacobian_extremes(nn.Linear(2, 2), torch.ones(3, 2)),
            r"jacobian_extremes: expected one sample \(1, ...\), got 3 samples",
        ),
        (
            lambda: jacobian_spectrum(nn.Bilinear(2, 2, 2), (torch.ones(1, 2), torch.ones(1, 2)), layers=True),
            r"layer_jacobians: expected an nn.Sequential",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_large_jacobians_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("pullback.measure.jacobian_spectrum"), "LARGEST_BYTES", 100)
    with pytest.raises(pb.InputError, match=r"Jacobians of at most 2 GB, got 0.0 GB for 2 samples. Use jacobian_ext"):
        jacobian_spectrum(nn.Linear(4, 4), torch.ones(2, 4))
