"""Stochastic Lanczos quadrature on spectra that are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from tests.compare import assert_same
from tests.spectral.matrices import Counted, Noisy, planted

DATA = json.loads((Path(__file__).parents[1] / "data" / "taylor_spectral.json").read_text())["morse"][
    "semicircle_N1000"
]


def smoothed(values: Tensor, grid: Tensor, width: float) -> Tensor:
    """The density of all eigenvalues under the same Gaussian."""
    scaled = (grid[:, None] - values.double()) / width
    return torch.exp(-0.5 * scaled.square()).mean(1) / (width * math.sqrt(2 * math.pi))


def semicircle(grid: Tensor) -> Tensor:
    return (4 - grid.square()).clamp(min=0).sqrt() / (2 * math.pi)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_semicircle(dtype: torch.dtype) -> None:
    """S2-18: a Gaussian orthogonal matrix of 1000 rows: the law, its edge and moments, and the exact spectrum."""
    n = 1000
    g = torch.randn(n, n, dtype=torch.float64)
    matrix = (g + g.T) / math.sqrt(2 * n)
    values = torch.linalg.eigvalsh(matrix)
    found = pb.spectral_density(matrix.to(dtype), 40, 10, seed=1)
    assert isinstance(found, pb.Density)
    assert found.num_matvecs == 400
    assert found.num_eigenvalues == n
    assert_same(found.weights.sum(1), torch.ones(10, dtype=torch.float64), 1e-5)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-3)
    error = (found.density - smoothed(values, found.grid, found.width)).abs()
    assert (error <= 3 * found.stderr + 1e-3).all()
    assert float(torch.trapezoid(error, found.grid)) < 0.03
    law = (found.density - semicircle(found.grid)).abs()
    assert float(torch.trapezoid(law, found.grid)) < 0.05
    assert float(found.nodes.max()) == pytest.approx(float(values[-1]), abs=1e-2)
    assert float(found.nodes.max()) == pytest.approx(DATA["edge"], abs=0.06)
    for power, expected in ((2, DATA["catalan"][0]), (4, DATA["catalan"][1])):
        moment = found.moment(power)
        assert abs(moment.value - float((values**power).mean())) <= 3 * moment.stderr
        assert moment.value == pytest.approx(expected, abs=0.1)
    share = found.share(high=0.5)
    assert abs(share.value - float((values <= 0.5).double().mean())) <= 3 * share.stderr < 0.15
    words = f"width {found.width:.3g} (10 probes, 400 products)"
    assert str(found).startswith("spectrum from -") and str(found).endswith(words)  # noqa: PT018


def test_standard_errors_hold() -> None:
    """Within three in 99 percent of 200 runs: at every point, for a share and for a moment; on a diagonal matrix with
    a bulk, a gap and outliers."""
    n = 80
    values = torch.cat([torch.zeros(30), torch.linspace(0.2, 1, 44), torch.linspace(3, 5, 6)]).double()
    matrix = torch.diag(values)
    points, shares, moments = [], 0, 0
    for seed in range(200):
        found = pb.spectral_density(matrix, 16, 5, seed=seed, grid=32)
        exact = smoothed(values, found.grid, found.width)
        points.append(((found.density - exact).abs() <= 3 * found.stderr + 1e-3 * exact.max()).double().mean())
        share, moment = found.share(2.0), found.moment(1)
        shares += abs(share.value - 6 / n) <= 3 * share.stderr
        moments += abs(moment.value - float(values.mean())) <= 3 * moment.stderr
    assert float(torch.stack(points).mean()) >= 0.99
    assert shares >= 198
    assert moments >= 198


def test_quadrature_is_exact_for_polynomials() -> None:
    """Sum of weights times nodes^p is v^T A^p v for p below 2 num_matvecs, for each probe."""
    values = torch.linspace(-1, 2, 50, dtype=torch.float64)
    found = pb.spectral_density(torch.diag(values), 5, 3, seed=2)
    again = torch.randn(50, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shares = (again / again.norm(dim=0)).square()  # of each eigenvector in each probe
    for power in range(10):
        assert_same((found.weights * found.nodes**power).sum(1), (shares * values[:, None] ** power).sum(0), 1e-11)
    assert float((found.weights * found.nodes**10).sum(1)[0]) != pytest.approx(
        float((shares * values[:, None] ** 10).sum(0)[0]), rel=1e-6
    )


def test_negative_part_of_a_hessian() -> None:
    """S2-18: the share of negative eigenvalues, with its error, against the dense matrix."""
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randint(3, (30,))
    operator = pb.Hessian(model, nn.CrossEntropyLoss(), (x, y))
    values = torch.linalg.eigvalsh(operator.to_dense())
    found = pb.spectral_density(operator, 40, 12)
    below = found.share(high=-1e-3)
    assert abs(below.value - float((values <= -1e-3).double().mean())) <= 3 * below.stderr < 0.3
    assert_same(found.density, smoothed(values, found.grid, found.width), 0.3)


def test_the_whole_space_and_degenerate_spectra() -> None:
    few = pb.spectral_density(torch.diag(torch.tensor([1.0, 2.0, 3.0])), 50, 4)
    assert few.nodes.shape == (4, 3)
    assert few.num_matvecs == 12
    assert_same(few.nodes, torch.tensor([1.0, 2, 3]).expand(4, 3).double(), 1e-5)
    for size in (2.0, 2e-9, 2e9):  # no unit of an eigenvalue is built in
        one = pb.spectral_density(size * torch.eye(30, dtype=torch.float64), 10, 3)
        assert float(one.grid[one.density.argmax()]) == pytest.approx(size, rel=1e-2)
        assert one.width == pytest.approx(1e-3 * size)
        assert one.moment(1).value == pytest.approx(size, rel=1e-5)
    zero = pb.spectral_density(torch.zeros(30, 30), 10, 3)
    assert torch.isfinite(zero.density).all()
    assert zero.share(-1e-9, 1e-9).value == pytest.approx(1)


def test_probes_wait_for_memory() -> None:
    matrix = planted(torch.linspace(0, 1, 100))
    together, apart = Counted(matrix), Counted(matrix)
    first = pb.spectral_density(together, 20, 6, grid=torch.linspace(0, 1, 30))
    second = pb.spectral_density(apart, 20, 6, grid=torch.linspace(0, 1, 30), memory_limit=2 * 8 * 100 * 24)
    assert together.calls == 20
    assert apart.calls == 60
    assert together.columns == apart.columns == 120
    assert first.density.shape == second.density.shape == (30,)
    assert bool((first.stderr > 0).any())
    assert float((first.density - second.density).abs().max()) < 1.0


def test_random_state_is_left_alone() -> None:
    matrix, state = planted(torch.linspace(0, 1, 40)), torch.get_rng_state()
    assert torch.equal(pb.spectral_density(matrix, 9, 3).density, pb.spectral_density(matrix, 9, 3).density)
    assert torch.equal(state, torch.get_rng_state())


def test_errors() -> None:
    square = torch.eye(30)
    with pytest.raises(pb.InputError, match="spectral_density: expected `num_probes` at least 2, got 1"):
        pb.spectral_density(square, num_probes=1)
    with pytest.raises(pb.InputError, match="expected `num_matvecs` at least 1, got 0"):
        pb.spectral_density(square, 0)
    with pytest.raises(pb.InputError, match="spectral_density: expected `width` above 0, got 0"):
        pb.spectral_density(square, width=0)
    with pytest.raises(pb.InputError, match="spectral_density: expected `grid` at least 2, got 1"):
        pb.spectral_density(square, grid=1)
    with pytest.raises(pb.InputError, match=r"expected `grid` \(G,\) or a number of points, got shape \(2, 2\)"):
        pb.spectral_density(square, grid=torch.zeros(2, 2))
    with pytest.raises(pb.InputError, match=r"spectral_density: expected a square operator, got shape \(30, 2\)"):
        pb.spectral_density(square[:, :2])
    with pytest.raises(pb.InputError, match="spectral_density: expected finite products, got nan or inf"):
        pb.spectral_density(square * torch.inf)
    with pytest.raises(pb.InputError, match="spectral_density: expected a symmetric operator, got <u, A v>"):
        pb.spectral_density(torch.triu(torch.randn(30, 30)))
    with pytest.raises(pb.InputError, match="spectral_density: expected a symmetric operator"):
        pb.spectral_density(Noisy(torch.eye(30).double(), 0.1) @ Counted(torch.randn(30, 30).double()))
