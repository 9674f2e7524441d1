"""Powers of one Jacobian, chains of different ones, recurrent networks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Tensor, nn

import pullback as pb
from pullback.measure import lyapunov_exponents, matrix_powers, recurrent_jacobians
from tests.compare import assert_same


def test_nilpotent_matrices() -> None:
    """S1-03: singular values above 1 do not make powers explode: rho 0, sigma_max 2, J^2 = 0."""
    found = matrix_powers(torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64), 4)
    assert (found.spectral_radius, found.sigma_max) == (0.0, 2.0)
    assert found.roots.tolist() == [2.0, 0.0, 0.0, 0.0]


@given(n=st.integers(1, 5), seed=st.integers(0, 100))
def test_roots_of_powers(n: int, seed: int) -> None:
    """Against the powers themselves; the limit is the spectral radius, the bound sigma_max."""
    J = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = matrix_powers(J, 6)
    for k in range(1, 7):
        direct = float(torch.linalg.matrix_norm(torch.linalg.matrix_power(J, k), 2)) ** (1 / k)
        assert float(found.roots[k - 1]) == pytest.approx(direct, rel=1e-10)
    assert bool((found.roots <= found.sigma_max * (1 + 1e-12)).all())
    assert found.spectral_radius == pytest.approx(np.abs(np.linalg.eigvals(J.numpy())).max(), rel=1e-10)
    assert bool((found.roots >= found.spectral_radius * (1 - 1e-9)).all())


def test_powers_neither_overflow_nor_vanish() -> None:
    """Gelfand's formula after 2000 layers of a matrix that is far from normal."""
    J = torch.tensor([[30.0, 500.0], [0.0, 2.0]], dtype=torch.float64)
    assert float(matrix_powers(J, 2000).roots[-1]) == pytest.approx(30, rel=5e-3)
    assert float(matrix_powers(J / 1e4, 2000).roots[-1]) == pytest.approx(0.003, rel=5e-3)


def test_symmetric_matrices_have_one_answer() -> None:
    A = torch.randn(6, 6, dtype=torch.float64)
    found = matrix_powers(A + A.T, 5)
    assert found.spectral_radius == pytest.approx(found.sigma_max)
    assert_same(found.roots, torch.full_like(found.roots, found.sigma_max), 1e-12)


def test_a_gaussian_layer_shrinks_a_typical_vector() -> None:
    """S1-03: E log |W v|^2 / |v|^2 = psi(N / 2) + log(2 / N) = -0.003337 at N = 300, while E |W v|^2 = |v|^2."""
    n = 300
    expected = float(digamma(n / 2)) + math.log(2 / n)
    assert expected == pytest.approx(-0.003337, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(120):  # columns of W are independent, so that unit vectors are independent samples
        W = torch.randn(n, n, generator=generator) / math.sqrt(n)
        samples.append(2 * W.double().norm(dim=0).log())
        first = lyapunov_exponents([W.double()], start=torch.eye(n, dtype=torch.float64)[:, :1])
        assert float(first.growth[0, 0]) == pytest.approx(float(samples[-1][0]) / 2, rel=1e-9)
    found = torch.cat(samples)
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 5e-4
    assert abs(float(found.mean()) - expected) < 3.5 * error
    assert float(found.mean()) < -3 * error


def test_exponents_of_gaussian_chains() -> None:
    """S1-03: Newman's closed form, all exponents of a chain of 400 matrices, in units of their standard errors."""
    n, L = 12, 400
    generator = torch.Generator().manual_seed(1)
    chain = (torch.randn(n, n, generator=generator, dtype=torch.float64) / math.sqrt(n) for _ in range(L))
    found = lyapunov_exponents(chain, n)
    index = np.arange(1, n + 1)
    expected = torch.from_numpy((digamma((n - index + 1) / 2) + math.log(2 / n)) / 2)
    off = (found.exponents - expected) / found.stderr
    assert bool((off.abs() < 3.5).all())
    assert float(off.square().mean()) < 2
    assert float(found.stderr.max()) < 0.06
    assert found.growth.shape == (L, n)


@given(widths=st.lists(st.integers(2, 6), min_size=2, max_size=5), seed=st.integers(0, 50))
def test_volumes_are_those_of_the_product(widths: list[int], seed: int) -> None:
    """The sum over k start directions is the log of the volume that the product itself spans."""
    generator = torch.Generator().manual_seed(seed)
    chain = [torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairwise(widths)]
    k = min(widths)
    start = torch.linalg.qr(torch.randn(widths[0], k, generator=generator, dtype=torch.float64))[0]
    found = lyapunov_exponents(chain, k, start=start)
    image = start
    for J in chain:
        image = J @ image
    volume = float(torch.linalg.slogdet(image.T @ image)[1]) / 2
    assert float(found.growth.sum()) == pytest.approx(volume, abs=1e-8)
    first = float((chain_product(chain) @ start[:, 0]).norm().log())
    assert float(found.growth[:, 0].sum()) == pytest.approx(first, abs=1e-8)


def chain_product(chain: list[Tensor]) -> Tensor:
    product = chain[0]
    for J in chain[1:]:
        product = J @ product
    return product


def test_small_exponents_keep_their_digits() -> None:
    """After 100 layers the product's smallest singular value is lost to rounding; the exponent is not."""
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    J = turn @ torch.diag(torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64)) @ turn.T
    found = lyapunov_exponents([J] * 100, 3, start=turn)
    assert_same(found.exponents.exp(), torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64), 1e-9)
    assert float(torch.linalg.svdvals(chain_product([J] * 100))[2]) > 1e-30 > 0.25**100


