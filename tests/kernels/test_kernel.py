"""``backward_kernel`` against the loop, over all cases, and the properties it must have. S0-03, S0-06 to S0-08."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.functional import take
from pullback.gradients.rules import RULES
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize(("case", "n"), [*((case, 7) for case in CASES), *thinned(CASES, [1, 2])])
def test_equals_the_loop(case: Case, n: int) -> None:
    """S0-06, S0-07: total, layers and parameters, in float64."""
    model, loss_fn, x, y = build(case, n)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    total = reference.total_kernel(model, loss_fn, x, y)
    size = max(float(total.abs().max()), 1e-12)
    assert_same(kernel.total, total, scale=size)
    layers = reference.layer_kernels(model, loss_fn, x, y)
    assert set(kernel.layers) == set(layers)
    for layer, block in layers.items():
        assert_same(kernel.layers[layer], block, scale=size)
    gradients = reference.per_sample_gradients(model, loss_fn, x, y)
    assert list(kernel.parameters) == list(gradients)
    for name, g in gradients.items():
        assert_same(kernel.parameters[name], g.flatten(1) @ g.flatten(1).T, scale=size)


@pytest.mark.parametrize("case", thinned(CASES))
def test_float32_equals_the_loop_in_float64(case: Case) -> None:
    model, loss_fn, x, y = build(case, 6, torch.float32)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert kernel.total.dtype == torch.float32
    model, loss_fn, x, y = build(case, 6)
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x, y))


@pytest.mark.parametrize("case", thinned(CASES))
def test_cross_kernel(case: Case) -> None:
    """A block of the kernel of both sets together."""
    model, loss_fn, x, y = build(case, 7)
    cut, rest = slice(0, 3), slice(3, 7)
    kernel = pb.backward_kernel(model, loss_fn, take(x, cut), take(y, cut), x2=take(x, rest), y2=take(y, rest))
    whole = reference.total_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, whole[:3, 3:], scale=float(whole.abs().max()))
    assert_same(torch.stack(list(kernel.layers.values())).sum(0), kernel.total)
    assert_same(torch.stack(list(kernel.parameters.values())).sum(0), kernel.total)


@pytest.mark.parametrize("case", thinned(CASES))
def test_symmetric_psd_and_sum_of_layers(case: Case) -> None:
    """S0-06: exact symmetry, no eigenvalue below rounding error; S0-07: the layers sum to the whole."""
    model, loss_fn, x, y = build(case, 9, torch.float32)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert torch.equal(kernel.total, kernel.total.T)
    assert all(torch.equal(block, block.T) for block in kernel.layers.values())
    values = torch.linalg.eigvalsh(kernel.total.double())
    assert values[0] >= -1e-5 * values[-1]
    model, loss_fn, x, y = build(case, 9)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    values = torch.linalg.eigvalsh(kernel.total)
    assert values[0] >= -1e-10 * values[-1]
    assert_same(torch.stack(list(kernel.layers.values())).sum(0), kernel.total, 1e-12)


@pytest.mark.parametrize("case", thinned(CASES))
def test_permuting_samples_permutes_the_kernel(case: Case) -> None:
    model, loss_fn, x, y = build(case, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    kernel = pb.backward_kernel(model, loss_fn, x, y).total
    permuted = pb.backward_kernel(model, loss_fn, take(x, order), take(y, order)).total
    assert_same(permuted, kernel[order][:, order])


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile size gives the same kernel to rounding, also where it does not divide N."""
    for case in CASES[::5]:
        model, loss_fn, x, y = build(case, 7)
        whole = pb.backward_kernel(model, loss_fn, x, y).total
        for rows, positions in ((1, 1), (3, 8), (5, 20)):
            monkeypatch.setattr("pullback.kernels.plan.make.TILE_ROWS", rows)
            monkeypatch.setattr("pullback.kernels.plan.make.TILE_POSITIONS", positions)
            tiled = pb.backward_kernel(model, loss_fn, x, y).total
            assert_same(tiled, whole, 1e-12)
            assert torch.equal(tiled, tiled.T)


