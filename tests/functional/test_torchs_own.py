"""Replaced operations against torch's own: every argument in every state, values and gradients, and the defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.functional.elementary import algebra, confident, layers, losses
from tests.compare import assert_same

REPLACED = layers.LAYERS | layers.NORMS | losses.LOSSES | confident.CONFIDENT
FLAGS = [{}, *({"reduction": name} for name in ("none", "mean", "sum"))]
OLD_FLAGS = [{"size_average": a, "reduce": b} for a, b in product((None, True, False), repeat=2)]
N, C = 5, 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return numbers(*shape, seed=1).abs() + 0.2


def has_defaults(function: Any) -> bool:
    try:
        return (
            not {"args", "self"} & inspect.signature(function).parameters.keys()
        )  # self: a method, from Python 3.13 on
    except ValueError:
        return False


def assert_alike(theirs: Callable[..., Any], ours: Callable[..., Any], x: Tensor, *args: Any, **named: Any) -> None:
    """Values, and gradients of a sum with different weights where they are finite."""
    found = []
    for function in (theirs, ours):
        leaf = x.clone().requires_grad_()
        value = function(leaf, *args, **named)
        weights = torch.arange(1.0, 1 + value.numel(), dtype=torch.float64).view(value.shape)
        kept = torch.where(value.detach().isfinite(), value, 0.0)
        found.append((value.detach(), torch.autograd.grad((weights * kept).sum(), leaf)[0]))
    (value, gradient), (our_value, our_gradient) = found
    assert our_value.shape == value.shape
    assert torch.equal(our_value.isinf(), value.isinf())
    assert_same(our_value.masked_fill(value.isinf(), 0.0), value.masked_fill(value.isinf(), 0.0), 1e-12, scale=1.0)
    if not gradient.isnan().any():
        assert_same(our_gradient, gradient, 1e-11, scale=1.0)


@pytest.mark.parametrize("function", [f for f in REPLACED if has_defaults(f)], ids=lambda f: f.__name__)
def test_names_order_and_defaults_are_torch_s(function: Any) -> None:
    ours, theirs = (inspect.signature(each).parameters for each in (REPLACED[function], function))
    assert [(name, p.default) for name, p in ours.items()] == [(name, p.default) for name, p in theirs.items()]


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("flags", [*FLAGS, *OLD_FLAGS], ids=str)
def test_losses_and_their_flags(flags: dict[str, Any]) -> None:
    x, y, classes = numbers(N, C), numbers(N, C, seed=2), torch.tensor([0, 2, 1, 1, 0])
    bits, signs = (y > 0).double(), 2.0 * (y > 0) - 1
    for weight in (None, positive(N, C)):
        assert_alike(F.mse_loss, losses.mse_loss, x, y, weight=weight, **flags)
    assert_alike(F.soft_margin_loss, confident.soft_margin_loss, x, signs, **flags)
    assert_alike(F.cross_entropy, confident.cross_entropy, x, classes, **flags)
    assert_alike(F.multi_margin_loss, losses.multi_margin_loss, x, classes, **flags)
    assert_alike(F.multilabel_margin_loss, losses.multilabel_margin_loss, x, classes.view(N, 1).repeat(1, C), **flags)
    for weight in (None, positive(C)):
        assert_alike(F.multi_margin_loss, losses.multi_margin_loss, x, classes, weight=weight, p=2, margin=0.7, **flags)
        named = {"weight": weight} | flags
        assert_alike(F.multilabel_soft_margin_loss, confident.multilabel_soft_margin_loss, x, bits, **named)
        for pos_weight in (None, 2 * positive(C)):
            ours = confident.binary_cross_entropy_with_logits
            assert_alike(F.binary_cross_entropy_with_logits, ours, x, bits, pos_weight=pos_weight, **named)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_weights_edges_and_single_samples(flags: dict[str, Any]) -> None:
    x, y = numbers(N, C), numbers(N, C, seed=2)
    for delta, weight in product((1.0, 0.3), (None, positive(N, C))):
        assert_alike(F.huber_loss, losses.huber_loss, x, y, delta=delta, weight=weight, **flags)
    for function in (losses.mse_loss, losses.huber_loss):
        with pytest.raises(ValueError, match="Weights and input must have the same size"):
            function(x, y, weight=positive(C), **flags)
    assert_alike(F.multi_margin_loss, losses.multi_margin_loss, x[0], torch.tensor(1), **flags)
    few = torch.tensor([2, -1, 0])  # what follows the first -1 is no label
    assert_alike(F.multilabel_margin_loss, losses.multilabel_margin_loss, x[0], few, **flags)
    assert_alike(F.multilabel_margin_loss, losses.multilabel_margin_loss, x, few.expand(N, C), **flags)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [True, False])
def test_cross_entropies(flags: dict[str, Any], smoothing: float, weighted: bool) -> None:
    """Of classes, some of which are left out, of probabilities, along further axes and of one sample."""
    named = {"label_smoothing": smoothing, "weight": positive(C) if weighted else None} | flags
    classes = torch.tensor([0, -100, 1, 1, 2])
    for x, y in (
        (numbers(N, C), classes),
        (numbers(N, C), numbers(N, C, seed=3).softmax(1)),
        (numbers(N, C, 2), torch.stack([classes, classes.flip(0)], 1)),
        (numbers(N, C, 2), numbers(N, C, 2, seed=3).softmax(1)),
        (numbers(C), torch.tensor(2)),
    ):
        assert_alike(F.cross_entropy, confident.cross_entropy, x, y, **named)
    assert_alike(F.cross_entropy, confident.cross_entropy, numbers(N, C), classes.clamp(min=0), ignore_index=1, **named)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_ctc(flags: dict[str, Any], zero_infinity: bool) -> None:
    """Sequences of several lengths, side by side or one after the other; one has no labels, one no room for them."""
    log_p = numbers(6, 4, C)  # torch's gradient is right behind a softmax alone
    theirs, ours = (
        lambda z, *args, f=f, **more: f(z.log_softmax(-1), *args, **more) for f in (F.ctc_loss, losses.ctc_loss)
    )
    targets = torch.tensor([[1, 1, 2], [2, 1, 2], [1, 2, 0], [1, 1, 1]])
    steps, lengths = torch.tensor([6, 5, 4, 3]), torch.tensor([3, 2, 0, 3])
    whole = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])
    for y in (targets, whole):
        assert_alike(theirs, ours, log_p, y, steps, lengths, zero_infinity=zero_infinity, **flags)
    named = {"blank": 2, "zero_infinity": zero_infinity} | flags
    others = targets.where(targets != 2, 0)
    assert_alike(theirs, ours, log_p, others, [6, 5, 4, 3], [3, 2, 1, 3], **named)
    assert_alike(theirs, ours, log_p[:, 0], targets[0], torch.tensor(6), torch.tensor(3), **flags)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms(kept: bool, affine: bool) -> None:
    """By the batch's statistics, which move the kept ones as torch moves them, and by those."""
    weight, bias = (positive(C), numbers(C, seed=4)) if affine else (None, None)
    for training in (True, False) if kept else (True,):
        for shape in ((N, C), (N, C, 2, 2)):
            ours, theirs = (
                [each.double() for each in (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))]
                if kept
                else [None, None]
                for _ in range(2)
            )
            named = {"training": training, "momentum": 0.3, "eps": 1e-3, "weight": weight, "bias": bias}
            found = layers.batch_norm(numbers(*shape), *ours, **named)  # type: ignore[arg-type]
            assert_same(found, F.batch_norm(numbers(*shape), *theirs, **named), 1e-13)  # type: ignore[arg-type]
            if kept:
                assert_same(torch.stack(ours), torch.stack(theirs), 1e-15)  # type: ignore[arg-type]


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norms(affine: bool) -> None:
    for shape in ((C,), (2, C)):
        gain, shift = (positive(*shape), numbers(*shape, seed=4)) if affine else (None, None)
        assert_alike(F.layer_norm, layers.layer_norm, numbers(N, 2, C), shape, gain, shift, 1e-3)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_distances(p: float) -> None:
    x, y = numbers(N, C), numbers(4, C, seed=2)
    if p:
        assert_alike(torch.cdist, layers.cdist, x, y, p=p)
        assert_alike(F.pdist, layers.pdist, x, p=p)
    same = torch.cat([y, y[:1]])
    assert_same(layers.cdist(y, same, p), torch.cdist(y, same, p), 1e-12, scale=1.0)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_embedding_bags(mode: str, padding: int | None) -> None:
    """Bags of one length, and of several, one of them empty and one of nothing but the padding."""
    table = numbers(4, C)
    together = torch.tensor([[0, 1, 3], [0, 0, 0], [3, 3, 1]])
    named: dict[str, Any] = {"mode": mode, "padding_idx": padding}
    bag = lambda weight, index, **more: F.embedding_bag(index, weight, **more)
    own = lambda weight, index, **more: layers.embedding_bag(index, weight, **more)
    assert_alike(bag, own, table, together, **named)
    flat, starts = together.flatten(), torch.tensor([0, 2, 2, 5])
    assert_alike(bag, own, table, flat, offsets=starts, **named)
    closed = torch.cat([starts, torch.tensor([9])])
    assert_alike(bag, own, table, flat, offsets=closed, include_last_offset=True, **named)
    if mode == "sum":
        assert_alike(bag, own, table, together, per_sample_weights=numbers(3, 3, seed=5), **named)
        assert_alike(bag, own, table, flat, offsets=starts, per_sample_weights=numbers(9, seed=5), **named)


