"""What kernels and spectra say of themselves: flags in both states, floors of rounding just inside and just outside."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.diagnostics import gradient_noise, kernel_drift, label_alignment, spectrum
from pullback.diagnostics.curvature_spectrum import eigenpairs as spectrum_eigenpairs
from pullback.diagnostics.sharpness import Sharpness
from pullback.spectral import Eigenpairs

DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("units", "kept"), [(0, False), (2, False), (6, True), (1e3, True)])
def test_how_little_noise_is_noise(dtype: torch.dtype, units: float, kept: bool) -> None:
    """Di2: four units of rounding of the trace, and no more: half a percent of a float32 trace is measured."""
    eps = torch.finfo(dtype).eps
    kernel = torch.ones(5, 5, dtype=dtype)
    kernel.diagonal().add_(units * eps)  # a shared gradient of size 1, and a variance of so many units
    found = gradient_noise(kernel)
    assert found.variance == pytest.approx(units * eps if kept else 0.0, rel=1e-6)
    assert found.square_mean == pytest.approx(1)
    assert math.isnan(found.signal_to_noise) == (not kept)
    half = torch.ones(5, 5, dtype=dtype)
    half.diagonal().add_(1e-4)
    assert gradient_noise(half).variance == pytest.approx(1e-4, rel=1e-2)


def test_ratios_that_are_not_defined_without_a_sample() -> None:
    """Di3: all signal is that of one sample; its noise scale has a value and no standard error."""
    G = torch.tensor([[3.0], [1.0], [-0.4]])
    found = gradient_noise(G @ G.T)
    assert found.noise_scale == pytest.approx(found.variance / found.square_mean)
    assert found.square_mean > 0
    assert math.isnan(found.noise_scale_stderr)
    assert found.signal_to_noise_stderr > 0
    G = torch.tensor([[3.0], [2.5], [2.8]])  # without any sample there is signal left
    assert gradient_noise(G @ G.T).noise_scale_stderr > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("units", "defined"), [(0.0, False), (7.0, False), (14.0, True), (1e4, True)])
def test_what_is_left_after_centring(dtype: torch.dtype, units: float, defined: bool) -> None:
    """Di7: a constant kernel is centred to rounding, which is compared with nothing."""
    n, eps = 7, torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(0)
    constant = torch.full((n, n), 1 / 3, dtype=torch.float64)
    rough = torch.randn(n, n, generator=generator, dtype=torch.float64)
    rough = rough + rough.T
    rough = rough - rough.mean(0) - rough.mean(1, keepdim=True) + rough.mean()
    kernel = (constant + units * eps / 3 * rough / rough.abs().max()).to(dtype)
    y = torch.arange(n) % 2
    found = kernel_drift(kernel, kernel)
    assert math.isnan(found.cka) == (not defined)
    assert math.isnan(label_alignment(kernel, y)) == (not defined)
    assert found.alignment == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES)
@given(n=st.integers(2, 12), rank=st.integers(1, 12), seed=st.integers(0, 20))
def test_the_rank_of_a_kernel(dtype: torch.dtype, n: int, rank: int, seed: int) -> None:
    """Di11: rounding is no rank: K = G G^T of fewer parameters than samples has no condition number."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    rank = min(rank, n)
    values = torch.linspace(1, 2, rank, dtype=torch.float64)
    G = (left[:, :rank] * values.sqrt()).to(dtype)
    kernel = G @ G.T
    found = spectrum((kernel + kernel.T) / 2)
    assert found.rank == rank
    assert math.isinf(found.condition_number) == (rank < n)
    assert found.nonzero_condition_number == pytest.approx(2.0 if rank > 1 else 1.0, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("floors", "rank"), [(0.5, 1), (2.0, 2)])
def test_the_noise_floor_of_a_spectrum(dtype: torch.dtype, floors: float, rank: int) -> None:
    """N units of rounding of the largest eigenvalue."""
    values = torch.tensor([3.0, floors * 2 * torch.finfo(dtype).eps * 3.0], dtype=dtype)
    found = spectrum(torch.diag(values))
    assert found.rank == rank
    assert math.isfinite(found.condition_number) == (rank == 2)
    assert found.noise_floor == pytest.approx(2 * torch.finfo(dtype).eps * 3)


