"""Traces, diagonals and norms: their standard errors hold in 99 of 100 seeded runs, over many kinds of spectra."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

import pullback as pb
from pullback._statistics import mean_and_stderr, student
from tests.compare import assert_same
from tests.spectral.matrices import Counted, planted
from tests.thinned import thinned

RUNS = 500
n = 60
index = torch.arange(1, n + 1, dtype=torch.float64)
SPECTRA = {
    "flat": torch.ones(n, dtype=torch.float64),
    "indefinite": torch.linspace(-1, 1, n, dtype=torch.float64),
    "1/i": 1 / index,
    "1/i^2": 1 / index**2,
    "exponential": 0.7**index,
    "rank_one": torch.eye(n, dtype=torch.float64)[0],
    "low_rank": torch.cat([torch.linspace(1, 2, 4), torch.zeros(n - 4)]).double(),
    "bulk_and_outliers": torch.cat([torch.linspace(5, 9, 5), torch.linspace(-0.1, 0.3, n - 5)]).double(),
}


def holds(estimate: Callable[[int], pb.Estimate], exact: float, runs: int = RUNS) -> list[pb.Estimate]:
    """Within three standard errors in 99 percent of the runs, which must not be won by errors far too wide."""
    found = [estimate(seed) for seed in range(runs)]
    inside = sum(abs(run.value - exact) <= 3 * run.stderr for run in found) / runs
    assert inside >= 0.99, f"{100 * inside:.1f} percent"
    return found


# of the spread: Student's factor for few draws, and no more
WIDEST = {6: 15.0, 12: 5.5, 30: 2.5}


FEW = ("1/i", "indefinite", "low_rank")  # the other spectra with `make test-slow`


@pytest.mark.parametrize(
    ("name", "method", "num_matvecs"),
    [
        *thinned(FEW, ["xtrace", "hutch++", "hutchinson"], [6, 12, 30]),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in product([n for n in SPECTRA if n not in FEW], ["xtrace", "hutch++", "hutchinson"], [6, 12, 30])
        ),
    ],
)
def test_trace(name: str, method: str, num_matvecs: int) -> None:
    matrix = planted(SPECTRA[name])
    exact = float(matrix.trace())
    runs = holds(lambda seed: pb.trace(matrix, num_matvecs, method=method, seed=seed), exact)
    values = torch.tensor([run.value for run in runs], dtype=torch.float64)
    spread = float((values - exact).square().mean().sqrt())
    widest = WIDEST[num_matvecs]
    typical = float(torch.tensor([run.stderr for run in runs]).double().median())
    assert typical <= widest * spread + 1e-12 * max(abs(exact), 1), f"{typical:.3g} against {spread:.3g}"
    bias = abs(float(values.mean()) - exact)
    assert bias <= 4 * spread / RUNS**0.5 + 1e-12 * max(abs(exact), 1)


def test_xtrace_does_better_where_the_spectrum_decays() -> None:
    """Epperly, Tropp and Webber (2024), figure 1: by orders of magnitude, and never by much worse."""
    errors = {}
    for name in ("1/i^2", "exponential", "indefinite"):
        matrix = planted(SPECTRA[name])
        exact = float(matrix.trace())
        for method in ("xtrace", "hutch++", "hutchinson"):
            values = [pb.trace(matrix, 36, method=method, seed=seed).value - exact for seed in range(100)]
            errors[name, method] = float(torch.tensor(values).square().mean().sqrt())
    for name in ("1/i^2", "exponential"):
        assert errors[name, "xtrace"] < errors[name, "hutch++"] < errors[name, "hutchinson"] / 10
    assert errors["indefinite", "xtrace"] < 2 * errors["indefinite", "hutchinson"]


@pytest.mark.parametrize("name", thinned(tuple(SPECTRA)))
def test_frobenius_norm(name: str) -> None:
    matrix = planted(SPECTRA[name])
    runs = holds(lambda seed: pb.frobenius_norm(matrix, 30, seed=seed), float(matrix.norm()))
    errors = torch.tensor([abs(run.value - float(matrix.norm())) for run in runs], dtype=torch.float64)
    typical = float(torch.tensor([run.stderr for run in runs]).double().median())
    assert typical <= 7 * float(errors.median()) + 1e-7 * float(matrix.norm())  # the root of rounding, at the least
    wide = (matrix[:40] * torch.linspace(1, 2, 40, dtype=torch.float64)[:, None])[:, torch.randperm(n)]
    holds(lambda seed: pb.frobenius_norm(wide, 24, seed=seed), float(wide.norm()))


@pytest.mark.parametrize("name", thinned(tuple(SPECTRA)))
def test_spectral_norm(name: str) -> None:
    matrix = planted(SPECTRA[name])
    symmetric = Counted((matrix + matrix.T) / 2)
    some = RUNS // 5 if name == "1/i^2" else 30  # a residual is hardly random, and Lanczos takes longer
    holds(lambda seed: pb.spectral_norm(symmetric, seed=seed), float(torch.linalg.matrix_norm(matrix, 2)), runs=some)
    tall = matrix[:, :12]
    runs = holds(lambda seed: pb.spectral_norm(tall, seed=seed), float(torch.linalg.matrix_norm(tall, 2)), runs=some)
    assert all(run.stderr <= 1e-3 * run.value for run in runs)


@pytest.mark.parametrize("name", thinned(["sparse", *SPECTRA, "not_symmetric"]))
def test_diagonal(name: str) -> None:
    """Every entry with its own standard error; sparse rows show no spread in a few draws of signs."""
    if name == "sparse":
        matrix = torch.diag(torch.rand(n, dtype=torch.float64))
        rows = torch.arange(0, n - 1, 5)
        matrix[rows, rows + 1] = matrix[rows + 1, rows] = 0.5
    elif name == "not_symmetric":
        matrix = torch.randn(n, n, dtype=torch.float64) * torch.rand(n, 1, dtype=torch.float64)
    else:
        matrix = planted(SPECTRA[name])
    for num_matvecs in (6, 12, 30):
        runs = [pb.diagonal(matrix, num_matvecs, seed=seed) for seed in range(RUNS // 2)]
        values, errors = torch.stack([r.value for r in runs]), torch.stack([r.stderr for r in runs])
        inside = ((values - matrix.diagonal()).abs() <= 3 * errors).double()
        assert inside.mean() >= 0.99
        assert inside.mean(0).min() >= 0.95
        spread = float((values - matrix.diagonal()).square().mean().sqrt())
        typical = float(errors.square().mean(1).sqrt().median())
        assert typical <= WIDEST[num_matvecs] * spread + 1e-13, f"{typical:.3g} against {spread:.3g}"


def test_exact_where_products_suffice() -> None:
    matrix = torch.randn(9, 9, dtype=torch.float64)
    assert pb.trace(matrix, 9).value == pytest.approx(float(matrix.trace()), rel=1e-13)
    assert pb.trace(matrix, 9).num_matvecs == 9
    assert_same(pb.diagonal(matrix, 20).value, matrix.diagonal(), 1e-14)
    assert pb.frobenius_norm(matrix[:, :4], 9).value == pytest.approx(float(matrix[:, :4].norm()), rel=1e-13)
    assert pb.frobenius_norm(matrix[:4], 9).num_matvecs == 4
    assert pb.spectral_norm(torch.zeros(5, 3)).value == 0
    for estimate in (pb.trace(matrix, 9), pb.frobenius_norm(matrix, 9)):
        assert 0 < estimate.stderr < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    """Rounding is in the standard error; half precision is computed in single."""
    matrix = planted(SPECTRA["low_rank"]).to(dtype)
    exact = matrix.double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for seed in range(20):
        assert abs(pb.trace(matrix, 20, seed=seed).value - float(exact.trace())) <= tolerance * 6
        assert abs(pb.frobenius_norm(matrix, 24, seed=seed).value - float(exact.norm())) <= tolerance * 6
        assert_same(pb.diagonal(matrix, 20, seed=seed).value.double(), exact.diagonal(), tolerance * 6, scale=1.0)


def test_products_are_counted() -> None:
    counted = Counted(planted(SPECTRA["1/i"]))
    for count, call in (
        (30, lambda: pb.trace(counted, 31)),
        (31, lambda: pb.trace(counted, 31, method="hutch++")),
        (31, lambda: pb.trace(counted, 31, method="hutchinson")),
        (30, lambda: pb.diagonal(counted, 31)),
        (28, lambda: pb.frobenius_norm(counted, 31)),
        (None, lambda: pb.spectral_norm(counted)),
    ):
        counted.columns = 0
        estimate = call()
        assert estimate.num_matvecs == counted.columns
        assert count in (None, counted.columns)


def test_means_of_few_samples() -> None:
    """Three widened standard errors of normal samples cover 99.73 percent, whatever their number."""
    assert student(2) == pytest.approx(19.2 / 3, rel=1e-2)  # tables of Student's t at 0.99865
    assert student(10**6) == pytest.approx(1, abs=1e-5)
    samples = torch.randn(3, 40_000, dtype=torch.float64)
    mean, stderr = mean_and_stderr(samples)
    assert float((mean.abs() <= 3 * stderr).double().mean()) == pytest.approx(0.9973, abs=0.001)
    assert_same(stderr, samples.std(0) / 3**0.5 * student(2))


def test_random_state_is_left_alone() -> None:
    matrix, state = planted(SPECTRA["1/i"]), torch.get_rng_state()
    for call in (pb.trace, pb.diagonal, pb.frobenius_norm):
        first, again, other = call(matrix, 24), call(matrix, 24), call(matrix, 24, seed=1)
        assert torch.equal(torch.as_tensor(first.value), torch.as_tensor(again.value))
        assert not torch.equal(torch.as_tensor(first.value), torch.as_tensor(other.value))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("call", [pb.trace, pb.frobenius_norm, pb.spectral_norm, pb.diagonal])
def test_estimates_and_their_errors_have_the_unit_of_the_matrix(call: Any) -> None:
    """Times 2^-20 to the bit: no constant of a size of its own is built in."""
    matrix = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T
    whole, small = call(matrix), call(2.0**-20 * matrix)
    for part in ("value", "stderr"):
        assert torch.equal(torch.as_tensor(getattr(small, part)), 2.0**-20 * torch.as_tensor(getattr(whole, part)))
    assert small.num_matvecs == whole.num_matvecs


def test_errors() -> None:
    square = torch.randn(20, 20)
    bad = torch.full((20, 20), torch.nan)
    with pytest.raises(
        pb.InputError, match="trace: expected `method` to be one of 'xtrace', 'hutch\\+\\+', 'hutchinson'"
    ):
        pb.trace(square, 10, method="exact")
    with pytest.raises(pb.InputError, match=r"trace: expected a square operator, got shape \(20, 3\)"):
        pb.trace(square[:, :3])
    with pytest.raises(pb.InputError, match="trace: expected `num_matvecs` at least 6, got 5"):
        pb.trace(square, 5)
    with pytest.raises(pb.InputError, match="diagonal: expected `num_matvecs` at least 6, got 2"):
        pb.diagonal(square, 2)
    with pytest.raises(pb.InputError, match="frobenius_norm: expected `num_matvecs` at least 12, got 6"):
        pb.frobenius_norm(square, 6)
    with pytest.raises(pb.InputError, match="spectral_norm: expected `max_matvecs` at least 4, got 1"):
        pb.spectral_norm(square, max_matvecs=1)
    for call in (
        lambda: pb.trace(bad, 10),
        lambda: pb.trace(bad, 10, method="hutchinson"),
        lambda: pb.trace(bad, 10, method="hutch++"),
        lambda: pb.trace(bad, 30),
        lambda: pb.diagonal(bad, 10),
        lambda: pb.diagonal(bad, 30),
        lambda: pb.frobenius_norm(bad, 30),
    ):
        with pytest.raises(pb.InputError, match="expected finite products, got nan or inf"):
            call()


def test_printing() -> None:
    assert str(pb.Estimate(12.3456, 0.0123, 40)) == "12.346 ± 0.012 (40 products)"
    assert str(pb.Estimate(12.0, 0.0, 40)) == "12 ± 0 (40 products)"
    assert str(pb.Estimate(torch.zeros(3), torch.zeros(3), 7)) == "tensor(3,) ± tensor(3,) (7 products)"
    words = "not converged after 3 iterations, relative residual 0.5"
    assert str(pb.Solution(torch.zeros(1), 0.5, 3, False, torch.zeros(4))) == words
