"""Internal covariate shift: against copies of the model stepped by hand and ordinary backward passes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback.measure import internal_covariate_shift
from tests.compare import assert_same

Optimiser = Callable[[Any], torch.optim.Optimizer]


def by_copies(
    model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, make: Optimiser, layers: list[str] | None = None
) -> dict[str, list[Tensor]]:
    """Per layer |g|, |g - g'| and the cosine, from models whose first layers are a stepped model's."""
    stepped = copy.deepcopy(model)
    loss_fn(stepped(x), y).backward()
    make(stepped.parameters()).step()
    layers = layers or [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    rows: dict[str, list[Tensor]] = {}
    for index, layer in enumerate(layers):
        gradients = []
        for changed in ([], layers[:index]):
            mixed = copy.deepcopy(model)
            for other in changed:
                mixed.get_submodule(other).load_state_dict(stepped.get_submodule(other).state_dict())
            mixed.zero_grad()
            loss_fn(mixed(x), y).backward()
            gradients.append(torch.cat([p.grad.reshape(-1) for p in mixed.get_submodule(layer).parameters()]))
        g, other_g = gradients
        cosine = torch.nn.functional.cosine_similarity(g, other_g, dim=0)
        rows[layer] = [g.norm(), (g - other_g).norm(), cosine]
    return rows


OPTIMISERS: dict[str, Optimiser] = {
    "descent": lambda p: torch.optim.SGD(p, lr=0.3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


@given(
    widths=st.lists(st.integers(2, 6), min_size=2, max_size=5),
    norm=st.sampled_from(["none", "batch", "layer"]),
    name=st.sampled_from(list(OPTIMISERS)),
)
def test_against_copies(widths: list[int], norm: str, name: str) -> None:
    """S1-35. Batch norm is in train mode: its statistics are the batch's, and gradients pass through them."""
    model = pb.modules.MLP([*widths, 3], "tanh", normalisation=norm).double()
    x, y = torch.randn(8, widths[0], dtype=torch.float64), torch.randint(3, (8,))
    expected = by_copies(model, nn.CrossEntropyLoss(), x, y, OPTIMISERS[name])
    found = internal_covariate_shift(model, nn.CrossEntropyLoss(), x, y, OPTIMISERS[name])
    assert found.layers == tuple(expected)
    rows = torch.stack([torch.stack(row) for row in expected.values()], 1)
    scale = float(rows[0].max())
    assert_same(found.norm, rows[0], 1e-10, scale=scale)
    assert_same(found.shift, rows[1], 1e-10, scale=scale)
    defined = torch.isfinite(found.cosine) & (rows[0] > 1e-6 * scale)
    assert_same(found.cosine[defined], rows[2][defined], 1e-7, scale=1.0)


def data() -> tuple[nn.Module, Tensor, Tensor]:
    model = pb.modules.MLP([4, 5, 6, 2], "tanh", normalisation="batch").double()
    return model, torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)


def test_the_first_layer_and_no_step() -> None:
    """S1-35: 0 for l = 1, whatever the step, and 0 everywhere for a rate of 0."""
    model, x, y = data()
    found = internal_covariate_shift(model, nn.MSELoss(), x, y, 0.5)
    assert float(found.shift[0]) == 0
    assert float(found.cosine[0]) == pytest.approx(1, abs=1e-14)
    assert bool((found.shift[1:] > 1e-6).all())
    still = internal_covariate_shift(model, nn.MSELoss(), x, y, 0.0)
    assert torch.equal(still.shift, torch.zeros_like(still.shift))
    assert still.loss == pytest.approx(still.next_loss, rel=1e-14)  # one with a graph, one without