def test_activations_and_sums_of_exponentials() -> None:
    x = torch.cat([numbers(N, 4) * 3, torch.tensor([[-40.0, 30.0, 0.0, 3.0]]).double()])
    assert_alike(F.hardsigmoid, layers.hardsigmoid, x)
    assert_alike(F.logsigmoid, confident.logsigmoid, x)
    assert_alike(torch.sinc, layers.sinc, torch.cat([x / 7, torch.tensor([[1e-3, -0.159, 0.16, 0.5]]).double()]))
    for dim in (0, 1, -1):
        assert_alike(F.log_softmax, confident.log_softmax, x, dim)
        assert_alike(torch.log_softmax, confident.builtin_log_softmax, x, dim)
        for keep in (True, False):
            assert_alike(torch.logsumexp, confident.logsumexp, x, dim, keepdim=keep)
    for dim in (0, -1):
        assert_alike(F.glu, layers.glu, x, dim)
    for beta in (1.0, 0.7, 3.0):  # torch's own is linear beyond its threshold, to 2e-9
        assert_alike(F.softplus, confident.softplus, x[:N], beta, 100.0)
    for dim in (-1, 0, 1, 2):
        v = numbers(2, 3, 4)
        g = positive(*(1 if a != dim else n for a, n in enumerate(v.shape))) if dim >= 0 else positive(1)[0]
        assert_alike(torch._weight_norm, layers.weight_norm, v, g, dim)


