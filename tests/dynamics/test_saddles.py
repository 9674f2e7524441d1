"""Saddles (S1-51, S1-52, S1-89, S1-90, S2-17): what methods do there, kinds of points, random Hessians."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback import dynamics
from pullback.dynamics import Quadratic

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[1] / "data" / "dynamics.json").read_text())["morse"]
SADDLE = Quadratic([1.0, -1.0])


def test_fates_near_a_saddle() -> None:
    """S1-52: from (1, 0.01) on (x^2 - y^2) / 2."""
    fates = dynamics.near_saddle(SADDLE, [1.0, 0.01])
    kinds = {method: fate.kind for method, fate in fates.items()}
    assert kinds == {
        "gradient_descent": "escapes",
        "heavy_ball": "escapes",
        "nesterov": "escapes",
        "newton": "attracted",
        "damped_newton": "attracted",
        "natural_gradient": "attracted",
        "truncated_newton": "held",
        "saddle_free_newton": "escapes",
    }
    assert fates["gradient_descent"].factor == pytest.approx(1.1, rel=1e-14)
    assert fates["gradient_descent"].steps == math.ceil(math.log(1 / 0.01) / math.log(1.1))
    assert fates["saddle_free_newton"].factor == pytest.approx(2.0)
    assert fates["newton"].steps == math.inf == fates["truncated_newton"].steps
    assert fates["heavy_ball"].steps < fates["gradient_descent"].steps


@pytest.mark.parametrize(
    ("damping", "kind"),
    [(0.3, "attracted"), (0.5, "held"), (0.7, "jumps across"), (2.0, "escapes"), (20.0, "escapes")],
)
def test_damping_decides(damping: float, kind: str) -> None:
    """E1.28: damping / (h + damping) along a direction of curvature h = -1."""
    fate = dynamics.near_saddle(SADDLE, [1.0, 0.01], damping=damping)["damped_newton"]
    assert fate.kind == kind
    assert fate.factor == pytest.approx(damping / (damping - 1), rel=1e-12)
    if kind in ("escapes", "jumps across"):
        assert fate.steps == math.ceil(math.log(100) / math.log(abs(fate.factor)))
    else:
        assert fate.steps == math.inf
    assert "damped_newton" not in dynamics.near_saddle(SADDLE, [1.0, 0.01], damping=1.0)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_escape_of_torchs_optimizer(momentum: float, nesterov: bool) -> None:
    """S2-17: theory beside simulation, from many starts; twice as near takes log 2 / log 1.1 steps more."""
    starts = torch.tensor([[1.0, 0.01 / 2**k] for k in range(6)], dtype=F64)
    found = dynamics.simulate(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum, nesterov=nesterov), "saddle", starts, 120
    )
    steps = dynamics.steps_away(found.x, [0.0, 0.0], 1.0, [[0.0], [1.0]])
    method = "nesterov" if nesterov else "heavy_ball"
    for start, step in zip(starts, steps, strict=True):
        fate = dynamics.near_saddle(SADDLE, start, lr=0.1, momentum=momentum)[method]
        # torch takes its first step of Nesterov's method with momentum already
        assert abs(fate.steps - float(step)) <= (1 if nesterov else 0)
    if not momentum:
        assert (steps[1:] - steps[:-1]).tolist() == pytest.approx([math.log(2) / math.log(1.1)] * 5, abs=1)


def test_on_the_stable_manifold_nothing_leaves() -> None:
    """S2-17: y = 0 stays 0 for ever; a perturbation escapes."""
    fates = dynamics.near_saddle(SADDLE, [1.0, 0.0], most=500)
    assert all(fate.steps == math.inf for fate in fates.values())
    for make in (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)):
        still = dynamics.simulate(make, "saddle", [[1.0, 0.0], [1.0, 1e-12]], 400)
        assert bool((still.x[0, :, 1] == 0).all())
        assert float(dynamics.steps_away(still.x[1], [0.0, 0.0], 1.0, [[0.0], [1.0]])) < 400


def test_noise_escapes_in_logarithmic_time() -> None:
    """From the saddle itself: variance grows by (1 + lr)^2 a step, of which ``noisy_moments`` has the closed form."""
    lr, s2 = 0.1, 1e-6
    make = lambda p: torch.optim.SGD(p, lr=lr)
    found = dynamics.simulate(make, "saddle", torch.zeros(2000, 2, dtype=F64), 60, noise_covariance=s2)
    known = dynamics.noisy_moments(SADDLE, [0.0, 0.0], 60, lr=lr, noise_covariance=s2).covariance[:, 1, 1]
    drawn = found.x[..., 1].square().mean(0)
    assert float((drawn[1:] / known[1:] - 1).abs().max()) < 5 * math.sqrt(2 / 2000)


def test_several_directions_and_a_turned_saddle() -> None:
    made = torch.Generator().manual_seed(1)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=made, dtype=F64))[0]
    h = torch.tensor([-1.0, -0.3, 0.5, 2.0], dtype=F64)
    b = torch.randn(4, generator=made, dtype=F64)
    A = (Q * h) @ Q.T
    problem = Quadratic((A + A.T) / 2, b)
    x0 = problem.stationary_point + 0.01 * torch.randn(4, generator=made, dtype=F64)
    fate = dynamics.near_saddle(problem, x0, 0.5)["gradient_descent"]
    path = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=0.1), problem, x0, 100).x
    assert fate.factor == pytest.approx(1.1, rel=1e-12)
    assert float(dynamics.steps_away(path, problem.stationary_point, 0.5, Q[:, :2])) == fate.steps


@pytest.mark.parametrize("size", [3, 4])
def test_index_of_the_examples(size: int) -> None:
    """S1-89: the product double well, a sum of cosines."""
    well = KNOWN["product_double_well f=sum(x^4/4-x^2/2), n=3"]
    if size == 3:
        places = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=F64)] * 3)
        counts = Counter(dynamics.critical_point("double_well", x).index for x in places)
        assert {str(k): n for k, n in counts.items()} == well["index_k_count C(n,k)2^{n-k}"]
        assert sum((-1) ** k * n for k, n in counts.items() if k is not None) == well["alternating_sum"]
        assert dynamics.critical_point("double_well", [0.0, 0.0, 0.0]).index == well["index_at_origin"]
        assert dynamics.critical_point("double_well", [1.0, 0.0, -1.0]).index == well["index_at_(1,0,-1)"]
        return
    cosines = lambda x: torch.cos(x).sum(-1)
    known = KNOWN["sum_cos n=4"]
    assert dynamics.critical_point(cosines, [0.0] * 4).index == known["index_at_0"]
    assert dynamics.critical_point(cosines, [0.0, math.pi, math.pi, 0.0]).index == known["index_at_(0,pi,pi,0)"]


def test_kinds_of_the_examples() -> None:
    """S1-89: counts, degenerate points, eigenvalues."""
    signs = torch.tensor([-1.0, -2.0, 3.0], dtype=F64)
    found = dynamics.critical_point(lambda x: (signs * x.square()).sum(-1), [0.0] * 3)
    known = KNOWN["quadratic -x^2-2y^2+3z^2"]
    assert found.index == known["index"]
    assert found.eigenvalues.tolist() == pytest.approx(known["hessian_eigs"], abs=1e-12)
    assert (found.kind.negative, found.kind.zero, found.kind.positive) == (2, 0, 1)
    for name, at in (("monkey_saddle", [0.0, 0.0]), ("three_layers", [0.0] * 3), (lambda x: -(x**4).sum(-1), [0.0])):
        flat = dynamics.critical_point(name, at)
        assert flat.index is None
        assert flat.kind.kind == "degenerate"
    layers = KNOWN["two_layer_scalar L=1/2(w1 w2-1)^2"]
    for place, at in (("at_(0,0)", [0.0, 0.0]), ("at_(1,1)", [1.0, 1.0])):
        point = dynamics.critical_point("two_layers", at)
        assert point.eigenvalues.tolist() == pytest.approx(layers[place]["eigs"], abs=1e-12)
        assert point.kind.negative == layers[place]["index"]
    valley, known = dynamics.critical_point("rosenbrock", [1.0, 1.0]), KNOWN["rosenbrock_at_(1,1)"]
    assert valley.eigenvalues.tolist() == pytest.approx(known["eigs"], rel=1e-10)
    assert float(valley.eigenvalues[1] / valley.eigenvalues[0]) == pytest.approx(known["kappa"], rel=1e-10)


def height_on_torus(angles: Tensor) -> Tensor:
    """Of a torus that stands upright."""
    u, v = angles[..., 0], angles[..., 1]
    return (2 + torch.cos(v)) * torch.cos(u)


def test_critical_points_of_heights() -> None:
    """S1-89: Newton finds them all, and their alternating sum is the Euler characteristic: torus 0, sphere 2."""
    grid = torch.cartesian_prod(*[torch.linspace(-1.4, 4.4, 8, dtype=F64)] * 2)
    found = dynamics.critical_points(height_on_torus, grid)
    places = {tuple(round(v) % 2 for v in (p.x / math.pi).tolist()): p.index for p in found}
    indices = sorted(index for index in places.values() if index is not None)
    assert indices == KNOWN["height_on_torus"]["indices"]
    assert sum((-1) ** k for k in indices) == KNOWN["height_on_torus"]["alternating_sum=Euler"]
    north = lambda x: (1 - x.square().sum(-1)).sqrt()
    south = lambda x: -north(x)
    poles = sorted(dynamics.critical_point(each, [0.0, 0.0]).index or 0 for each in (north, south))
    assert poles == KNOWN["height_on_sphere_S2"]["indices"]


def test_newton_goes_to_every_kind() -> None:
    """S1-52: from around, it settles at maxima and saddles as at minima."""
    starts = torch.tensor([[0.1, 0.05], [0.05, 0.95], [0.9, 1.1]], dtype=F64)
    found = dynamics.critical_points("double_well", starts)
    assert sorted(point.index for point in found if point.index is not None) == [0, 1, 2]
    assert [p.value for p in found] == sorted(p.value for p in found)
    again = dynamics.critical_points("double_well", torch.cat([starts, starts + 1e-3]))
    assert len(again) == 3
    line = lambda x: x.sum(-1)
    assert dynamics.critical_points(line, starts) == []
    assert dynamics.critical_points("double_well", starts, steps=0) == []


def bent(x: Tensor) -> Tensor:
    """Not a sum of functions of single coordinates; a saddle at 0."""
    a, b = x[..., 0], x[..., 1]
    return torch.sin(a * b) + a.square() * (1 + b / 3) - b**3 / 4 - b.square() / 2


@pytest.mark.parametrize(
    ("world", "point", "reach"),
    [
        ("rosenbrock", [1.0, 1.0], 0.005),
        ("double_well", [0.0, 1.0], 0.3),
        ("himmelblau", [3.0, 2.0], 0.4),
        ("two_layers", [0.0, 0.0], 0.4),
        (bent, [0.0, 0.0], 0.2),
        (lambda x: -torch.exp(x).sum(-1) + x.sum(-1), [0.0, 0.0, 0.0], 0.5),
    ],
)
def test_morse_coordinates(world: Any, point: list[float], reach: float) -> None:
    """S1-90: the function is its value plus squares with the Hessian's signs; coordinates are invertible there."""
    function = dynamics.landscape(world) if isinstance(world, str) else world
    p = torch.tensor(point, dtype=F64)
    x = p + reach * (2 * torch.rand(3, 5, len(p), generator=torch.Generator().manual_seed(2), dtype=F64) - 1)
    y, signs = dynamics.morse_coordinates(world, point, x)
    assert y.shape == x.shape
    rise = function(x) - function(p)
    torch.testing.assert_close((signs * y.square()).sum(-1), rise, rtol=1e-9, atol=1e-10 * float(rise.abs().max()))
    assert int((signs < 0).sum()) == dynamics.critical_point(world, point).index
    slopes = torch.stack(
        [dynamics.morse_coordinates(world, point, p + 1e-5 * e)[0] / 1e-5 for e in torch.eye(len(p), dtype=F64)]
    )
    H = torch.func.jacrev(torch.func.grad(function))(p)
    torch.testing.assert_close((slopes * signs) @ slopes.T, H / 2, rtol=1e-3, atol=1e-3 * float(H.abs().max()))


