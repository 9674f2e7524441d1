"""What is refused and how, the checks each call makes on itself, and that they can fail."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.gradients.capture import captured_rows
from pullback.gradients.capture import sum_checks as checks
from pullback.gradients.rows.outer import OuterFactor
from pullback.gradients.rules.registry import RULES
from pullback.kernels.plan.rates import Rates
from tests.cases import CASES, build
from tests.compare import assert_different, assert_same

CE = nn.CrossEntropyLoss()


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.arange(n) % 3


def test_batch_norm_in_train_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(pb.UnsupportedError, match=r"batch norm in train mode in layer `1`\. Call model.eval\(\) first"):
        pb.backward_kernel(model, CE, *data())
    plain = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))
    with pytest.raises(pb.UnsupportedError, match="in layer `1`"):
        pb.backward_kernel(plain, CE, *data())


def test_batch_norm_without_running_statistics() -> None:
    """``eval()`` does not help there, and is not advised; the advice given does."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)).eval()
    x, y = data()
    with pytest.raises(
        pb.UnsupportedError, match=r"track_running_stats=False\) in layer `1`\. Use pb\.frozen"
    ) as caught:
        pb.backward_kernel(model, CE, x, y)
    assert "eval()" not in str(caught.value)
    with pb.frozen_batch_norm(model, x):
        assert_same(pb.backward_kernel(model, CE, x, y).total, reference.total_kernel(model, CE, x, y), 1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e5])
def test_what_float16_cannot_hold(scale: float) -> None:
    """Losses too small or too large for it are told as that, not as samples that depend on each other."""
    x, y = data()
    loss_fn = lambda z, t: scale * F.cross_entropy(z.float(), t, reduction="none")
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(pb.UnsupportedError, match="gradients that float16 can hold, got .* use bfloat16"),
    ):
        pb.backward_kernel(small_mlp(), loss_fn, x, y)


@pytest.mark.parametrize(("scale", "end"), [(1e-22, "below 1.2e-38"), (1e-30, "below"), (1e20, "above 3.4e\\+38")])
def test_inner_products_out_of_range(scale: float, end: str) -> None:
    """Rows that float32 holds, and squares that it does not: rows are answered, their kernel is refused."""
    x, y = data()
    model, loss_fn = small_mlp(), lambda z, t: scale * F.cross_entropy(z, t, reduction="none")
    with pytest.raises(pb.UnsupportedError, match=f"inner products torch.float32 can hold, got some {end}.*double"):
        pb.backward_kernel(model, loss_fn, x, y)
    G, unit = pb.GradientMatrix(model, loss_fn, x, y).to_dense(), pb.GradientMatrix(model, CE, x, y).to_dense()
    assert_same(G / scale, unit, 1e-5)
    wide = pb.backward_kernel(model.double(), loss_fn, x.double(), y).total / scale**2
    assert_same(wide, pb.backward_kernel(model, CE, x.double(), y).total, 1e-10)


def test_gradients_that_do_not_exist() -> None:
    """A root at zero has a finite loss and no derivative: told as that."""
    loss_fn = lambda z, t: (z * 0).square().sum(1).sqrt()
    with pytest.raises(pb.UnsupportedError, match="finite gradients, got NaN or infinity in the gradient of .* root"):
        pb.backward_kernel(small_mlp(), loss_fn, *data())


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), nn.AlphaDropout(0.5)])
def test_dropout_in_train_mode(drop: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 5), drop, nn.Linear(5, 3))
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode"):
        pb.backward_kernel(model, CE, *data())
    assert pb.backward_kernel(model.eval(), CE, *data()).total.shape == (6, 6)


def test_attention_dropout_in_train_mode() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.view(-1, 2, 4)).chunk(3, -1)
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0).mean(1)

    x, y = torch.randn(6, 8), torch.arange(6) % 4
    with pytest.raises(pb.UnsupportedError, match="attention dropout in train mode"):
        pb.backward_kernel(Attention(), CE, x, y)
    encoder = nn.Sequential(nn.Unflatten(1, (2, 4)), _Encoder())
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode"):
        pb.backward_kernel(encoder, CE, x, y)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


