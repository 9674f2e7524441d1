"""Curvature operators against the dense reference, over all cases; blocks, batches, kept graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.operators.curvature import base as curvature
from pullback.operators.operator import Operator
from tests.cases import CASES, Bags, Case, build
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()
LIKELIHOODS = {  # those without
    "conv3d": "label_smoothing",
    "two_inputs": "_squared",
    "zero_gradient": "<lambda>",
    "branches": "_density",
}


class PlainBags(Bags):
    """The same function and parameters without ``nn.EmbeddingBag``, which torch cannot differentiate twice."""

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        first = (self.sum.weight[tokens] * weights.unsqueeze(2)).sum(1)
        kept = (tokens != 0).unsqueeze(2)
        second = (self.mean.weight[tokens] * kept).sum(1) / kept.sum(1).clamp(min=1)
        rows = self.max.weight[tokens].masked_fill((tokens == 1).unsqueeze(2), -torch.inf)
        third = rows.max(1).values.masked_fill((tokens == 1).all(1, keepdim=True), 0.0)
        return self.head(torch.tanh(first * second + third))


def dense_hessian(model: nn.Module, loss_fn: Any, x: Any, y: Any) -> Tensor:
    if not isinstance(model, Bags):
        return reference.dense_hessian(model, loss_fn, x, y)
    plain = PlainBags().double()
    plain.load_state_dict(model.state_dict())
    assert_same(plain(**x).detach(), model(**x).detach(), 1e-12)
    return reference.dense_hessian(plain, loss_fn, x, y)


def classical(model: nn.Module, loss_fn: Any, data: Any) -> Operator:
    return pb.GaussNewton(model, loss_fn, data, classical=True)


def dense_classical(model: nn.Module, loss_fn: Any, x: Any, y: Any) -> Tensor:
    return reference.dense_gauss_newton(model, loss_fn, x, y, classical=True)


def empirical(model: nn.Module, loss_fn: Any, data: Any) -> Operator:
    return pb.Fisher(model, loss_fn, data, kind="empirical")


OPERATORS: dict[str, tuple[Callable[..., Operator], Callable[..., Tensor]]] = {
    "Hessian": (pb.Hessian, dense_hessian),
    "GaussNewton": (pb.GaussNewton, reference.dense_gauss_newton),
    "classical": (classical, dense_classical),
    "empirical": (empirical, reference.dense_empirical_fisher),
    "true": (pb.Fisher, reference.dense_fisher),
}


@pytest.mark.parametrize(("case", "kind"), thinned(CASES, tuple(OPERATORS)))
def test_equals_the_dense_reference(case: Case, kind: str) -> None:
    """Vectors, blocks of columns, the transpose, the dense form, sub-blocks; S2-11: H is symmetric. S2-19, S2-31."""
    model, loss_fn, x, y = build(case, 4)
    make, dense = OPERATORS[kind]
    if kind == "true" and case.name in LIKELIHOODS:
        with pytest.raises(pb.UnsupportedError, match=f"negative log-likelihood.* got .*{LIKELIHOODS[case.name]}"):
            make(model, loss_fn, (x, y))
        return
    op, expected = make(model, loss_fn, (x, y)), dense(model, loss_fn, x, y)
    assert op.batched  # type: ignore[attr-defined]
    found = op.to_dense()
    assert_same(found, expected, 1e-9)
    assert_same(found, found.T, 1e-12)
    v = torch.randn(op.shape[1], 3, dtype=torch.float64)
    scale = float(expected.norm()) * float(v.norm()) + 1e-300
    assert_same(op @ v, expected @ v, 1e-9, scale=scale)
    assert_same(op.T @ v[:, 0], expected @ v[:, 0], 1e-9, scale=scale)
    assert not found.requires_grad
    check_blocks(op, expected)


def check_blocks(op: Any, expected: Tensor) -> None:
    """Blocks between the first and the last layer, and all diagonal ones."""
    view = op.view
    offsets, position = {}, 0
    for name, p in view.parameters.items():
        offsets[name] = torch.arange(position, position + p.numel())
        position += p.numel()
    places = {layer: torch.cat([offsets[n] for n in names]) for layer, names in view.layers.items()}
    scale = float(expected.abs().max())
    for layer, block in op.layers.items():
        assert_same(block.to_dense(), expected[places[layer]][:, places[layer]], 1e-9, scale=scale)
        assert block.symmetric
    first, last = next(iter(view.layers)), list(view.layers)[-1]
    names = {first: view.layers[first], last: view.layers[last]}
    between = op.block(names[first], names[last])
    assert between.shape == (len(places[first]), len(places[last]))
    assert_same(between.to_dense(), expected[places[first]][:, places[last]], 1e-9, scale=scale)
    assert_same(between.T.to_dense(), expected[places[last]][:, places[first]], 1e-9, scale=scale)


def test_a_dropped_term_is_noticed() -> None:
    """The comparison above can fail: without the output Hessian, or the second term, the matrices differ."""
    model, loss_fn, x, y = build(CASES[0], 4)
    hessian = reference.dense_hessian(model, loss_fn, x, y)
    assert_different(pb.GaussNewton(model, loss_fn, (x, y)).to_dense(), hessian, 0.05)
    assert_different(classical(model, loss_fn, (x, y)).to_dense(), hessian, 0.05)
    assert_different(empirical(model, loss_fn, (x, y)).to_dense(), hessian, 0.05)


def test_params_restricts_to_a_sub_block() -> None:
    model, loss_fn, x, y = build(CASES[0], 4)
    whole = pb.Hessian(model, loss_fn, (x, y))
    part = pb.Hessian(model, loss_fn, (x, y), params=["3", "5.bias"])
    assert_same(part.to_dense(), whole.block(["3", "5.bias"]).to_dense(), 1e-12)
    assert_same(whole.block("3").to_dense(), whole.layers["3"].to_dense(), 1e-12)
    assert repr(part.block("3", "5.bias")) == "Block(35 x 4, torch.float64, cpu)"
    with pytest.raises(pb.InputError, match="Hessian.block: expected covered parameters among .*, got '1.weight'"):
        part.block("1.weight")
    with pytest.raises(pb.InputError, match="Hessian.block: expected parameters or modules among .*, got 'nowhere'"):
        whole.block("nowhere")


@pytest.mark.parametrize("make", [make for make, _ in OPERATORS.values()], ids=list(OPERATORS))
def test_batches_of_uneven_size_are_weighted_by_their_counts(make: Callable[..., Operator]) -> None:
    model, loss_fn, x, y = build(CASES[0], 7)
    whole = make(model, loss_fn, (x, y)).to_dense()
    parts = make(model, loss_fn, [(x[:4], y[:4]), (x[4:6], y[4:6]), (x[6:], y[6:])])
    assert_same(parts.to_dense(), whole, 1e-12)
    assert parts.num_samples == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_kept_graph_follows_weights_and_buffers(kind: str) -> None:
    """Also writes that no version counts: through ``.data``, and to running statistics."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    loss_fn, x, y = nn.CrossEntropyLoss(), torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 2
    make, dense = OPERATORS[kind]
    op = make(model, loss_fn, (x, y))
    v = torch.randn(op.shape[1], 2, dtype=torch.float64)
    before = op @ v
    assert torch.equal(op @ v, before)
    for change in (
        lambda: [p.mul_(1.1) for p in model.parameters()],
        lambda: [p.data.mul_(0.8) for p in model.parameters()],
        lambda: setattr(model[0].weight, "data", model[0].weight.detach() + 0.1),
        lambda: model[1].running_var.data.mul_(2.0),
    ):
        with torch.no_grad():
            change()
        after = op @ v
        assert_different(after, before, 1e-3)
        assert_same(after, dense(model, loss_fn, x, y) @ v, 1e-9)
        before = after


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("alone", [True, False])
def test_products_between_which_nothing_is_written(kind: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within ``held`` the state is looked at once; products are the same to the bit, afterwards weights count again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data: Any = (torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    data = data if alone else [data]
    H = pb.Hessian(net, CE, data)
    op = H if kind == "hessian" else pb.GaussNewton.beside(H)
    dense = reference.dense_hessian if kind == "hessian" else reference.dense_gauss_newton
    v = torch.randn(op.shape[0], dtype=torch.float64)
    expected, looks, real = op @ v, [], curvature.state_of
    monkeypatch.setattr(curvature, "state_of", lambda model: looks.append(1) or real(model))
    with op.held():
        assert torch.equal(op @ v, expected)
        assert torch.equal(op @ v, expected)
    assert len(looks) == (1 if alone else 2)
    with pytest.raises(ZeroDivisionError), op.held():
        raise ZeroDivisionError
    with torch.no_grad():
        net[0].weight.mul_(2)
    x, y = data if alone else data[0]
    assert_same(op @ v, dense(net, CE, x, y) @ v)
    with op.held():
        assert_same(op @ v, dense(net, CE, x, y) @ v)


def test_gauss_newton_beside_a_hessian() -> None:
    """The same as one made anew, at the cost of no pass; what the Hessian's making refuses never gets there."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [(torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2) for n in (5, 2)]
    H = pb.Hessian(net, CE, data, params=["0"])
    before, calls = H.to_dense(), []
    hook = net.register_forward_pre_hook(lambda *_: calls.append(1))
    beside = pb.GaussNewton.beside(H)
    assert not calls
    hook.remove()
    assert torch.equal(beside.to_dense(), pb.GaussNewton(net, CE, data, params=["0"]).to_dense())
    assert torch.equal(H.to_dense(), before)


def test_columns_in_blocks_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few columns at a time, all at once, and one by one give the same products."""
    model, loss_fn, x, y = build(CASES[0], 4)
    for make, _ in OPERATORS.values():
        op = make(model, loss_fn, (x, y))
        v = torch.randn(op.shape[1], 5, dtype=torch.float64)
        at_once = op @ v
        sizes: list[int] = []
        original = type(op)._graph_product

        def watched(
            self: Any, graph: Any, directions: Any, *rest: Any, sizes: list[int] = sizes, f: Any = original
        ) -> Any:
            sizes.append(next(iter(directions.values())).shape[0])
            return f(self, graph, directions, *rest)

        monkeypatch.setattr(type(op), "_graph_product", watched)
        monkeypatch.setattr(curvature, "BLOCK_BYTES", 2.5 * curvature.GRAPH_TO_FORWARD * op._forward_bytes)  # type: ignore[attr-defined]
        assert_same(op @ v, at_once, 1e-12)
        monkeypatch.undo()
        assert sizes[:2] == [2, 2]
        op.batched = False  # type: ignore[attr-defined]
        assert_same(op @ v, at_once, 1e-12)


def test_an_operation_without_batching_rule_is_looped_over() -> None:
    class Halves(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z / 2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return g / 2 if g.detach().sum().item() < 1e300 else g  # reads a number, which vmap refuses

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(Halves.apply(self.first(x))))

    model, x, y = Net(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    op = pb.Hessian(model, nn.CrossEntropyLoss(), (x, y))
    assert_same(op.to_dense(), reference.dense_hessian(model, nn.CrossEntropyLoss(), x, y), 1e-12)
    assert not op.batched


def test_an_operation_without_second_derivative_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            offsets = torch.arange(len(x))
            return torch.embedding_bag(self.body(x).tanh(), torch.arange(len(x)), offsets)[0]

    data = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    op = pb.Hessian(Net(), nn.CrossEntropyLoss(), data)
    with pytest.raises(pb.UnsupportedError, match="Hessian: expected operations that torch can differentiate twice"):
        op @ torch.ones(op.shape[1])


def test_bags_with_offsets() -> None:
    """Ragged bags of all modes, as torch makes them, empty ones and padding included."""
    from pullback.functional.elementary.layers import embedding_bag

    table, tokens = torch.randn(9, 4, dtype=torch.float64), torch.tensor([1, 2, 2, 5, 0, 8, 3])
    offsets, weights = torch.tensor([0, 3, 3, 5]), torch.rand(7, dtype=torch.float64)
    for mode in ("sum", "mean", "max"):
        for padding in (None, 0, -7):
            expected = F.embedding_bag(tokens, table, offsets, mode=mode, padding_idx=padding)
            assert_same(embedding_bag(tokens, table, offsets, mode=mode, padding_idx=padding), expected, 1e-14)
    expected = F.embedding_bag(tokens, table, offsets, mode="sum", per_sample_weights=weights)
    assert_same(embedding_bag(tokens, table, offsets, mode="sum", per_sample_weights=weights), expected, 1e-14)
    ends = torch.tensor([0, 3, 3, 5, 7])
    expected = F.embedding_bag(tokens, table, ends, mode="sum", include_last_offset=True)
    assert_same(embedding_bag(tokens, table, ends, mode="sum", include_last_offset=True), expected, 1e-14)
    with pytest.raises(pb.UnsupportedError, match="F.embedding_bag: expected a plain table, got `max_norm`"):
        embedding_bag(tokens, table, offsets, max_norm=1.0)


def test_a_loss_linear_in_the_parameters() -> None:
    model = nn.Linear(3, 1, bias=False)
    data = torch.randn(4, 3), torch.zeros(4)
    for make in (pb.Hessian, pb.GaussNewton):
        op = make(model, lambda z, y: z.sum(1), data)
        assert (op @ torch.ones(3)).abs().max() == 0
        assert (op @ torch.ones(3, 2)).abs().max() == 0


def test_products_that_are_the_directions_themselves() -> None:
    """The Hessian of a b swaps the directions: they must not be overwritten before they are read."""

    class Swap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a * self.b).expand(len(x), 3)

    op = pb.Hessian(Swap(), lambda z, y: z.sum(1), (torch.zeros(1, 3), torch.zeros(1)))
    v = torch.arange(12.0).view(6, 2)
    given = v.clone()
    for matrix in (v, v[:, :1], v.T.contiguous().T):
        assert torch.equal(op @ matrix, torch.cat([matrix[3:], matrix[:3]]))
    assert torch.equal(op @ v[:, 0], torch.cat([v[3:, 0], v[:3, 0]]))
    assert torch.equal(v, given)


def test_a_model_that_returns_several_tensors() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"left": torch.tanh(self.left(a)), "right": self.right(b), "input": a}

    def loss_fn(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
        return (outputs["left"] * outputs["right"] - y).square().sum(1)

    class Joined(Two):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
            outputs = super().forward(a, b)
            return torch.cat([outputs["left"], outputs["right"]], 1)

    model, joined = Two(), Joined()
    joined.load_state_dict(model.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    y = torch.randn(5, 2, dtype=torch.float64)
    expected = reference.dense_gauss_newton(joined, lambda z, t: (z[:, :2] * z[:, 2:] - t).square().sum(1), x, y)
    op = pb.GaussNewton(model, loss_fn, (x, y))
    assert_same(op.to_dense(), expected, 1e-12)
    with pytest.raises(pb.UnsupportedError, match="sample: expected a model with one output tensor, got 2 outputs"):
        op.sample(1)


def test_an_object_with_logits() -> None:
    """As Hugging Face models return it: a mapping that is a tree of tensors, the hidden states among them."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

        def forward(self, values: Tensor) -> Any:
            hidden = torch.tanh(self.body(values))
            return SequenceClassifierOutput(logits=self.head(hidden), hidden_states=(hidden,))

    model, x, y = Classifier(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    plain = nn.Sequential(model.body, nn.Tanh(), model.head)
    for make, dense in OPERATORS.values():
        expected = dense(plain, nn.CrossEntropyLoss(), x, y)
        assert_same(make(model, nn.CrossEntropyLoss(), ({"values": x}, y)).to_dense(), expected, 1e-12)


def test_parameters_of_two_kinds_are_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 2), nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).double())

    model, data = Mixed(), (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(pb.InputError, match="parameters all torch.float32 on cpu, got `last.weight` torch.float64"):
        pb.Hessian(model, nn.CrossEntropyLoss(), data)
    assert pb.Hessian(model, nn.CrossEntropyLoss(), data, params=["last"]).dtype == torch.float64


def test_bad_labels_and_lengths() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(pb.InputError, match="Hessian: expected `x` and `y` of the same length"):
        pb.Hessian(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.zeros(3, dtype=torch.long)))
    with pytest.raises(pb.InputError, match="GaussNewton: expected labels from 0 to 1, got 5"):
        pb.GaussNewton(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.full((4,), 5)))