def test_a_small_factor_is_no_zero() -> None:
    J = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    assert lyapunov_exponents([J] * 5, 2, start=torch.eye(2).double()).exponents.exp().tolist() == pytest.approx(
        [1, 1e-9]
    )


def test_directions_that_are_cut_off() -> None:
    found = lyapunov_exponents([torch.diag(torch.tensor([1.0, 2.0, 0.0]))] * 3, 3)
    assert bool(torch.isinf(found.exponents[2]))
    assert bool(torch.isnan(found.stderr[2]))
    assert bool(torch.isfinite(found.exponents[:2]).all())
    assert bool(torch.isnan(lyapunov_exponents([torch.eye(2)], 2).stderr).all())


def test_layer_jacobians_are_a_chain() -> None:
    """A vector's growth along a network is that of its Jacobian."""
    model = pb.modules.MLP([6, 5, 4, 7], "tanh").double()
    x = torch.randn(1, 6, dtype=torch.float64)
    v = torch.randn(6, 1, dtype=torch.float64)
    chain = [J[0] for J in pb.layer_jacobians(model, x)]
    J = pb.Jacobian(model, x, wrt="input").per_sample()[0]
    expected = float(((J @ v).norm() / v.norm()).log())
    assert float(lyapunov_exponents(chain, start=v).growth.sum()) == pytest.approx(expected, abs=1e-10)


class LinearCell(nn.Module):
    """h' = U h + V x."""

    def __init__(self, U: Tensor, V: Tensor) -> None:
        super().__init__()
        self.U, self.V = nn.Parameter(U), nn.Parameter(V)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h @ self.U.T + x @ self.V.T