def test_semicircle() -> None:
    """S1-51: edges, moments, density, and the share below zero against the shift."""
    values = torch.linalg.eigvalsh(dynamics.random_hessians(1000, seed=4)[0])
    assert float(values[-1]) == pytest.approx(2.0, abs=0.05)
    assert float(values[0]) == pytest.approx(-2.0, abs=0.05)
    # traces of powers fluctuate by about 1 / N
    assert float((values**2).mean()) == pytest.approx(KNOWN["semicircle_N1000"]["catalan"][0], abs=0.01)
    assert float((values**4).mean()) == pytest.approx(KNOWN["semicircle_N1000"]["catalan"][1], abs=0.03)
    at = torch.linspace(-3, 4, 70001, dtype=F64)
    density = dynamics.semicircle(at, 0.5, 1.5)
    assert float(torch.trapezoid(density, at)) == pytest.approx(1.0, abs=1e-6)
    below = float(torch.trapezoid(density[at < 1e-9], at[at < 1e-9]))
    assert float(dynamics.negative_share(0.5, 1.5)) == pytest.approx(below, abs=1e-6)
    for shift in (-2.5, -1.0, 0.0, 0.7, 1.9, 2.5):
        drawn = torch.linalg.eigvalsh(dynamics.random_hessians(150, 4, shift=shift, seed=1))
        assert float((drawn < 0).double().mean()) == pytest.approx(float(dynamics.negative_share(shift)), abs=0.01)