def test_recurrent_dropout_in_train_mode() -> None:
    model = nn.LSTM(3, 4, num_layers=2, dropout=0.3)
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode in layer ``"):
        pb.backward_kernel(model, CE, torch.randn(2, 5, 3), torch.zeros(2, dtype=torch.long))


def test_a_model_that_mixes_samples() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) - self.linear(x).mean(0)

    with pytest.raises(pb.UnsupportedError, match="do not depend on the rest of the batch"):
        pb.backward_kernel(Centred(), CE, *data())


def test_a_loss_that_mixes_samples() -> None:
    def contrastive(z: Tensor, y: Tensor) -> Tensor:
        return (z @ z.T).logsumexp(1)

    with pytest.raises(pb.UnsupportedError, match="do not depend on the rest of the batch"):
        pb.backward_kernel(small_mlp(), contrastive, *data())


def test_a_random_model() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + torch.randn_like(x))

    with pytest.raises(pb.UnsupportedError, match="draw random numbers"):
        pb.backward_kernel(Noisy(), CE, *data())


def test_a_scalar_loss() -> None:
    with pytest.raises(pb.InputError, match=r"one loss per sample, shape \(6,\).*got a scalar.*reduction='none'"):
        pb.backward_kernel(small_mlp(), F.cross_entropy, *data())


def test_a_loss_without_parameters() -> None:
    with pytest.raises(pb.UnsupportedError, match="a loss or outputs that depend on the parameters"):
        pb.backward_kernel(small_mlp(), lambda z, y: z.detach().sum(1), *data())


@pytest.mark.parametrize("call", [pb.backward_kernel, pb.plan_kernel, pb.GradientMatrix])
def test_bad_data(call: Any) -> None:
    """Each entry point: empty, mismatched, non-finite, labels out of range, infinite loss."""
    model, (x, y) = small_mlp(), data()
    name = call.__name__
    with pytest.raises(pb.InputError, match=f"{name}: expected `x` with at least one sample, got no data"):
        call(model, CE, x[:0], y[:0])
    with pytest.raises(pb.InputError, match=f"{name}: expected `x` and `y` of the same length, got 6 and 5 samples"):
        call(model, CE, x, y[:5])
    broken = x.clone()
    broken[0, 2] = float("nan")
    with pytest.raises(pb.InputError, match="finite numbers in `x`, got NaN or infinity in sample 0"):
        call(model, CE, broken, y)
    with pytest.raises(pb.InputError, match="labels from 0 to 2, got 7 for sample 0"):
        call(model, CE, x, torch.full_like(y, 7))
    with pytest.raises(pb.InputError, match="a finite loss for every sample, got inf for sample 0"):
        call(model, lambda z, t: z.sum(1) / torch.zeros(len(z)), x.abs() + 1, y)
    with pytest.raises(pb.InputError, match="one common first axis"):
        call(model, CE, {"a": x, "b": x[:3]}, y)
    with pytest.raises(pb.InputError, match="parameters or modules among .*got 'nowhere'"):
        call(model, CE, x, y, params=["nowhere"])
    with pytest.raises(pb.InputError, match="`model` to be an nn.Module, got function"):
        call(lambda z: z, CE, x, y)
    with pytest.raises(pb.InputError, match="a model with trainable parameters, got none"):
        call(small_mlp().requires_grad_(False), CE, x, y)


def test_half_a_second_set() -> None:
    x, y = data()
    with pytest.raises(pb.InputError, match="`x2` and `y2` together, got only `x2`. Pass `y2` too"):
        pb.backward_kernel(small_mlp(), CE, x, y, x2=x)


def test_two_sets_on_different_paths() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x[0, 0] > 0 else self.b(x)

    model, (x, y) = Branch(), data()
    x, x2 = x.abs() + 1, -x.abs() - 1
    kernel = pb.backward_kernel(model, CE, x, y, x2=x2, y2=y).total
    g, h = reference.gradient_matrix(model, CE, x, y), reference.gradient_matrix(model, CE, x2, y)
    assert torch.allclose(kernel, g @ h.T)
    mixed = torch.cat([x, x2]), torch.cat([y, y])  # and both in one batch: each sample on the first one's path
    assert torch.allclose(pb.backward_kernel(model, CE, x, y).total, g @ g.T, rtol=1e-5)
    with pytest.raises(pb.UnsupportedError, match="do not depend on the rest of the batch"):
        pb.backward_kernel(model, CE, *mixed)