def test_two_scalar_layers() -> None:
    """Closed form: for L = (w2 w1 x - y)^2 the gradient in w2 is 2 (w2 w1 x - y) w1 x, at the new w1 and the old w2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    w1, w2, x, y, rate = 0.7, -1.2, 1.5, 0.4, 0.1
    with torch.no_grad():
        model[0].weight.fill_(w1)
        model[1].weight.fill_(w2)
    one = torch.tensor([[1.0]], dtype=torch.float64)
    found = internal_covariate_shift(model, nn.MSELoss(), x * one, y * one, rate)
    new = w1 - rate * 2 * (w2 * w1 * x - y) * w2 * x
    before, after = (2 * (w2 * w * x - y) * w * x for w in (w1, new))
    assert found.norm.tolist() == pytest.approx([abs(2 * (w2 * w1 * x - y) * w2 * x), abs(before)])
    assert found.shift.tolist() == pytest.approx([0.0, abs(before - after)])
    assert found.cosine.tolist() == pytest.approx([1.0, math.copysign(1, before * after)])
    assert found.loss == pytest.approx((w2 * w1 * x - y) ** 2)


def test_next_loss_is_that_of_the_step() -> None:
    model, x, y = data()
    stepped = copy.deepcopy(model)
    optimiser = torch.optim.SGD(stepped.parameters(), lr=0.2)
    nn.MSELoss()(stepped(x), y).backward()
    optimiser.step()
    found = internal_covariate_shift(model, nn.MSELoss(), x, y, 0.2)
    assert found.next_loss == pytest.approx(float(nn.MSELoss()(stepped(x), y).detach()), rel=1e-10)
    given_step = internal_covariate_shift(model, nn.MSELoss(), x, y, dict(stepped.named_parameters()))
    assert_same(given_step.shift, found.shift, 1e-10)
    assert given_step.next_loss == pytest.approx(found.next_loss, rel=1e-12)


def test_small_steps_shift_in_proportion() -> None:
    model, x, y = data()
    one, half = (internal_covariate_shift(model, nn.MSELoss(), x, y, r).shift for r in (1e-5, 5e-6))
    assert_same(one, 2 * half, 1e-3)


def test_zero_gradients_have_no_angle() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[1].weight.zero_()
    x = torch.ones(3, 2, dtype=torch.float64)
    found = internal_covariate_shift(model, nn.MSELoss(), x, torch.zeros(3, 1).double(), 0.1)
    assert math.isnan(float(found.cosine[0]))
    assert float(found.norm[0]) == 0


def test_nothing_is_disturbed() -> None:
    model, x, y = data()
    model.layers[0].linear.weight.grad = torch.ones_like(model.layers[0].linear.weight)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    internal_covariate_shift(model, nn.MSELoss(), x, y, OPTIMISERS["adam"])
    with pytest.raises(pb.InputError):
        internal_covariate_shift(model, nn.MSELoss(), x, y[:, :1], 0.1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(model.layers[0].linear.weight.grad, torch.ones_like(model.layers[0].linear.weight))
    assert model.layers[1].linear.weight.grad is None
    assert not any(module._forward_pre_hooks for module in model.modules())


class Reversed(nn.Module):
    """Registered in another order than run."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(2, 1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_layers_come_in_the_order_they_run() -> None:
    model, x, y = Reversed().double(), torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    found = internal_covariate_shift(model, nn.MSELoss(), x, y, OPTIMISERS["descent"])
    expected = by_copies(model, nn.MSELoss(), x, y, OPTIMISERS["descent"], ["first", "last"])
    assert found.layers == ("first", "last")
    assert_same(found.shift, torch.stack([row[1] for row in expected.values()]), 1e-10, scale=float(found.norm.max()))


class Attention(nn.Module):
    """A layer that uses a layer of its own without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.head = (
            nn.Linear(2, 4),
            nn.MultiheadAttention(4, 1, batch_first=True),
            nn.Linear(4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).unsqueeze(1)
        return self.head(self.attend(h, h, h, need_weights=False)[0][:, 0])


def test_layers_that_are_never_called() -> None:
    found = internal_covariate_shift(Attention(), nn.MSELoss(), torch.randn(5, 2), torch.randn(5, 1), 0.1)
    assert found.layers == ("embed", "attend", "attend.out_proj", "head")
    assert float(found.shift[0]) == 0 < float(found.shift[2])


X, Y, LOSS = torch.ones(3, 2), torch.zeros(3, 1), nn.MSELoss()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: internal_covariate_shift(nn.Linear(2, 1), LOSS, X, Y, 1e38),
            r"internal_covariate_shift: expected a finite loss for every sample",
        ),
        (
            lambda: internal_covariate_shift(nn.Linear(2, 1), LOSS, X, Y, -0.1),
            r"internal_covariate_shift: expected a learning rate of at least 0, got -0.1",
        ),
        (
            lambda: internal_covariate_shift(nn.Linear(2, 1), LOSS, X, Y, math.nan),
            r"expected a learning rate of at least 0, got nan",
        ),
        (
            lambda: internal_covariate_shift(nn.Linear(2, 1), LOSS, X, Y, lambda p: None),
            r"expected `step` to return an optimiser, got NoneType",
        ),
        (
            lambda: internal_covariate_shift(nn.Linear(2, 1), LOSS, X, Y, {"weight": torch.ones(1, 2)}),
            r"expected parameters in `step` among weight, got 'bias'",
        ),
        (
            lambda: internal_covariate_shift(nn.Linear(2, 1), LOSS, X, Y[:2], 0.1),
            r"expected `x` and `y` of the same length",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_dropout_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 40), nn.Dropout(0.5), nn.Linear(40, 1))
    with pytest.raises(pb.UnsupportedError, match="a model that answers the same each time"):
        internal_covariate_shift(model, LOSS, X, Y, 0.1)


def test_printed() -> None:
    model, x, y = data()
    text = str(internal_covariate_shift(model, nn.MSELoss(), x, y, 0.1))
    assert text.startswith("layers.0.linear: |g| ")
    assert "shift 0, cosine 1.0000" in text
    assert "after the step" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    model, x, y = data()
    expected = internal_covariate_shift(model, nn.MSELoss(), x, y, 0.1).shift
    assert_same(internal_covariate_shift(model.cuda(), nn.MSELoss(), x.cuda(), y.cuda(), 0.1).shift.cpu(), expected)
