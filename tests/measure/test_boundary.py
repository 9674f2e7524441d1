"""Decision boundaries: closed forms, differences of the normal field, and the growth of curvature with depth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback.measure import NetworkSpec, boundary_curvature, boundary_points
from tests.compare import assert_same


class Level(nn.Module):
    """A model with one output, from a function of one input vector."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.function(row) for row in x]).unsqueeze(1)


def point(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_spheres() -> None:
    """S1-21: radius 3 has curvatures (1/3, 1/3); the trivial 0 of the normal is dropped."""
    found = boundary_curvature(Level(lambda x: x @ x - 9), point(1, 2, 2))
    assert_same(found.values[0], torch.full((2,), 1 / 3, dtype=torch.float64), 1e-12)
    assert_same(found.normals[0], point(1, 2, 2)[0] / 3, 1e-12)
    assert float(found.gradient_norm[0]) == pytest.approx(6)
    assert bool(found.converged.all())


@pytest.mark.parametrize("t", [-1.3, 0.0, 0.7])
def test_graphs_of_functions(t: float) -> None:
    """y = sin t: curvature f'' / (1 + f'^2)^{3/2}, up to the side the normal points to."""
    found = boundary_curvature(Level(lambda x: x[1] - torch.sin(x[0])), point(t, math.sin(t)), tol=1.0)
    assert float(found.values[0, 0]) == pytest.approx(math.sin(t) / (1 + math.cos(t) ** 2) ** 1.5, abs=1e-12)


def test_a_torus() -> None:
    """1 / r along the tube and cos / (R + r cos) around the axis."""
    R, r, angle = 2.0, 0.5, 2.2
    level = Level(lambda x: (x[:2].norm() - R) ** 2 + x[2] ** 2 - r**2)
    found = boundary_curvature(level, point(R + r * math.cos(angle), 0, r * math.sin(angle)))
    around = math.cos(angle) / (R + r * math.cos(angle))
    assert found.values[0].tolist() == pytest.approx([1 / r, around], abs=1e-12)


def shape_operator(model: nn.Module, x: Tensor, step: float = 1e-5) -> Tensor:
    """Eigenvalues of the derivative of the unit normal along the tangents, by central differences; the 0 dropped."""

    def normal(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        z = model(leaf.unsqueeze(0))[0]
        (g,) = torch.autograd.grad(z[0] if len(z) == 1 else z[1] - z[0], leaf)
        return g / g.norm()

    n = normal(x)
    basis = torch.eye(len(x), dtype=x.dtype)
    derivative = torch.stack([(normal(x + step * e) - normal(x - step * e)) / (2 * step) for e in basis], 1)
    P = basis - n.outer(n)
    form = P @ derivative @ P
    values, vectors = torch.linalg.eigh((form + form.T) / 2)
    along = int((vectors.T @ n).abs().argmax())
    return torch.cat([values[:along], values[along + 1 :]]).flip(0)


@given(
    inputs=st.integers(2, 7), width=st.integers(1, 8), depth=st.integers(1, 3), outputs=st.sampled_from([1, 2]),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_networks(inputs: int, width: int, depth: int, outputs: int, seed: int) -> None:
    """The second derivative over the slope is the derivative of the normal."""
    generator = torch.Generator().manual_seed(seed)
    model = pb.modules.MLP(
        [inputs, *[width] * depth, outputs], "tanh", init="gaussian", sigma_w=1.5, seed=seed
    ).double()
    x = torch.randn(1, inputs, generator=generator, dtype=torch.float64)
    found = boundary_curvature(model, x, tol=math.inf)
    expected = shape_operator(model, x[0])
    assert_same(found.values[0], expected, 1e-5, scale=1 + float(expected.abs().max()))


def test_scale_and_side() -> None:
    """A multiple of G has the same boundary; the other side's normal has the opposite curvatures."""
    model = pb.modules.MLP([4, 6, 3], "tanh").double()
    x = torch.randn(5, 4, dtype=torch.float64)
    pairs = torch.tensor([0, 2])
    found = boundary_curvature(model, x, pairs, tol=math.inf)
    other = boundary_curvature(model, x, pairs.flip(0), tol=math.inf)
    assert_same(other.values, -found.values.flip(1), 1e-10)
    assert_same(other.normals, -found.normals, 1e-12)
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.layers[-1].weight.mul_(7)
        large.layers[-1].bias.mul_(7)
    assert_same(boundary_curvature(large, x, pairs, tol=math.inf).values, found.values, 1e-10)
    assert found.classes.tolist() == [[0, 2]] * 5


def test_inputs_stretched() -> None:
    """Lengths twice as large halve curvatures."""
    level = Level(lambda x: torch.sin(x[0]) + x[1] ** 3 + x[2] * x[0] - 0.3)
    half = Level(lambda x: level.function(x / 2))
    x = torch.randn(1, 3, dtype=torch.float64)
    found, other = (boundary_curvature(m, p, tol=math.inf).values for m, p in ((level, x), (half, 2 * x)))
    assert_same(other, found / 2, 1e-10)


def test_flat_boundaries() -> None:
    """S1-21: a linear read-out's boundary w . h = b is flat in the space it reads, and piecewise so behind ReLU."""
    x = torch.randn(3, 5, dtype=torch.float64)
    linear = boundary_curvature(nn.Linear(5, 2).double(), x, tol=math.inf)
    relu = boundary_curvature(pb.modules.MLP([5, 9, 9, 2], "relu").double(), x, tol=math.inf)
    for found in (linear, relu):
        assert torch.equal(found.values, torch.zeros(3, 4, dtype=torch.float64))
    some = boundary_curvature(nn.Linear(5, 2).double(), x, k=1, tol=math.inf)
    assert float(some.values.abs().max()) == 0


def test_what_bends_along_its_normal_alone_is_flat() -> None:
    """G = tanh(w . x): the second derivative is all in the normal's direction, and large."""
    w = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)
    found = boundary_curvature(Level(lambda x: torch.tanh(w @ x)), torch.randn(4, 4).double(), tol=math.inf)
    assert float(found.values.abs().max()) < 1e-14


def test_without_the_matrix() -> None:
    model = pb.modules.MLP([60, 30, 30, 2], "tanh", init="gaussian", sigma_w=2.5).double()
    x = torch.randn(2, 60, dtype=torch.float64)
    whole = boundary_curvature(model, x, tol=math.inf)
    some = boundary_curvature(model, x, k=3, tol=math.inf)
    assert some.values.shape == (2, 6)
    assert bool(some.converged.all())
    expected = torch.cat([whole.values[:, :3], whole.values[:, -3:]], 1)
    assert bool(((some.values - expected).abs() <= some.residuals + 1e-12).all())
    assert_same(some.values, expected, 1e-5)


def test_images() -> None:
    """Inputs of several axes are one vector."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    flat = nn.Sequential(nn.Unflatten(1, (1, 3, 3)), *model)
    found = boundary_curvature(model, x, tol=math.inf)
    assert found.values.shape == (2, 8)
    assert_same(found.values, boundary_curvature(flat, x.flatten(1), tol=math.inf).values, 1e-12)


def test_float32() -> None:
    found = boundary_curvature(Level(lambda x: x @ x - 9), point(1, 2, 2).float())
    assert found.values.dtype == torch.float32
    assert found.values[0].tolist() == pytest.approx([1 / 3, 1 / 3], rel=1e-6)


# Points on boundaries


@given(classes=st.integers(1, 5), seed=st.integers(0, 100))
def test_points_lie_between_two_classes(classes: int, seed: int) -> None:
    model = pb.modules.MLP([3, 10, classes], "tanh", init="gaussian", sigma_w=3.0, sigma_b=1.0, seed=seed).double()
    x = 2 * torch.randn(400, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = model(x).detach()
    label = (z[:, 0] > 0).long() if classes == 1 else z.argmax(1)
    ends = [x[label == c] for c in label.unique()]
    if len(ends) < 2:
        return
    count = min(len(ends[0]), len(ends[1]))
    a, b = ends[0][:count], ends[1][:count]
    found = boundary_points(model, a, b)
    scores = model(found.x).detach()
    scores = torch.cat([torch.zeros_like(scores), scores], 1) if classes == 1 else scores
    gap = scores.gather(1, found.classes).diff(dim=1)
    assert float(gap.abs().max()) < 1e-12 * max(1.0, float(scores.abs().max())) * 100
    assert_same(scores.max(1).values, scores.gather(1, found.classes[:, :1])[:, 0], 1e-11, scale=1.0)
    t = ((found.x - a) * (b - a)).sum(1) / (b - a).square().sum(1)
    assert bool(((t >= 0) & (t <= 1)).all())
    assert_same(a + t.unsqueeze(1) * (b - a), found.x, 1e-10)
    assert bool((found.classes[:, 0] == label[label == label.unique()[0]][:count]).all())
    assert bool((found.classes[:, 0] != found.classes[:, 1]).all())


def test_a_third_class_in_between() -> None:
    """The first change of class that bisection holds on to is on the boundary of the class it starts in."""
    model = nn.Linear(1, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [0.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    found = boundary_points(model, point(-3.0), point(4.0))
    assert found.classes.tolist() == [[0, 1]]
    assert float(found.x[0, 0]) == pytest.approx(-1.0, abs=1e-14)


def test_points_and_curvature_together() -> None:
    model = pb.modules.MLP([4, 12, 5], "tanh", init="gaussian", sigma_w=3.0).double()
    x = torch.randn(200, 4, dtype=torch.float64)
    label = model(x).argmax(1)
    a, b = x[label == label[0]][:20], x[label != label[0]][:20]
    count = min(len(a), len(b))
    found = boundary_points(model, a[:count], b[:count])
    curvature = boundary_curvature(model, found.x, found.classes)
    assert float(curvature.distance.max()) < 1e-13
    assert curvature.values.shape == (count, 3)


def largest_curvatures(sigma_w: float, depth: int) -> Tensor:
    """|x| |curvature| of the most bent direction, at boundary points of random networks with a linear read-out."""
    width, found = 100, []
    for seed in range(3):
        net = NetworkSpec("tanh", sigma_w, 0.3, depth=depth, width=width).build(seed)
        readout = nn.Linear(width, 1, bias=False).double()
        with torch.no_grad():
            readout.weight.copy_(torch.randn(1, width, generator=torch.Generator().manual_seed(1000 + seed)))
            x = torch.randn(60, width, generator=torch.Generator().manual_seed(2000 + seed), dtype=torch.float64)
            states = net(x)
            readout_of = (states @ readout.weight.T)[:, 0]
            offset = nn.Parameter(-readout_of.median().reshape(1))  # the boundary passes through the inputs
        model = nn.Sequential(net, nn.Linear(width, 1).double())
        model[1].weight, model[1].bias = readout.weight, offset
        above = (model(x) > 0)[:, 0]
        count = min(int(above.sum()), int((~above).sum()), 4)
        points = boundary_points(model, x[above][:count], x[~above][:count]).x
        values = boundary_curvature(model, points, k=1, tol=1e-3).values.abs().amax(1)
        found.append(values * points.norm(dim=1))
    return torch.cat(found)


@pytest.mark.slow
def test_curvature_grows_with_depth_in_the_chaotic_phase() -> None:
    """S1-21: by far more from 2 to 8 layers than in the ordered phase."""
    growth = {}
    for name, sigma_w in (("ordered", 0.9), ("chaotic", 4.0)):
        shallow, deep = (largest_curvatures(sigma_w, depth).median() for depth in (2, 8))
        growth[name] = float(deep / shallow)
    assert growth["chaotic"] > 3
    assert growth["chaotic"] > 2 * growth["ordered"]


def test_nothing_is_disturbed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = torch.ones(1, 3)
    boundary_curvature(model, x, tol=math.inf)
    with pytest.raises(pb.InputError):
        boundary_points(model, x, x)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not x.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    model, x = pb.modules.MLP([4, 6, 2], "tanh").double(), torch.randn(3, 4, dtype=torch.float64)
    expected = boundary_curvature(model, x, tol=math.inf).values
    assert_same(boundary_curvature(model.cuda(), x.cuda(), tol=math.inf).values.cpu(), expected)


LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: boundary_curvature(nn.Linear(1, 2), torch.ones(1, 1)),
            r"boundary_curvature: expected inputs of at least two numbers, got 1",
        ),
        (
            lambda: boundary_curvature(nn.Linear(1001, 2), torch.ones(1, 1001)),
            r"expected `k` for inputs of more than 1000 numbers, got None",
        ),
        (lambda: boundary_curvature(LINEAR, torch.ones(1, 2), k=2), r"boundary_curvature: expected `k` from 1 to 1"),
        (lambda: boundary_curvature(LINEAR, torch.ones(1, 2), tol=0), r"boundary_curvature: expected `tol` above 0"),
        (
            lambda: boundary_curvature(Level(lambda x: x @ x - 9), point(1, 2, 3)),
            r"expected points on the boundary, got point 0 about 0.668 away from it",
        ),
        (
            lambda: boundary_curvature(Level(lambda x: x @ x), point(0, 0)),
            r"expected a gradient of G at point 0, got zero",
        ),
        (
            lambda: boundary_curvature(LINEAR, torch.ones(1, 2), torch.tensor([0, 2])),
            r"expected `classes` \(1, 2\) from 0 to 1, got \[0, 2\]",
        ),
        (
            lambda: boundary_curvature(LINEAR, torch.ones(3, 2), torch.zeros(2, 2).long()),
            r"expected `classes` \(3, 2\) from 0 to 1",
        ),
        (
            lambda: boundary_curvature(LINEAR, torch.ones(1, 2), torch.tensor([1, 1])),
            r"expected two different `classes`, got \[1, 1\]",
        ),
        (
            lambda: boundary_curvature(nn.Identity(), torch.ones(1, 2, 2)),
            r"expected a model that returns one tensor \(N, C\), got shape \(1, 2, 2\)",
        ),
        (
            lambda: boundary_points(LINEAR, torch.ones(2, 2), torch.ones(2, 2)),
            r"boundary_points: expected ends of different class, got [01] twice in pair 0",
        ),
        (
            lambda: boundary_points(LINEAR, torch.ones(2, 2), torch.ones(2, 1)),
            r"boundary_points: expected `a` and `b` of one shape and dtype",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_how_far_a_point_may_be_from_the_boundary() -> None:
    """Relative to its norm: half of ``tol`` is on it, ten times is not."""
    sphere = Level(lambda x: x @ x - 9)
    for share, tol in ((0.5, 1e-3), (0.5, 1e-6)):
        found = boundary_curvature(sphere, point(0, 0, 3 * (1 + share * tol)), tol=tol)
        assert found.values.abs() == pytest.approx(torch.full((1, 2), 1 / 3).numpy(), rel=2 * tol)
    for tol in (1e-3, 1e-6):
        with pytest.raises(pb.InputError, match="expected points on the boundary, got point 0 about"):
            boundary_curvature(sphere, point(0, 0, 3 * (1 + 10 * tol)), tol=tol)


def test_random_models_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode"):
        boundary_curvature(model, torch.ones(1, 2))
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode"):
        boundary_points(model, torch.ones(1, 2), torch.ones(1, 2))
