"""Gradient rows of several values a sample: their products in blocks, and those of their Gram matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pullback import reference
from pullback.functional import ModelView, num_samples
from pullback.functional.readout import output_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.matrix import COLUMNS, GradientRows
from pullback.gradients.rows.outer import OuterFactor
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned


def _rows(case: Case, n: int) -> tuple[GradientRows, torch.Tensor]:
    model, _, x, _ = build(case, n)
    captured = capture_factors(ModelView.of(model), output_readout(), x, None, "test")
    rows = GradientRows.of(captured, "test")
    assert num_samples(x) == rows.num_samples == n
    return rows, reference.output_gradients(model, x).flatten(0, 1)


@pytest.mark.parametrize(("case", "n"), thinned(CASES, [5, 1]))
def test_products_equal_those_of_the_rows(case: Case, n: int) -> None:
    rows, dense = _rows(case, n)
    assert_same(rows.to_dense(), dense, 1e-12)
    v, u = torch.randn(dense.shape[1], 3).double(), torch.randn(len(dense), 3).double()
    size = float(dense.norm())
    assert_same(rows @ v, dense @ v, 1e-12, scale=size * float(v.norm()))
    assert_same(rows.T @ u, dense.T @ u, 1e-12, scale=size * float(u.norm()))
    assert_same(rows @ v[:, 0], dense @ v[:, 0], 1e-12, scale=size * float(v.norm()))
    assert_same(rows.gram @ u, dense @ (dense.T @ u), 1e-12, scale=size**2 * float(u.norm()))
    assert_same(rows.norms(), dense.norm(dim=1), 1e-10)


@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 2, 1), (6, 6, 3)])
def test_sums_and_lengths_of_the_same_rows(shape: tuple[int, int, int]) -> None:
    """Of convolutions both are made of rows, which are formed once; elsewhere each has its own way."""
    torch.manual_seed(0)
    inputs, outputs, kernel = shape
    model = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=1), nn.Flatten(), nn.Linear(outputs * 36, 2))
    model, x = model.double(), torch.randn(4, inputs, 4 + kernel - 1, 4 + kernel - 1).double()
    signs = torch.tensor([1.0, -1.0]).double()
    for factor in capture_factors(ModelView.of(model), output_readout(), x, None, "test").factors:
        total, squares = factor.total_and_squares(signs)
        assert_same(squares, factor.squared_norms(), 1e-12)
        for name, expected in factor.total(signs).items():
            assert_same(total[name], expected, 1e-12)


def test_many_columns_go_in_blocks() -> None:
    rows, dense = _rows(CASES[0], 3)
    v, u = torch.randn(dense.shape[1], 2 * COLUMNS + 1).double(), torch.randn(len(dense), COLUMNS + 1).double()
    assert_same(rows @ v, dense @ v, 1e-12)
    assert_same(rows.T @ u, dense.T @ u, 1e-12)


@pytest.mark.parametrize(("n", "expected"), [(3, True), (30, False)])
def test_gram_products_go_the_cheaper_way(n: int, expected: bool) -> None:
    """Few samples: one Gram matrix of the inputs. Many: through the parameters. Both are the same product."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(n, 12).double()
    (factor, *_) = capture_factors(ModelView.of(model), output_readout(), x, None, "test").factors
    assert isinstance(factor, OuterFactor)
    assert factor.by_inputs(n) is expected
    u = torch.randn(n, 3, 2).double()
    g = reference.output_gradients(model, x)[..., : 12 * 4 + 4].flatten(0, 1)
    assert_same(factor.gram_product()(u).flatten(0, 1), g @ (g.T @ u.flatten(0, 1)), 1e-12)


def test_rows_of_some_layers() -> None:
    rows, dense = _rows(CASES[0], 4)
    parts = {name: part.to_dense() for name, part in rows.layers.items()}
    assert_same(torch.cat(list(parts.values()), 1), dense, 1e-12)
