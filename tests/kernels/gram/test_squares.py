"""The Gram matrix made in squares, all layers at once, against the one made layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.functional import ModelView, loss_readout, output_readout
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.kernels.gram import squares as gram
from pullback.kernels.plan.make import TOTAL, make_plan
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned


def _gram(captured: Captured) -> torch.Tensor:
    plan = make_plan(captured, captured.num_samples, None, "test", TOTAL)
    return gram.total_gram(captured, plan, "test")


@pytest.mark.parametrize(("case", "squares"), thinned(CASES, ("one", "many", "of tiles")))
def test_equals_the_reference(monkeypatch: pytest.MonkeyPatch, case: Case, squares: str) -> None:
    """Over all cases, for losses and for outputs, in one square, in many, and in squares of several tiles."""
    if squares != "one":
        monkeypatch.setattr(gram, "SMALLEST_SQUARE", 1)
    if squares == "of tiles":
        monkeypatch.setattr(gram, "SQUARES", 2)
        monkeypatch.setattr("pullback.kernels.plan.make.TILE_ROWS", 1)
    model, loss_fn, x, y = build(case, 7)
    view = ModelView.of(model)
    g = reference.gradient_matrix(model, loss_fn, x, y)
    found = _gram(capture_factors(view, loss_readout(loss_fn), x, y, "test"))
    assert_same(found, g @ g.T, 1e-10)
    assert torch.equal(found, found.T)
    j = reference.output_gradients(model, x).flatten(0, 1)
    assert_same(_gram(capture_factors(view, output_readout(), x, None, "test")), j @ j.T, 1e-10)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_make_the_same_numbers(threads: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(700, 20), torch.arange(700) % 3
    captured = capture_factors(ModelView.of(model), loss_readout(nn.CrossEntropyLoss()), x, y, "test")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = _gram(captured)
    finally:
        torch.set_num_threads(before)
    assert_same(found, pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y).total, 1e-5)
    assert torch.get_num_threads() == before


def test_a_wrong_sum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss_fn, x, y = build(CASES[0], 7)
    captured = capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test")
    monkeypatch.setattr(gram, "mirror", lambda block: block.mul_(1.1))
    with pytest.raises(pb.SelfCheckError, match="test: expected the summed kernel of `all layers` to agree"):
        _gram(captured)
