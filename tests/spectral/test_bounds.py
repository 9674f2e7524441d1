"""Flags in both states, error bounds against the true error, standard errors that are no wider than they must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pullback as pb
from pullback._statistics import student
from pullback.operators.operator import Operator
from pullback.spectral import inertia, largest_eigenvalues
from pullback.spectral.lanczos import Eigenpairs
from tests.spectral.matrices import planted

TRUST = [(1e-7, False), (3e-6, True)]


@pytest.mark.parametrize(("tol", "converges"), TRUST)
def test_converged_goes_by_the_residuals_of_the_operator(tol: float, converges: bool) -> None:
    """S8: below what float32 reaches the recurrence ends, and the products say that the tolerance was missed."""
    matrix = planted(torch.linspace(-1, 2, 300, dtype=torch.float64)).float()
    matrix = (matrix + matrix.T) / 2
    pairs = pb.eigenvalues(matrix, 3, tol=tol)
    true = (matrix.double() @ pairs.vectors.double() - pairs.vectors.double() * pairs.values.double()).norm(dim=0)
    rounding = 300 * torch.finfo(torch.float32).eps
    assert bool(((pairs.residuals.double() - true).abs() <= rounding).all())
    assert pairs.converged == converges == bool((pairs.residuals <= tol * 2).all())


@given(st.integers(2, 30), st.integers(1, 29), st.integers(0, 9), st.sampled_from([1e-12, 1e-3]))
def test_residuals_of_eigenpairs_are_the_true_ones(n: int, k: int, seed: int, tol: float) -> None:
    """By Lanczos and from the whole matrix; with few products as with many."""
    matrix = planted(torch.linspace(-1, 2, n, dtype=torch.float64), seed)
    matrix = (matrix + matrix.T) / 2
    k = min(k, n)
    for most in (None, k + 1):
        pairs = pb.eigenvalues(matrix, k, tol=tol, max_matvecs=most)
        true = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        assert bool(((pairs.residuals - true).abs() <= 1e-13 * n).all())
        if pairs.converged:
            assert bool((true <= tol * 2 * (1 + 1e-9) + 1e-13 * n).all())
        nearest = (pairs.values[:, None] - torch.linalg.eigvalsh(matrix)).abs().min(1).values
        assert bool((nearest <= pairs.residuals + 1e-13 * n).all())


@given(st.integers(1, 4), st.integers(2, 30), st.integers(1, 30), st.integers(1, 30))
def test_bounds_of_a_stack(layers: int, n: int, rank: int, steps: int) -> None:
    """S19: an eigenvalue lies within every bound, and a run that has not ended has a bound."""
    generator = torch.Generator().manual_seed(100 * n + rank)
    factors = torch.randn(layers, n, min(rank, n), generator=generator, dtype=torch.float64)
    stack = factors @ factors.mT
    found, bounds = largest_eigenvalues(stack, num_matvecs=steps)
    every = torch.linalg.eigvalsh(stack)
    nearest = (every - found[:, None]).abs().min(1).values
    rounding = 1e-12 * n * every[:, -1]
    assert bool((nearest <= bounds + rounding).all())
    if steps < min(rank, n, 4):
        assert bool((bounds > rounding).all())
        assert bool((bounds <= every[:, -1]).all())


CLOSE = [(5.0, False), (9.0, False), (11.0, True), (40.0, True)]


@pytest.mark.parametrize(("residuals", "decided"), CLOSE)
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_signs_are_decided_ten_residuals_from_the_bound(residuals: float, decided: bool, side: int, sign: int) -> None:
    """S15: of every eigenvalue that was found, on either side of either bound; and never without convergence."""
    value = sign * (1e-3 + side * residuals * 1e-6)
    values = torch.tensor([2.0, value, -0.5] if sign > 0 else [2.0, value], dtype=torch.float64).sort().values
    low = Eigenpairs(values, torch.eye(len(values)), torch.full_like(values, 1e-6), 9, True)
    counts = inertia._counts(low, len(values), 1e-3, 9)
    assert counts.decided == decided
    unsettled = Eigenpairs(values, torch.eye(len(values)), torch.full_like(values, 1e-6), 9, False)
    assert not inertia._counts(unsettled, len(values), 1e-3, 9).decided
    assert counts.index + (counts.nullity or 0) + (counts.positive or 0) == len(values)


def test_an_eigenvalue_within_its_residual_of_the_bound_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """S15, through the public call: the tolerance is put where Lanczos left its residual."""
    seen: list[Eigenpairs] = []
    solve = inertia.eigenvalues

    def watched(*args: Any, **options: Any) -> Eigenpairs:
        seen.append(solve(*args, **options))
        return seen[-1]

    monkeypatch.setattr(inertia, "eigenvalues", watched)
    matrix = torch.diag(torch.cat([torch.tensor([-0.02]), torch.linspace(0.3, 2, 399)]).double())
    assert pb.morse_index(matrix, dense_limit=10, tol=1e-3).decided
    top, low = seen[0], seen[-1]
    scale = max(float(low.values.abs().max()), float(top.values[0]))
    for residuals, decided in ((5, False), (100, True)):
        tol = (-float(low.values[-1]) + residuals * float(low.residuals[-1])) / scale
        assert pb.morse_index(matrix, dense_limit=10, tol=tol).decided == decided


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("errors", "decided"), [(0.3, False), (0.9, False), (1.2, True), (3.0, True)])
@pytest.mark.parametrize("side", [-1, 1])
def test_signs_of_a_whole_spectrum(dtype: torch.dtype, errors: float, decided: bool, side: int) -> None:
    """An eigenvalue closer to the bound than what rounding may have done is undecided: just inside, just outside."""
    error = 100 * torch.finfo(dtype).eps  # of a diagonal matrix of size 1
    value = torch.tensor(0.25 + side * errors * error, dtype=dtype)
    matrix = torch.diag(torch.stack([torch.ones((), dtype=dtype), value]))
    counts = pb.morse_index(matrix, tol=0.25)
    assert counts.decided == decided
    assert (counts.nullity, counts.positive) == ((1, 1) if side < 0 else (0, 2))


class Lopsided(Operator):
    """A symmetric matrix and a small part that is not."""

    symmetric = True

    def __init__(self, share: float, dtype: torch.dtype, n: int = 40) -> None:
        super().__init__((n, n), dtype, torch.device("cpu"))
        skew = torch.randn(n, n, dtype=torch.float64)
        skew = skew - skew.T
        base = planted(torch.linspace(0.5, 1, n))
        self.matrix = (base + share * skew / skew.abs().max()).to(dtype)

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.matrix @ matrix


ASYMMETRIC: dict[str, Callable[[Operator], Any]] = {
    "whole": lambda op: pb.morse_index(op),
    "whole spectrum": lambda op: pb.eigenvalues(op, 30),
    "lanczos": lambda op: pb.eigenvalues(op, 2, tol=1e-2),
    "density": lambda op: pb.spectral_density(op, 10, 4),
}


@pytest.mark.parametrize("route", ASYMMETRIC)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_how_much_asymmetry_is_refused(route: str, dtype: torch.dtype, limit: float) -> None:
    """S21: a tenth of the limit passes, ten times it does not: of entries, or of products with random vectors."""
    ASYMMETRIC[route](Lopsided(limit / 10, dtype))
    with pytest.raises(pb.InputError, match="expected a symmetric operator"):
        ASYMMETRIC[route](Lopsided(10 * limit, dtype))


def test_hidden_twins_are_found() -> None:
    """S18b: a random vector shows an eigenvector that was missed in 92 of 100 draws, as ``repeats.SHARE`` has it."""
    values = torch.cat([torch.tensor([3.0, 3, 2]), torch.linspace(0, 1, 200)]).double()
    expected, found = torch.full((2,), 3.0, dtype=torch.float64), 0
    for seed in range(40):
        pairs = pb.eigenvalues(torch.diag(values), 2, tol=1e-2, seed=seed)
        found += bool(((pairs.values - expected).abs() < 0.03).all())
    assert found >= 0.92 * 40


def test_a_share_whose_end_falls_between_nodes() -> None:
    """S12: few products see a step where there is a slope; the standard error knows it, and does not exaggerate."""
    values = torch.linspace(0, 1, 600, dtype=torch.float64)
    needed = 0
    for end in torch.linspace(0.1, 0.9, 9).tolist():
        found = pb.spectral_density(torch.diag(values), 4, 30, seed=3)
        share = found.share(high=end)
        error = abs(share.value - float((values <= end).double().mean()))
        assert error <= 3 * share.stderr
        spread = 3 * (2 / 602 * 0.25 / 30) ** 0.5 * 1.3  # of v^T f(A) v over 30 probes, at its largest, by Student
        needed += error > spread
        beside = float(found.weights.mean(0).max())
        assert 3 * share.stderr <= 1.3 * beside + spread
    assert needed > 3


def test_standard_errors_of_densities_are_not_too_wide() -> None:
    """Of points and moments: over seeds the median one is Student's factor for five probes times the spread."""
    values = torch.cat([torch.zeros(30), torch.linspace(0.2, 1, 44), torch.linspace(3, 5, 6)]).double()
    grid = torch.tensor([0.5, 4.0], dtype=torch.float64)
    runs = [pb.spectral_density(torch.diag(values), 16, 5, seed=seed, grid=grid, width=0.3) for seed in range(120)]
    moments = [run.moment(1) for run in runs]
    for estimates in (
        [(float(run.density[0]), float(run.stderr[0])) for run in runs],
        [(float(run.density[1]), float(run.stderr[1])) for run in runs],
        [(each.value, each.stderr) for each in moments],
    ):
        found, errors = torch.tensor(estimates, dtype=torch.float64).T
        assert float(errors.median()) <= 1.3 * student(5) * float(found.std())