def test_linear_recurrence() -> None:
    """S1-04: U = diag(0.9, 1.1) makes dh^T / dh^0 = diag(0.9^T, 1.1^T)."""
    U = torch.diag(torch.tensor([0.9, 1.1], dtype=torch.float64))
    x, state = torch.randn(20, 3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    steps = recurrent_jacobians(LinearCell(U, torch.randn(2, 4).double()), x, state)
    expected = torch.diag(torch.tensor([0.9**20, 1.1**20], dtype=torch.float64))
    for sample in range(3):
        assert_same(chain_product(list(steps[:, sample])), expected, 1e-12)


class Lstm(nn.Module):
    """Both states of an LSTM as one."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(inputs, width // 2)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.cat(self.cell(x, state.chunk(2, -1)), -1)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, Lstm])
def test_real_cells(kind: Any) -> None:
    """S1-04: the product of the steps is the derivative of the last state in the first, by autograd through all."""
    cell = kind(3, 4).double()
    x, state = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    steps = recurrent_jacobians(cell, x, state)
    assert steps.shape == (6, 2, 4, 4)

    def last(start: Tensor, sample: int) -> Tensor:
        h = start
        for step in x:
            h = cell(step[sample], h)
        return h

    for sample in range(2):
        whole = torch.autograd.functional.jacobian(lambda h, s=sample: last(h, s), state[sample])
        assert_same(chain_product(list(steps[:, sample])), whole, 1e-10)


def test_a_cell_s_own_formula() -> None:
    """Eq. 1.3: dh^{t+1} / dh^t = diag(1 - h^2) U for tanh."""
    cell = nn.RNNCell(3, 4).double()
    x, h = torch.randn(5, 1, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    for step, J in zip(x, recurrent_jacobians(cell, x, h), strict=True):
        h = cell(step, h).detach()
        assert_same(J[0], (1 - h.T.square()) * cell.weight_hh.detach(), 1e-12)


class Layer14(nn.Module):
    """h = s(W x + b), z = U h + V x."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.W, self.U, self.V = nn.Linear(n, n), nn.Linear(n, n, bias=False), nn.Linear(n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.U(torch.tanh(self.W(x))) + self.V(x)


def test_skips_with_weights() -> None:
    """S1-05: Eq. 1.4 has J = V + U D W, and is of the form x + F(x) where V = I."""
    layer = Layer14(5).double()
    x = torch.randn(1, 5, dtype=torch.float64)
    D = 1 - torch.tanh(layer.W(x)).square()
    expected = layer.V.weight + layer.U.weight * D @ layer.W.weight
    assert_same(pb.layer_jacobians(nn.Sequential(layer), x)[0][0], expected.detach(), 1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matrix_powers(torch.ones(2, 3)), r"matrix_powers: expected a finite square matrix `J`, got shape"),
        (lambda: matrix_powers(torch.full((2, 2), math.nan)), r"expected a finite square matrix"),
        (lambda: matrix_powers(torch.eye(2), 0), r"matrix_powers: expected `n` at least 1, got 0"),
        (lambda: lyapunov_exponents([]), r"lyapunov_exponents: expected at least one matrix, got none"),
        (lambda: lyapunov_exponents([torch.eye(2)], 0), r"lyapunov_exponents: expected `k` at least 1, got 0"),
        (
            lambda: lyapunov_exponents([torch.eye(2)], 3),
            r"expected matrices at least 3 wide on both sides that follow each other, got shape \(2, 2\)",
        ),
        (lambda: lyapunov_exponents([torch.eye(2), torch.eye(3)]), r"that follow each other, got shape \(3, 3\)"),
        (
            lambda: lyapunov_exponents([torch.eye(3)], 2, start=torch.ones(3, 1)),
            r"expected a `start` \(3, 2\), got shape \(3, 1\)",
        ),
        (
            lambda: recurrent_jacobians(nn.RNNCell(2, 3), torch.ones(4, 2), torch.ones(1, 3)),
            r"recurrent_jacobians: expected inputs `x` \(T, B, D\), got shape \(4, 2\)",
        ),
        (
            lambda: recurrent_jacobians(nn.LSTMCell(2, 3), torch.ones(4, 1, 2), torch.ones(1, 3)),
            r"expected a cell whose state is one tensor, got an LSTMCell, with two. Wrap it",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_a_matrix_that_is_narrow_on_either_side_has_too_few_exponents(shape: tuple[int, int]) -> None:
    said = (
        rf"expected matrices at least 2 wide on both sides that follow each other, got shape \({shape[0]}, {shape[1]}\)"
    )
    with pytest.raises(pb.InputError, match=said):
        lyapunov_exponents([torch.ones(shape)], 2)
