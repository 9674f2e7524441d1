"""The matrix {float32, float64} x {materialise, ghost, fallback} x {self, cross} x {tiles of different sizes} of one
process, over all cases, against the loop; that of two processes is ``tests/kernels/group/test_group.py``.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import take
from pullback.gradients.rows.pieces import DensePiece, matched
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned

N, CUT = 5, 2
DTYPES, FORMS, SIDES, TILES = (
    (torch.float32, torch.float64),
    ("materialise", "ghost", "fallback"),
    ("self", "cross"),
    (1, 2, 512),
)


@cache
def looped(name: str) -> Tensor:
    model, loss_fn, x, y = build(next(case for case in CASES if case.name == name), N)
    return reference.total_kernel(model, loss_fn, x, y)


@pytest.mark.parametrize(("case", "dtype", "form", "sides", "tile"), thinned(CASES, DTYPES, FORMS, SIDES, TILES))
def test_equals_the_loop(
    case: Case, dtype: torch.dtype, form: str, sides: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its dtype, against the loop in float64; all layers in the form, those that have it."""
    pick = lambda factor, *_: form if form in factor.forms else factor.forms[0]
    monkeypatch.setattr("pullback.kernels.plan.make.cheapest_form", pick)
    monkeypatch.setattr("pullback.kernels.plan.make.TILE_ROWS", tile)
    monkeypatch.setattr("pullback.kernels.plan.make.TILE_POSITIONS", 4 * tile)
    if form == "fallback":
        monkeypatch.setattr("pullback.gradients.capture.captured_rows.ruled_names", lambda *_: set())
    model, loss_fn, x, y = build(case, N, dtype)
    expected = looped(case.name)
    size = float(expected.abs().max())
    if sides == "self":
        kernel = pb.backward_kernel(model, loss_fn, x, y)
        assert torch.equal(kernel.total, kernel.total.T)
        assert_same(kernel.total, expected, scale=size)
    else:
        here, there = slice(0, CUT), slice(CUT, N)
        kernel = pb.backward_kernel(model, loss_fn, take(x, here), take(y, here), x2=take(x, there), y2=take(y, there))
        assert_same(kernel.total, expected[:CUT, CUT:], scale=size)
    assert kernel.total.dtype == dtype
    forms = {layer.form for layer in kernel.plan.layers}
    assert forms <= {"fallback", "unused"} if form == "fallback" else forms & {form, "dense", "join"}


def test_many_samples_against_few() -> None:
    """Rows come in longer stretches where there are fewer samples: those of the two sides are cut to match."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 60), nn.Tanh(), nn.Linear(60, 2)).double()
    x, y = torch.randn(90, 300, dtype=torch.float64), torch.arange(90) % 2
    here, there = slice(0, 30), slice(30, 90)
    forms = {"0.weight": "materialise"}
    kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(), x[here], y[here], x2=x[there], y2=y[there], forms=forms)
    assert kernel.plan.layers[0].form == "materialise"
    assert_same(kernel.total, reference.total_kernel(model, nn.CrossEntropyLoss(), x, y)[here, there])


def test_pieces_of_two_sides_are_cut_to_match() -> None:
    left, right = torch.randn(2, 1, 10), torch.randn(3, 1, 10)
    mine = [DensePiece("w", start, left[:, :, start : start + 4]) for start in (0, 4, 8)]
    theirs = [DensePiece("w", start, right[:, :, start : start + 7]) for start in (0, 7)]
    pairs = list(matched([iter(mine), iter(theirs)]))
    assert [a.offset for a, _ in pairs] == [b.offset for _, b in pairs] == [0, 4, 7, 8]
    assert torch.equal(torch.cat([a.matrix for a, _ in pairs], 2), left)
    assert torch.equal(torch.cat([b.matrix for _, b in pairs], 2), right)