def test_chance_of_a_minimum() -> None:
    """S1-51: that all eigenvalues are positive, against draws and the closed forms of the reference."""
    known = KNOWN["GOE_P(all eigenvalues>0)"]
    count = 40000
    for size in (1, 2, 3):
        p = dynamics.all_positive_probability(size)
        assert p == pytest.approx(known["closed"][str(size)], abs=1e-10)
        drawn = (torch.linalg.eigvalsh(dynamics.random_hessians(size, count, seed=2)) > 0).all(-1).double().mean()
        assert float(drawn) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count))
    assert known["mc_4e5"]["4"] / 5 < dynamics.all_positive_probability(4) < 5 * known["mc_4e5"]["4"]
    assert dynamics.all_positive_probability(10) == pytest.approx(math.exp(-25 * math.log(3)))


@pytest.mark.parametrize("energy", [-1.7, -1.2, -0.4, 0.5])
def test_index_against_energy_of_a_spin_glass(energy: float) -> None:
    """S1-51: the curvature along the sphere of a random cubic whose energy at a point is given."""
    size, p = 120, 3
    made = torch.Generator().manual_seed(5)
    J = torch.randn(size, size, size, generator=made, dtype=F64)
    x = torch.randn(size, generator=made, dtype=F64)
    x = x * math.sqrt(size) / x.norm()
    cubic = torch.einsum("ijk,i,j,k->", J, x, x, x)
    J = J + (energy * size**2 - cubic) / size**3 * torch.einsum("i,j,k->ijk", x, x, x)
    assert float(torch.einsum("ijk,i,j,k->", J, x, x, x)) / size / size == pytest.approx(energy, rel=1e-9)
    pairs = torch.einsum("ijk,k->ij", J, x) + torch.einsum("ikj,k->ij", J, x) + torch.einsum("kij,k->ij", J, x)
    H = (pairs + pairs.T) / size  # of H(x) = sum J x x x / N
    tangent = torch.linalg.qr(torch.cat([x[:, None], torch.randn(size, size - 1, generator=made, dtype=F64)], 1))[0]
    along = tangent[:, 1:].T @ H @ tangent[:, 1:] - p * energy * torch.eye(size - 1, dtype=F64)
    centre, radius = dynamics.spin_glass_spectrum(energy, p)
    values = torch.linalg.eigvalsh(along)
    assert float((values < 0).double().mean()) == pytest.approx(
        float(dynamics.negative_share(centre, radius)), abs=0.03
    )
    assert float(values.mean()) == pytest.approx(centre, abs=0.1)
    assert float(values.var()) == pytest.approx(radius**2 / 4, rel=0.05)
    assert (float(dynamics.negative_share(centre, radius)) == 0) == (energy < -2 * math.sqrt((p - 1) / p))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dynamics.near_saddle(Quadratic([1.0, 2.0]), [1.0, 1.0]), "negative curvature, got curvatures"),
        (lambda: dynamics.near_saddle(SADDLE, [1.0, 1.0], 0.0), "`radius` above 0, got 0.0"),
        (lambda: dynamics.near_saddle(SADDLE, [1.0, 1.0], most=0), "`most` above 0, got 0"),
        (lambda: dynamics.near_saddle(SADDLE, [1.0, 1.0], lr=-1.0), "`lr` above 0, got -1.0"),
        (lambda: dynamics.near_saddle("saddle", [1.0, 1.0]), "`problem` to be a Quadratic, got 'saddle'"),
        (lambda: dynamics.steps_away(torch.ones(2, 2), [0.0], 1.0), r"`point` \(d,\), got shapes \(2, 2\) and \(1,\)"),
        (lambda: dynamics.critical_points("saddle", [[0.0, 0.0]], steps=-1), "`steps` at least 0, got -1"),
        (lambda: dynamics.spin_glass_spectrum(math.nan), "a finite `energy`, got nan"),
        (lambda: dynamics.steps_away(torch.ones(2, 2), [0.0, 0.0], -1.0), "`radius` above 0, got -1.0"),
        (lambda: dynamics.critical_point("saddle", [1.0, 0.0]), r"gradient of at most 1e-06, got \|gradient\| = 1"),
        (lambda: dynamics.critical_point("saddle", [[0.0, 0.0]]), r"`x` \(d,\), got shape \(1, 2\)"),
        (lambda: dynamics.critical_point("saddle", [math.inf, 0.0]), "finite numbers in `x`"),
        (lambda: dynamics.critical_point("hill", [0.0]), "`landscape` to be one of"),
        (lambda: dynamics.critical_points("saddle", [0.0, 0.0]), r"`starts` \(B, d\), got shape \(2,\)"),
        (lambda: dynamics.critical_points("saddle", [[0.0, 0.0]], apart=0.0), "`apart` above 0, got 0.0"),
        (lambda: dynamics.morse_coordinates("monkey_saddle", [0.0, 0.0], [0.1, 0.1]), "zero eigenvalues, got 2"),
        (lambda: dynamics.morse_coordinates("saddle", [0.0, 0.0], [0.1]), "`x` with 2 coordinates last"),
        (lambda: dynamics.morse_coordinates("saddle", [0.0, 0.0], [0.1, 0.1], nodes=0), "`nodes` at least 1, got 0"),
        (lambda: dynamics.morse_coordinates("double_well", [0.0, 0.0], [2.5, 0.0]), "curvature still is like that"),
        (lambda: dynamics.random_hessians(0), "`size` at least 1, got 0"),
        (lambda: dynamics.random_hessians(2, True), "`count` at least 1, got True"),
        (lambda: dynamics.semicircle(0.0, radius=0.0), "`radius` above 0"),
        (lambda: dynamics.negative_share(0.0, -1.0), "`radius` above 0"),
        (lambda: dynamics.all_positive_probability(0), "`size` at least 1, got 0"),
        (lambda: dynamics.spin_glass_spectrum(0.0, 2), "`order` at least 3, got 2"),
    ],
)  # fmt: skip
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
