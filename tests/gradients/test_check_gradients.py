"""``check_gradients``: a report where kernel calls raise."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.gradients.rules.registry import RULES
from tests.cases import CASES, Case, build
from tests.gradients.test_user_rules import Sine, sine_rule
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def data(n: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.arange(n) % 3


def wrong(check: pb.GradientCheck) -> list[str]:
    return [row.parameter for row in check.parameters if not row.ok]


@pytest.mark.parametrize(("case", "dtype"), thinned(CASES, [torch.float64, torch.float32]))
def test_every_case_agrees(case: Case, dtype: torch.dtype) -> None:
    """Every parameter has a row: its rule as planned, an error near the rounding error."""
    model, loss_fn, x, y = build(case, 5, dtype)
    check = pb.check_gradients(model, loss_fn, x, y)
    assert check.ok, str(check)
    assert [row.parameter for row in check.parameters] == list(pb.ModelView.of(model).parameters)
    tolerance = {torch.float64: 1.49e-8, torch.float32: 3.453e-4}[dtype]  # the roots of 2.22e-16 and 1.19e-7
    assert [row.tolerance for row in check.parameters] == pytest.approx([tolerance] * len(check.parameters), rel=1e-3)
    assert max(row.error for row in check.parameters) < 200 * torch.finfo(dtype).eps
    planned = pb.backward_kernel(model, loss_fn, x, y).plan.layers
    assert {r.parameter: r.rule for r in check.parameters} == {
        name: layer.rule for layer in planned for name in layer.parameters
    }


def test_which_samples() -> None:
    model, (x, y) = mlp(), data()
    for samples, chosen in ((1, (0,)), (2, (0, 8)), (3, (0, 4, 8)), (9, tuple(range(9))), (50, tuple(range(9)))):
        check = pb.check_gradients(model, CE, x, y, samples=samples)
        assert (check.samples, check.num_samples, check.ok) == (chosen, 9, True)
    assert pb.check_gradients(model, CE, x[:1], y[:1]).samples == (0,)


def test_a_scaled_rule_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: one rule's rows 1 percent too large. Kernels raise, here its parameters are named."""
    rule = RULES[F.layer_norm]

    def broken(call: Any) -> Any:
        factor = rule.build(call)
        return replace(factor, gradients={n: g * 1.01 for n, g in factor.gradients.items()})

    monkeypatch.setitem(RULES, F.layer_norm, replace(rule, build=broken))
    model, (x, y) = mlp(), data()
    with pytest.raises(pb.UnsupportedError, match="a difference of"):
        pb.backward_kernel(model, CE, x, y)
    check = pb.check_gradients(model, CE, x, y)
    assert not check.ok
    assert wrong(check) == ["2.weight", "2.bias"]
    assert all(0.001 < row.error < 0.0101 for row in check.parameters if not row.ok)
    assert str(check).endswith("2 of 6 parameters differ on 4 of 9 samples: 2.weight, 2.bias")


def test_a_wrong_sample_in_the_middle_is_reported() -> None:
    """Kernel calls look at the first and the last sample only; here it depends on which are compared."""

    def broken(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        rows = sine_rule(module, x, gradient)["weight"]
        rows[4] *= 1.01
        return {"weight": rows}

    model = nn.Sequential(Sine(4, 5), nn.Tanh(), nn.Linear(5, 3).double())
    x, y = data()
    with pb.register_rule(Sine, broken):
        assert pb.check_gradients(model, CE, x.double(), y, samples=2).ok
        assert wrong(pb.check_gradients(model, CE, x.double(), y, samples=3)) == ["0.weight"]
        assert wrong(pb.check_gradients(model, CE, x.double(), y, samples=3, params=["2"])) == []


def test_samples_that_depend_on_each_other_are_reported() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.last(hidden - hidden.mean(0))

    assert not pb.check_gradients(Centred(), CE, *data()).ok


def test_infinite_rows_are_reported() -> None:
    """NaN is never within a tolerance."""
    model = nn.Sequential(Sine(4, 5), nn.Tanh(), nn.Linear(5, 3).double())
    x, y = data()
    nan = lambda *a: {"weight": sine_rule(*a)["weight"] * float("nan")}
    with pb.register_rule(Sine, nan):
        check = pb.check_gradients(model, CE, x.double(), y)
    assert wrong(check) == ["0.weight"]
    assert "nan" in str(check)


def test_table() -> None:
    check = pb.check_gradients(mlp(), CE, *data())
    header, *rows, verdict = str(check).splitlines()
    assert header.split() == ["parameter", "rule", "error", "tolerance"]
    assert [row.split()[:2] for row in rows[:3]] == [
        ["0.weight", "linear"],
        ["0.bias", "linear"],
        ["2.weight", "layer_norm"],
    ]
    assert {row.index(row.split()[1]) for row in rows} == {header.index("rule")}  # columns are aligned
    assert all(row.endswith("  ok") for row in rows)
    assert verdict == "all 6 parameters agree with autograd on 4 of 9 samples"
    with pytest.raises(FrozenInstanceError):
        check.samples = ()


def test_nothing_is_disturbed() -> None:
    model, (x, y) = mlp().train(), data()
    state = torch.get_rng_state()
    pb.check_gradients(model, CE, x, y)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_refused() -> None:
    model, (x, y) = mlp(), data()
    with pytest.raises(pb.InputError, match="check_gradients: expected `samples` above 0, got 0"):
        pb.check_gradients(model, CE, x, y, samples=0)
    with pytest.raises(pb.InputError, match="check_gradients: expected `x` and `y` of the same length"):
        pb.check_gradients(model, CE, x, y[:3])
    with pytest.raises(pb.UnsupportedError, match="check_gradients: .* dropout in train mode in layer `0`"):
        pb.check_gradients(nn.Sequential(nn.LSTM(4, 3, num_layers=2, dropout=0.5)), CE, x, y)
    with pytest.raises(pb.UnsupportedError, match="batch norm in train mode"):
        pb.check_gradients(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), CE, x, y)