@pytest.mark.parametrize(("case", "form"), thinned(CASES, ("ghost", "materialise", "shift")))
def test_every_form_gives_the_same(case: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-08: the form that never makes a gradient equals the one that does."""

    def choose(factor: object, *_: object) -> str:
        return form if form in factor.forms else factor.forms[0]  # type: ignore[attr-defined]

    monkeypatch.setattr("pullback.kernels.plan.make.cheapest_form", choose)
    model, loss_fn, x, y = build(case, 6)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x, y))
    cut, rest = slice(0, 2), slice(2, 6)
    cross = pb.backward_kernel(model, loss_fn, take(x, cut), take(y, cut), x2=take(x, rest), y2=take(y, rest))
    assert_same(cross.total, kernel.total[:2, 2:], scale=float(kernel.total.abs().max()))


def test_small_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient rows formed a few outputs at a time."""
    monkeypatch.setattr(
        "pullback.kernels.plan.make.cheapest_form",
        lambda factor, *_: "materialise" if "materialise" in factor.forms else factor.forms[0],
    )
    monkeypatch.setattr("pullback.gradients.rows.factor.Factor.piece_bytes", 1000)
    for case in CASES:
        model, loss_fn, x, y = build(case, 6)
        assert_same(pb.backward_kernel(model, loss_fn, x, y).total, reference.total_kernel(model, loss_fn, x, y))


def test_every_rule_has_a_case() -> None:
    """A rule that no case exercises is not tested."""
    covered = frozenset().union(*(case.rules for case in CASES))
    assert {rule.name for rule in RULES.values()} <= covered


@every_case
def test_rules_take_what_they_claim(case: Case) -> None:
    """The case reaches the rules it is there for, not the fallback."""
    model, loss_fn, x, y = build(case, 3)
    plan = pb.plan_kernel(model, loss_fn, x, y)
    reached = {part for layer in plan.layers for part in layer.rule.split(" + ")}
    assert case.rules <= reached


def test_first_order_meaning() -> None:
    """S0-17: a step on sample j changes the loss of sample i by -lr K_ij, up to lr^2."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    kernel = pb.backward_kernel(model, loss_fn, x, y).total
    before = loss_fn(model(x), y).detach()
    gradients = reference.per_sample_gradients(model, loss_fn, x, y)

    def change(lr: float, j: int) -> torch.Tensor:
        moved = {n: p.detach() - lr * gradients[n][j] for n, p in model.named_parameters()}
        return loss_fn(torch.func.functional_call(model, moved, (x,)), y).detach() - before

    for j in range(6):
        assert_same(change(1e-6, j) / -1e-6, kernel[:, j], 1e-3)
        errors = [float((change(lr, j) + lr * kernel[:, j]).abs().max()) / lr**2 for lr in (1e-2, 5e-3, 2.5e-3)]
        assert max(errors) < 2 * min(errors)  # error / lr^2 stays bounded as lr halves


def test_parameter_subsets() -> None:
    model, loss_fn, x, y = build(CASES[0], 5)
    whole = pb.backward_kernel(model, loss_fn, x, y)
    one = pb.backward_kernel(model, loss_fn, x, y, params=["1"])
    assert list(one.layers) == ["1"]
    assert_same(one.total, whole.layers["1"])
    assert one.num_params == 12 * 7 + 7
    bias = pb.backward_kernel(model, loss_fn, x, y, params=["1.bias", "5.weight"])
    assert_same(bias.total, whole.parameters["1.bias"] + whole.parameters["5.weight"])


def test_frozen_parameters_are_left_out_and_listed() -> None:
    case = next(case for case in CASES if case.name == "frozen")
    model, loss_fn, x, y = build(case, 4)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert "2.weight" not in kernel.parameters
    assert kernel.plan.frozen == ("2.weight", "4.bias")
    assert "frozen, not covered: 2.weight, 4.bias" in str(kernel.plan)


def test_is_an_operator() -> None:
    model, loss_fn, x, y = build(CASES[0], 5)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    v = torch.randn(5, 2, dtype=torch.float64)
    assert_same(kernel @ v, kernel.total @ v)
    assert_same((2.0 * kernel).T @ v[:, 0], 2 * kernel.total @ v[:, 0])
    assert kernel.to_scipy().matvec(v[:, 0].numpy()).shape == (5,)
    with pytest.raises(pb.InputError, match=r"expected a tensor \(5,\) or \(5, K\), got shape \(4,\)"):
        kernel @ torch.randn(4, dtype=torch.float64)
    with pytest.raises(pb.InputError, match="Convert the vector"):
        kernel @ torch.randn(5)


def test_layers_follow_the_forward_pass() -> None:
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == "tokens"), 3)
    order = list(pb.backward_kernel(model, loss_fn, x, y).layers)
    assert order.index("embed") < order.index("place") < order.index("norm") < order.index("fc") < order.index("head")
    assert set(order) == {"(model)", "embed", "place", "norm", "fc", "rms", "head", "unused"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_case
def test_device_follows_the_model(case: Case) -> None:
    model, loss_fn, x, y = build(case, 5)
    expected = reference.total_kernel(model, loss_fn, x, y)
    move = lambda t: {k: v.cuda() for k, v in t.items()} if isinstance(t, dict) else t.cuda()
    kernel = pb.backward_kernel(model.cuda(), loss_fn, move(x), move(y))
    assert kernel.total.device.type == "cuda"
    assert_same(kernel.total.cpu(), expected)


def test_a_limit_that_is_no_number_is_refused() -> None:
    model, x, y = nn.Linear(3, 2), torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(pb.InputError, match=r"`memory_limit` in bytes, or None, got 'lots'. Pass a number, 2\*\*30"):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, memory_limit="lots")  # type: ignore[arg-type]