def test_memory_limit() -> None:
    model, (x, y) = small_mlp(), data(40)
    plan = pb.plan_kernel(model, CE, x, y)
    with pytest.raises(pb.InputError, match=r"a `memory_limit` of at least \d+ bytes for 40 x 40 samples, got 1000"):
        pb.backward_kernel(model, CE, x, y, memory_limit=1000)
    kept = pb.backward_kernel(model, CE, x, y, memory_limit=plan.peak_bytes)
    assert kept.plan.peak_bytes <= plan.peak_bytes
    layers = [layer for _ in range(4) for layer in (nn.Linear(48, 48), nn.Tanh())]
    deep, x = nn.Sequential(*layers).double(), torch.randn(96, 20, 48, dtype=torch.float64)
    free = pb.plan_kernel(deep, nn.MSELoss(), x, x)
    loose = pb.backward_kernel(deep, nn.MSELoss(), x, x)
    for share in (0.8, 0.6):
        limit = int(free.peak_bytes * share)
        tight = pb.backward_kernel(deep, nn.MSELoss(), x, x, memory_limit=limit)
        assert tight.plan.peak_bytes <= limit < free.peak_bytes
        assert_same(tight.total, loose.total)
        assert_same(tight.layers["0"], loose.layers["0"])
        assert_same(tight.parameters["2.weight"], loose.parameters["2.weight"])
    assert "passes over the data" in str(tight.plan)


def test_plan_costs_what_is_run() -> None:
    """The plan from one sample is the plan of the run."""
    for case in CASES:
        model, loss_fn, x, y = build(case, 6)
        if case.name in ("tokens", "bags", "one_dict"):
            continue  # embedding costs depend on how many tokens differ, which one sample cannot tell
        before, after = pb.plan_kernel(model, loss_fn, x, y), pb.backward_kernel(model, loss_fn, x, y).plan
        assert [(a.parameters, a.form, a.flops) for a in before.layers] == [
            (b.parameters, b.form, b.flops) for b in after.layers
        ], case.name
        assert before.shape == (6, 6)


def test_form_follows_cost() -> None:
    """Ghost exactly where N T^2 (d + p) < d p (N + 2 T), up to the bias's 1."""
    x, y = torch.randn(64, 12, 16), torch.randn(64, 12, 16)
    rates = Rates(gemm=1e11, bmm=1e11, stream=1e15)
    for positions, form in ((1, "ghost"), (2, "ghost"), (12, "materialise")):
        plan = pb.plan_kernel(nn.Linear(16, 16), nn.MSELoss(), x[:, :positions], y[:, :positions], rates=rates)
        assert plan.layers[0].form == form


# The checks that every call makes must be able to fail: break the engine and see.


def test_a_scaled_factor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: one layer's rows 0.1 percent too large."""
    rule = RULES[F.linear]
    broken = lambda call: [replace(f, gradients=f.gradients * 1.001) for f in rule.build(call)]
    monkeypatch.setitem(RULES, F.linear, replace(rule, build=broken))
    with pytest.raises(pb.UnsupportedError, match="a difference of"):
        pb.backward_kernel(small_mlp(), CE, *data())


def test_wrong_rows_in_the_middle_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: only samples that are not checked one by one are wrong."""
    rule = RULES[F.linear]

    def broken(call: Any) -> list[OuterFactor]:
        (factor,) = rule.build(call)
        gradients = factor.gradients.clone()
        gradients[1:3] *= 1.01  # the last, the first and the middle one are compared by themselves
        return [replace(factor, gradients=gradients)]

    monkeypatch.setitem(RULES, F.linear, replace(rule, build=broken))
    with pytest.raises(
        pb.SelfCheckError, match="summed gradient of `0.weight` to agree with the ordinary gradient.*rounding explains"
    ):
        pb.backward_kernel(small_mlp(), CE, *data())
    with pytest.raises(pb.SelfCheckError, match="summed gradient of"):
        pb.GradientMatrix(small_mlp(), CE, *data())


def test_a_wrong_tile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: the rows are right and the kernel made from them is not."""
    from pullback.gradients.rows.outer import GhostPiece

    right = GhostPiece.tile

    def broken(self: Any, out: Tensor, *args: Any, **kwargs: Any) -> None:
        right(self, out, *args, **kwargs)
        out[0, 0] *= 1.5

    monkeypatch.setattr(GhostPiece, "tile", broken)
    with pytest.raises(pb.SelfCheckError, match="summed kernel of"):
        pb.backward_kernel(small_mlp(), CE, *data(), forms={"0": "ghost"})