def test_condition_numbers_of_a_known_spectrum() -> None:
    found = pb.spectrum(torch.diag(torch.tensor([1.0, 8.0, 2.0])))
    assert (found.rank, found.condition_number, found.nonzero_condition_number) == (3, 8.0, 8.0)
    found = pb.spectrum(torch.diag(torch.tensor([0.0, 8.0, 2.0])))
    assert (found.rank, found.condition_number, found.nonzero_condition_number) == (2, math.inf, 4.0)
    found = pb.spectrum(torch.zeros(2, 2))
    assert (found.rank, found.condition_number) == (0, math.inf)
    assert math.isnan(found.nonzero_condition_number)


def pairs(value: float) -> Eigenpairs:
    return Eigenpairs(torch.tensor([value]), torch.ones(1, 1), torch.zeros(1), 3, True)


@pytest.mark.parametrize(("hessian", "gauss_newton"), list(itertools.product([0.5, 19.9, 20.1, 40.0], repeat=2)))
def test_stable_asks_both_matrices(hessian: float, gauss_newton: float) -> None:
    """Di16: at a rate of 0.1 both must lie below 20."""
    found = Sharpness(pairs(hessian), pairs(gauss_newton), 0.1)
    assert found.stable == (hessian < 20 and gauss_newton < 20)
    assert ("not both below" in str(found)) == (not found.stable)
    assert Sharpness(pairs(hessian), pairs(gauss_newton), None).stable is None


class Square(nn.Module):
    """w^2 - x: residuals below zero take from the Hessian what Gauss-Newton does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w**2 - x


def test_a_loss_that_only_gauss_newton_calls_sharp() -> None:
    """Di16: (w^2 - x)^2 / 2 has curvature 6 w^2 - 2 x (here 3) and Gauss-Newton 4 w^2 = 4."""
    x = torch.full((2, 1), 1.5, dtype=torch.float64)
    half = lambda z, t: (z - t).square().sum(1) / 2
    for rate, stable in ((2 / 2.9, False), (2 / 3.5, False), (2 / 4.1, True)):
        found = pb.sharpness(Square(), half, (x, torch.zeros(2, 1, dtype=torch.float64)), lr=rate)
        assert float(found.hessian.values[0]) == pytest.approx(3, rel=1e-6)
        assert float(found.gauss_newton.values[0]) == pytest.approx(4, rel=1e-6)
        assert found.stable is stable


def net(n: int = 6, width: int = 6) -> tuple[nn.Module, Any, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize("matrix", ["gauss_newton", "empirical_fisher"])
@pytest.mark.parametrize(("method", "k"), [("gram", None), ("gram", 3), ("auto", None), ("lanczos", 3)])
def test_residuals_of_a_curvature_spectrum_are_the_true_ones(matrix: Any, method: Any, k: int | None) -> None:
    """|A v - value v| made densely; the flag says whether all lie within the tolerance."""
    model, loss_fn, x, y = net()
    dense = {"gauss_newton": reference.dense_gauss_newton, "empirical_fisher": reference.dense_empirical_fisher}
    A = dense[matrix](model, loss_fn, x, y)
    found = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, k=k, method=method, vectors=True, tol=1e-7)
    assert found.vectors is not None
    true = (A @ found.vectors - found.vectors * found.values).norm(dim=0)
    largest = float(found.values[0])
    assert bool((true <= found.residuals + 1e-13 * largest).all())
    assert found.converged == bool((found.residuals <= 1.01e-7 * largest + found.noise_floor).all())
    assert found.converged


@pytest.mark.parametrize("matrix", ["gauss_newton", "empirical_fisher"])
@pytest.mark.parametrize("error", [1e-9, 1e-4])
def test_spoiled_eigenvectors_are_seen(matrix: Any, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Di13: vectors from the Gram matrix that are not those of A: the product that confirms them says so."""
    model, loss_fn, x, y = net()
    make = spectrum_eigenpairs.orthonormal
    generator = torch.Generator().manual_seed(1)

    def spoiled(vectors: Tensor) -> Tensor:
        right = make(vectors)
        return make(right + error * torch.randn(right.shape, generator=generator, dtype=right.dtype))

    monkeypatch.setattr(spectrum_eigenpairs, "orthonormal", spoiled)
    monkeypatch.setattr(spectrum_eigenpairs, "REFINEMENTS", 0)
    found = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, k=2, method="gram", vectors=True, tol=1e-7)
    dense = {"gauss_newton": reference.dense_gauss_newton, "empirical_fisher": reference.dense_empirical_fisher}
    A = dense[matrix](model, loss_fn, x, y)
    assert found.vectors is not None
    true = (A @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert float(true.max()) > error / 100
    assert found.converged == (error < 1e-7)
    assert float(found.residuals.max()) >= 0.3 * float(true.max())