def test_hardsigmoid_in_place() -> None:
    x = numbers(N)
    expected = F.hardsigmoid(x)
    assert layers.hardsigmoid(x, inplace=True) is x
    assert_same(x, expected, 1e-15)


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("left", [True, False])
def test_solutions(batch: tuple[int, ...], left: bool) -> None:
    """Of matrices and vectors, from both sides, of one system and of several; in both arguments."""
    A = numbers(*batch, 3, 3) + 3 * torch.eye(3, dtype=torch.float64)
    rights = [numbers(*batch, 3, 2) if left else numbers(*batch, 2, 3), numbers(*batch, 3)]
    for B in rights[: 2 if left else 1]:
        assert_alike(torch.linalg.solve, algebra.solve, A, B, left=left)
        assert_alike(lambda b: torch.linalg.solve(A, b, left=left), lambda b: algebra.solve(A, b, left=left), B)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_determinants_and_inverses(size: int) -> None:
    A = numbers(2, size, size)
    for theirs, ours in ((torch.det, algebra.det), (torch.logdet, algebra.logdet)):
        assert_alike(lambda a: theirs(a).nan_to_num(7.0), lambda a: ours(a).nan_to_num(7.0), A)  # noqa: B023
    assert_alike(lambda a: torch.slogdet(a)[1], lambda a: algebra.slogdet(a)[1], A)
    assert torch.equal(torch.slogdet(A).sign, algebra.slogdet(A).sign)
    for upper in (False, True):
        part = torch.triu if upper else torch.tril  # torch's gradient has entries in the half that is not read
        root = A + 2 * torch.eye(size, dtype=torch.float64)
        theirs, ours = (lambda a, f=f: f(part(a), upper) for f in (torch.cholesky_inverse, algebra.cholesky_inverse))  # noqa: B023
        assert_alike(theirs, ours, root)


def test_running_products_and_sums() -> None:
    x = numbers(3, 4)
    for dim in (0, 1, -1):
        assert_alike(torch.cumprod, algebra.cumprod, x, dim)
        assert_alike(torch.logcumsumexp, algebra.logcumsumexp, x, dim)
    assert_alike(torch.logcumsumexp, algebra.logcumsumexp, x[0, 0], 0)
    assert algebra.cumprod(x.float(), 1, dtype=torch.float64).dtype == torch.float64
    assert algebra.cumprod(x[:, :0], 1).shape == (3, 0)
    tau = positive(3)
    assert_alike(torch.linalg.householder_product, algebra.householder_product, numbers(4, 3), tau)
    index = torch.tensor([[0, 1, 1, 0], [2, 2, 0, 1]])
    for reduce in ("sum", "mean", "amax"):
        for own in (True, False):
            named = {"reduce": reduce, "include_self": own}
            assert_alike(torch.scatter_reduce, algebra.scatter_reduce, x, 0, index, numbers(2, 4, seed=3), **named)


def test_ctc_of_one_step() -> None:
    theirs, ours = (
        lambda z, *args, f=f, **more: f(z.log_softmax(-1), *args, **more) for f in (F.ctc_loss, losses.ctc_loss)
    )
    targets, ones = torch.tensor([[1], [2]]), torch.tensor([1, 1])
    assert_alike(theirs, ours, numbers(1, 2, C), targets, ones, torch.tensor([1, 0]), reduction="none")
