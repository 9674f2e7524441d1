"""A new kind of rows is one file: with what every kind must say, all that is made of rows can take it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.diagnostics.curvature_spectrum.routes import Sizes, routes
from pullback.functional import ModelView
from pullback.functional.readout import loss_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.rows.contract import Form, Products, Tensors, Work
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.pieces import Piece, dense_pieces
from pullback.gradients.rules import RULES
from pullback.kernels.plan.rates import Rates
from pullback.kernels.sketch import project
from tests.compare import assert_same


@dataclass(frozen=True)
class ProductRows(Factor):
    """Rows of a matrix, ``d_ic (x) a_i``: a of one vector a sample, (N, d), d of C outputs, (N, C, p)."""

    name: str
    a: Tensor
    d: Tensor

    forms = ("materialise",)

    @property
    def like(self) -> Tensor:
        return self.d

    @property
    def shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return {self.name: torch.Size([self.d.shape[2], self.a.shape[1]])}

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return len(self.d)

    @property
    def num_outputs(self) -> int:
        return self.d.shape[1]

    def work(self, form: Form, asked: Products) -> Work:
        return Work(gemm=asked.flops * self.num_params * asked.pairs)

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        return dense_pieces(self.name, 0, self.rows(slice(None))[self.name].flatten(2))

    def rows(self, index: slice) -> Tensors:
        return {self.name: torch.einsum("ncp,nd->ncpd", self.d[index], self.a[index])}

    def only(self, name: str) -> Factor:
        return self

    def matvec(self, vectors: Tensors) -> Tensor:
        return torch.einsum("ncp,pd,nd->nc", self.d, vectors[self.name], self.a)

    def rmatvec(self, weights: Tensor) -> Tensors:
        return {self.name: torch.einsum("nc,ncp,nd->pd", weights.to(self.d), self.d, self.a)}


@pytest.fixture
def new_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers are written down in the new kind."""
    linear = RULES[F.linear]

    def build(call: object) -> list[Factor]:
        (outer,) = linear.build(call)  # type: ignore[arg-type, misc]
        return [ProductRows(outer.weight, outer.inputs[:, 0, 0], outer.gradients[:, :, 0, 0])]  # type: ignore[union-attr]

    monkeypatch.setitem(RULES, F.linear, replace(linear, build=build))


def example() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(7, 6).double(), torch.arange(7) % 3


def results() -> dict[str, Tensor]:
    model, loss_fn, x, y = example()
    matrix = pb.GradientMatrix(model, loss_fn, x, y)
    v, u = torch.linspace(-1, 1, 45).double().outer(torch.ones(2).double()), torch.linspace(-1, 1, 7).double()
    crossed = pb.backward_kernel(model, loss_fn, x, y, x2=x[:4], y2=y[:4])
    sketched = pb.sketch_kernel(model, loss_fn, x, y, size=2, repeats=3, exact="smaller")
    return {
        "kernel": pb.backward_kernel(model, loss_fn, x, y).total,
        "crossed": crossed.total,
        "layer": crossed.layers["2"],
        "tangent": pb.tangent_kernel(model, x, contract="diagonal").total,
        "times": matrix @ v,
        "transposed": matrix.T @ u,
        "gram": matrix.gram @ u,
        "norms": matrix.norms(),
        "dense": matrix.to_dense(),
        "sketch": sketched.total,
        "spectrum": pb.curvature_spectrum(model, loss_fn, (x, y), method="gram").values,
    }


@pytest.fixture(scope="module")
def known() -> dict[str, Tensor]:
    return results()


def test_all_that_is_made_of_rows_takes_them(known: dict[str, Tensor], new_kind: None) -> None:
    model, loss_fn, x, y = example()
    captured = capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test")
    assert all(type(factor) is ProductRows for factor in captured.factors)
    for name, value in results().items():
        assert_same(value, known[name], 1e-10, scale=float(known[name].abs().max()))


def test_costs_have_defaults(new_kind: None) -> None:
    """A layer of 6 x 5 weights, N = 10 samples with r = 2 outputs: rows count as what they hold, one number each."""
    model, loss_fn, x, y = example()
    factor, *_ = capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test").factors
    assert factor.work("materialise", Products.of(10, None, 1)) == Work(gemm=10 * 10 * 30)
    assert factor.work("materialise", Products.of(10, 4, 2)) == Work(gemm=2 * 10 * 4 * 30 * 4)
    assert factor.positions("materialise") == 1
    assert factor.held(10, 2) == 10 * 2 * 5
    assert factor.forward_flops(10) == 2 * 10 * 5
    assert factor.product_flops(10, 2) == 2 * 2 * 10 * 5
    assert factor.gram_product_flops(10, 2) == (0, 2 * 2 * 2 * 10 * 5)
    assert factor.check_flops() == 0
    ways = routes([factor], Sizes(10, 2, 30, 3, True, False, 8), Rates(gemm=1e9, bmm=1e9, stream=1e9))
    assert {way.form for way in ways} == {"dense", "products", "operator"}


def test_ranks_make_every_piece_once(new_kind: None) -> None:
    model, loss_fn, x, y = example()
    factor, *_ = capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test").factors
    out = torch.zeros(7, 3).double()
    for rank in range(2):
        for left, right in factor.shared_pieces([factor], 100, rank, 2):
            left.tile(out, slice(0, 7), right, slice(0, 3), "full", add=True)
    rows = factor.rows(slice(None))["0.weight"].flatten(1)
    assert_same(out, rows @ rows[:3].T, 1e-12)


def test_a_projection_of_ones_own(new_kind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered from outside, it is what sketches call; until then the rows are projected."""
    model, loss_fn, x, y = example()
    factor, *_ = capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test").factors
    left, right = project.projections(factor, project.Sketch(size=2), 0)
    rows, cost = project.project(factor, left, right), project.projection_cost(factor, 2, 2)
    asked: list[slice] = []

    def shorter(factor: ProductRows, left: Tensor, right: Tensor, index: slice) -> Tensor:
        asked.append(index)
        return torch.einsum("nck,nm->nckm", factor.d[index] @ left[0], factor.a[index] @ right[0])

    monkeypatch.setattr(project, "projected", _copy_of(project.projected, Factor))
    project.projected.register(ProductRows, shorter)
    assert_same(project.project(factor, left, right), rows, 1e-12)
    assert asked
    assert cost == (30 + min(10, 12) + 4, min(5 * 2 * (6 + 2), 6 * 2 * (5 + 2)))


def _copy_of(generic: object, base: type) -> object:
    """A dispatcher of its own, so that what a test registers goes with it."""
    registry: dict[type, Callable[..., Tensor]] = dict(generic.registry)  # type: ignore[attr-defined]
    made = singledispatch(registry.pop(object))
    for kind, function in registry.items():
        made.register(kind, function)
    return made


def test_no_file_asks_for_a_kind_of_rows_by_its_class() -> None:
    """Rows answer for themselves. What a sketch does in its own way for a kind is registered for it."""
    package = Path(pb.__file__).parent
    asks = re.compile(r"isinstance\([^)]*\b\w+(Factor|Piece)\b|type\(\w+\) (is|==) \w+(Factor|Piece)\b")
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if "gradients/rows" not in path.as_posix()
        for line in path.read_text().splitlines()
        if asks.search(line)
    ]
    assert found == []
    assert asks.search("if isinstance(factor, OuterFactor):")
    assert asks.search("[f for f in factors if type(f) is TiedFactor]")