@pytest.mark.parametrize(
    ("contract", "what"),
    [("full", "summed kernel"), ("sum", "summed kernel"), ("trace", "kernel entries"), ("diagonal", "kernel entries")],
)
def test_a_wrong_tile_is_found_under_every_contract(contract: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.gradients.rows.outer import GhostPiece

    right = GhostPiece.tile

    def broken(self: Any, out: Tensor, *args: Any, **kwargs: Any) -> None:
        right(self, out, *args, **kwargs)
        out *= 1.5

    monkeypatch.setattr(GhostPiece, "tile", broken)
    with pytest.raises(pb.SelfCheckError, match=rf"tangent_kernel: expected the {what} of"):
        pb.tangent_kernel(small_mlp(), data()[0], contract=contract, forms={"0": "ghost"})


ENTRIES = {
    "backward_kernel": pb.backward_kernel,
    "cross": lambda model, loss_fn, x, y: pb.backward_kernel(model, loss_fn, x, y, x2=x[:3], y2=y[:3]),
    "tangent_kernel": lambda model, _, x, __: pb.tangent_kernel(model, x),
    "GradientMatrix": pb.GradientMatrix,
    "sketch_kernel": lambda *args: pb.sketch_kernel(*args, size=2, repeats=2, exact="smaller"),
    "kernel_to_store": lambda *args: pb.kernel_to_store(*args[:2], args[2:], stored(), progress=False),
}


def stored() -> str:
    return tempfile.mkdtemp()


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], None]) -> None:
    """Output gradients of every linear layer, changed in place before the rows are made from them."""
    rule = RULES[F.linear]

    def broken(call: Any) -> list[OuterFactor]:
        (factor,) = rule.build(call)
        gradients = factor.gradients.clone()
        change(gradients)
        return [replace(factor, gradients=gradients)]

    monkeypatch.setitem(RULES, F.linear, replace(rule, build=broken))


@pytest.mark.parametrize("samples", [slice(0, 1), slice(2, 3), slice(-1, None)], ids=["first", "middle", "last"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5], ids=["nan", "inf", "too large"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_rows_are_found_by_every_entry(
    entry: str, value: float, samples: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that are none, and too large ones: at the ends by the sample alone, between them by the sums."""

    def change(gradients: Tensor) -> None:
        gradients[samples] *= value

    spoil(monkeypatch, change)
    with pytest.raises(
        (pb.UnsupportedError, pb.SelfCheckError), match="a difference of|summed gradient|NaN or infinity for sample"
    ):
        ENTRIES[entry](small_mlp(), CE, *data())


def test_errors_that_cancel_within_a_row_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output gradients of a middle sample wrong by +e and -e by turns: the gradient is probed along drawn signs."""

    def change(gradients: Tensor) -> None:
        width = gradients.shape[-1] // 2 * 2
        gradients[2, ..., :width] += 0.1 * (1 - 2 * (torch.arange(width) % 2))

    spoil(monkeypatch, change)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    with pytest.raises(pb.SelfCheckError, match="summed gradient of"):
        pb.backward_kernel(model, CE, *data())


def test_a_kink_excuses_no_more_than_its_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit of 21 lies at its kink and weighs little; half too much of all others is an error."""
    model = nn.Sequential(nn.Linear(2, 21, bias=False), nn.ReLU(), nn.Linear(21, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0]]).repeat(21, 1))
        model[0].weight[0, 1] = -1.0
        model[2].weight.fill_(1.0)
        model[2].weight[0, 0] = 0.05
    x, y = torch.ones(5, 2), torch.zeros(5, 1)
    pb.backward_kernel(model, nn.MSELoss(), x, y)

    def change(gradients: Tensor) -> None:
        gradients[0, ..., 1:] *= 1.5

    spoil(monkeypatch, change)
    with pytest.raises(pb.UnsupportedError, match="for sample 0 and parameter `0.weight` a difference of"):
        pb.backward_kernel(model, nn.MSELoss(), x, y)


def test_a_dropped_cross_term_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: a weight used twice loses the terms between its uses."""
    case = next(case for case in CASES if case.name == "tied")
    model, loss_fn, x, y = build(case, 5)
    right = pb.backward_kernel(model, loss_fn, x, y).total
    monkeypatch.setattr(captured_rows, "one_of", lambda factors: factors[0])
    with pytest.raises(pb.UnsupportedError, match="for sample 0 and parameter"):
        pb.backward_kernel(model, loss_fn, x, y)
    monkeypatch.setattr(captured_rows, "check_samples", lambda *a: None)
    monkeypatch.setattr(checks.SumChecks, "evaluate", lambda self: None)
    assert_different(pb.backward_kernel(model, loss_fn, x, y).total, right, 0.01)


def test_a_use_no_rule_sees_goes_to_the_fallback() -> None:
    """A weight used by a rule and once more elsewhere is taken whole by the fallback, and stays exact."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + 0.1 * torch.einsum("nd,kd->nk", x, self.linear.weight)

    model, (x, y) = Twice(), data()
    kernel = pb.backward_kernel(model, CE, x, y)
    assert {layer.parameters: layer.form for layer in kernel.plan.layers} == {
        ("linear.bias",): "dense",
        ("linear.weight",): "fallback",
    }
    assert torch.allclose(kernel.total, reference.total_kernel(model, CE, x, y), rtol=1e-4, atol=1e-6)


def test_nothing_is_disturbed() -> None:
    """Modes, gradients, weights, buffers, hooks and random state are as before, also after an error."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x, y = data()

    def state() -> tuple[Any, ...]:
        weights = [p.clone() for p in model.parameters()]
        buffers = [b.clone() for b in model.buffers()]
        modes = [m.training for m in model.modules()]
        hooks = len(model[0]._forward_hooks)
        return weights, buffers, modes, hooks, torch.get_rng_state(), [p.grad for p in model.parameters()]

    def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        tensors = all(
            torch.equal(s, t)
            for left, right in zip(a[:2], b[:2], strict=True)
            for s, t in zip(left, right, strict=True)
        )
        grads = all(s is t for s, t in zip(a[5], b[5], strict=True))
        return tensors and a[2:4] == b[2:4] and torch.equal(a[4], b[4]) and grads

    before = state()
    pb.backward_kernel(model, CE, x, y)
    assert same(before, state())
    with pytest.raises(pb.InputError):
        pb.backward_kernel(model, F.cross_entropy, x, y)
    model[1].train()
    before = state()
    with pytest.raises(pb.UnsupportedError):
        pb.backward_kernel(model, CE, x, y)
    assert same(before, state())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_under_no_grad() -> None:
    """The caller's no_grad does not matter."""
    model, (x, y) = small_mlp(), data()
    expected = pb.backward_kernel(model, CE, x, y).total
    with torch.no_grad():
        assert torch.equal(pb.backward_kernel(model, CE, x, y).total, expected)


def a_check() -> checks.SumChecks:
    return checks.SumChecks("a call", torch.float32)


@pytest.mark.parametrize(("size", "error"), [(1e-13, pb.SelfCheckError), (1e-17, pb.UnsupportedError)])
def test_rows_are_out_of_range_by_their_squares(size: float, error: type[Exception]) -> None:
    """Inner products of rows of 1e-13 are whole numbers of float32, those of 1e-17 are not."""
    check = a_check()
    check._add("summed gradient of `weight`", torch.tensor(size), torch.tensor(size))
    with pytest.raises(error, match="weight" if error is pb.SelfCheckError else "hold"):
        check.evaluate()


def test_one_entry_beyond_the_range_is_enough() -> None:
    right = torch.ones(2, 2)
    for block, fails in ((right, False), (torch.tensor([[1.0, torch.inf], [1.0, 1.0]]), True)):
        check = a_check()
        check.add_entries("layer", right[0], right[0], torch.tensor(1.0), block)
        if fails:
            with pytest.raises(pb.UnsupportedError, match="above"):
                check.evaluate()
        else:
            check.evaluate()
