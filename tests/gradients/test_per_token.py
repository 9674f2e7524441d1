"""``backward_kernel(per="token")`` against a loop over positions, each a sample of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import take
from tests.compare import assert_same

N, T, V = 4, 5, 7
IGNORED = -100

OneLoss = Callable[[Tensor, Tensor], Tensor]  # scores (T, V) and labels (T,) of one sample to losses (T,)


class Language(nn.Module):
    """Attention over earlier tokens, so that a position's loss depends on several of them; head tied to the table."""

    def __init__(self, *, as_object: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, 6)
        self.qkv, self.norm, self.head = nn.Linear(6, 18), nn.LayerNorm(6), nn.Linear(6, V, bias=False)
        self.head.weight = self.embed.weight
        self.as_object = as_object

    def forward(self, tokens: Tensor) -> Any:
        h = self.embed(tokens)
        q, k, v = self.qkv(h).chunk(3, -1)
        scores = self.head(self.norm(h + F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        scores = scores.transpose(1, 2)  # (N, V, T)
        return SimpleNamespace(logits=scores) if self.as_object else scores


def language(n: int = N, **options: bool) -> tuple[nn.Module, Tensor, Tensor]:
    model = Language(**options).double()
    y = torch.randint(V, (n, T))
    y[0, 1] = y[-1, 4] = IGNORED
    return model, torch.randint(V, (n, T)), y


def loop(model: nn.Module, loss: OneLoss, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of every position's loss, (N T, P): batches of one, one backward pass a position."""
    parameters = list(model.parameters())
    rows = []
    for i in range(len(x)):
        outputs = model(take(x, [i]))
        scores = getattr(outputs, "logits", outputs)[0].T  # (T, V)
        for value in loss(scores, y[i]):
            found = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def single(loss_fn: nn.Module) -> OneLoss:
    """The definition: a module loss of the batch that holds one position; nothing where the label is ignored."""

    def each(scores: Tensor, labels: Tensor) -> Tensor:
        ignored = getattr(loss_fn, "ignore_index", None)
        losses = [
            0 * s.sum() if int(label) == ignored else loss_fn(s.unsqueeze(0), label.unsqueeze(0)).sum()
            for s, label in zip(scores, labels, strict=True)
        ]
        return torch.stack(losses)

    return each


WEIGHT = torch.rand(V, dtype=torch.float64) + 0.5
LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "none": nn.CrossEntropyLoss(reduction="none"),
    "weighted mean": nn.CrossEntropyLoss(weight=WEIGHT),
    "weighted sum": nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"),
    "weighted none": nn.CrossEntropyLoss(weight=WEIGHT, reduction="none"),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "smoothed weighted sum": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, reduction="sum"),
    "smoothed weighted mean": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2),
    "other index": nn.CrossEntropyLoss(ignore_index=3),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_equals_the_loop_over_positions(name: str) -> None:
    loss_fn = LOSSES[name]
    model, x, y = language()
    y[y == IGNORED] = loss_fn.ignore_index
    g = loop(model, single(loss_fn), x, y)
    kernel = pb.backward_kernel(model, loss_fn, x, y, per="token")
    assert kernel.total.shape == kernel.shape == (N * T, N * T)
    assert_same(kernel.total, g @ g.T)
    ignored = (y == loss_fn.ignore_index).flatten()
    assert 0 < int(ignored.sum()) < N * T
    assert not kernel.total[ignored].any()
    assert kernel.total[~ignored].abs().amax(1).all()


@pytest.mark.parametrize("n", [1, 2])
def test_layers_and_parameters(n: int) -> None:
    """Their blocks have a row a token too, and sum to the whole."""
    model, x, y = language(n)
    kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, per="token")
    g = loop(model, single(nn.CrossEntropyLoss()), x, y)
    pieces = g.split([p.numel() for p in model.parameters()], 1)
    size = float(kernel.total.abs().max())
    assert list(kernel.parameters) == [name for name, _ in model.named_parameters()]
    for found, piece in zip(kernel.parameters.values(), pieces, strict=True):
        assert_same(found, piece @ piece.T, scale=size)
    assert_same(torch.stack(list(kernel.layers.values())).sum(0), kernel.total)
    v = torch.randn(n * T, 2, dtype=torch.float64)
    assert_same(kernel @ v, g @ (g.T @ v))
    assert {layer.rule for layer in kernel.plan.layers} == {"linear", "layer_norm", "embedding + linear"}


def test_between_two_sets() -> None:
    model, x, y = language(5)
    g = loop(model, single(nn.CrossEntropyLoss()), x, y)
    kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(), x[:2], y[:2], x2=x[2:], y2=y[2:], per="token")
    assert_same(kernel.total, g[: 2 * T] @ g[2 * T :].T)


def test_two_sets_of_different_lengths() -> None:
    model, x, y = language()
    with pytest.raises(pb.InputError, match="as many outputs or positions of a sample in `x2` as in `x`"):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, x2=x[:3, :2], y2=y[:3, :2], per="token")


def test_two_parameter_sets() -> None:
    model, x, y = language()
    other, *_ = language()
    kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, model2=other, per="token")
    g, h = (loop(m, single(nn.CrossEntropyLoss()), x, y) for m in (model, other))
    assert_same(kernel.total, g @ h.T)


@pytest.mark.parametrize("as_object", [False, True])
def test_a_callable(as_object: bool) -> None:
    """Any loss that returns (N, T); module losses read ``logits`` of what the model returns, callables all of it."""

    def squared(scores: Tensor, labels: Tensor) -> Tensor:
        return (scores - F.one_hot(labels.clamp(min=0), V)).square().mean(-1)

    def batched(outputs: Any, y: Tensor) -> Tensor:
        return squared((outputs.logits if as_object else outputs).transpose(1, 2), y)

    model, x, y = language(as_object=as_object)
    for loss_fn, one in ((batched, squared), (nn.CrossEntropyLoss(), single(nn.CrossEntropyLoss()))):
        g = loop(model, one, x, y)
        assert_same(pb.backward_kernel(model, loss_fn, x, y, per="token").total, g @ g.T)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_probabilities_as_targets(weight: Tensor | None) -> None:
    """Class axis second in the targets, as in the outputs."""
    model, x, _ = language()
    y = torch.rand(N, V, T, dtype=torch.float64).softmax(1)
    loss_fn = nn.CrossEntropyLoss(weight=weight)
    g = loop(model, lambda scores, labels: torch.stack([loss_fn(*each) for each in zip(scores, labels.T)]), x, y)  # noqa: B905
    assert_same(pb.backward_kernel(model, loss_fn, x, y, per="token").total, g @ g.T)


def test_several_axes_of_positions() -> None:
    """Pixels of an image: positions are flattened, row by row."""
    model = nn.Conv2d(2, 4, 3, padding=1).double()
    x, y = torch.randn(3, 2, 2, 3, dtype=torch.float64), torch.randint(4, (3, 2, 3))
    kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, per="token")
    rows = []
    for i in range(3):
        losses = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1], reduction="none").flatten()
        rows += [
            torch.cat([g.flatten() for g in torch.autograd.grad(z, list(model.parameters()), retain_graph=True)])
            for z in losses
        ]
    g = torch.stack(rows)
    assert_same(kernel.total, g @ g.T)


def test_sums_over_tokens_are_samples() -> None:
    """K_ij = sum_ts K_(it)(js) where a sample's loss is the sum over its tokens; the mean divides by those counted."""
    model, x, y = language()
    tokens = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, per="token").total.view(N, T, N, T).sum((1, 3))
    assert_same(tokens, pb.backward_kernel(model, nn.CrossEntropyLoss(reduction="sum"), x, y).total)
    counted = (y != IGNORED).sum(1).double()
    mean = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y).total
    assert_same(tokens / torch.outer(counted, counted), mean)
    assert_same(mean, reference.total_kernel(model, nn.CrossEntropyLoss(), x, y))


def test_within_a_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("ALLOCATED", "CHECKED"):  # on so small a model they outweigh what passes save
        monkeypatch.setattr(f"pullback.kernels.plan.kernel_plan.{share}", 1.0)
    model, x, y = language(6)  # of more samples the kernel itself is most of the memory, and passes hold it twice
    free = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, per="token")
    limit = int(0.95 * free.plan.peak_bytes)
    tight = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y, per="token", memory_limit=limit)
    assert tight.plan.batch < 6 or len(tight.plan.passes) > 1
    assert_same(tight.total, free.total, 1e-12)


def test_a_token_that_depends_on_other_samples_is_found() -> None:
    model, x, y = language()
    mixing = lambda z, t: F.cross_entropy(z - z.mean(0), t, reduction="none")
    with pytest.raises(pb.UnsupportedError, match="do not depend on the rest of the batch"):
        pb.backward_kernel(model, mixing, x, y, per="token")


def test_refused() -> None:
    model, x, y = language()
    scores = lambda z, t: F.cross_entropy(z, t, reduction="none")
    targets = y.clamp(min=0)
    for loss_fn, message in (
        (
            lambda z, t: scores(z, t).mean(1),
            r"one loss per position, shape \(4, T\), got shape \(4,\). Use per='sample'",
        ),
        (lambda z, t: scores(z, t)[:2], r"one loss per position, shape \(4, T\), got shape \(2, 5\). .*, or keep T"),
        (lambda z, t: [scores(z, t)], r"one loss per position, shape \(4, T\), got list"),
        (lambda z, t: scores(z, t) / 0, "a finite loss for every sample, got inf for sample 0"),
    ):
        with pytest.raises(pb.InputError, match=f"backward_kernel: expected {message}"):
            pb.backward_kernel(model, loss_fn, x, targets, per="token")
    message = r"expected `per='token'` with nn.CrossEntropyLoss or a callable .* \(N, T\), got MSELoss. Pass a callable"
    with pytest.raises(pb.UnsupportedError, match=message):
        pb.backward_kernel(model, nn.MSELoss(), x, model(x).detach(), per="token")
    with pytest.raises(pb.InputError, match="`per` to be one of 'sample', 'token', got 'position'"):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, targets, per="position")
    with pytest.raises(pb.InputError, match=r"labels of shape \(4, 5\) for outputs \(4, 7, 5\), got \(4, 3\)"):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, targets[:, :3], per="token")
    with pytest.raises(pb.InputError, match="labels from 0 to 6, got 7 for sample 0"):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, torch.full_like(y, 7), per="token")
    flat = nn.Linear(4, 3)
    with pytest.raises(pb.InputError, match=r"one loss per position, shape \(5, T\), got shape \(5,\)"):
        pb.backward_kernel(
            flat, nn.CrossEntropyLoss(), torch.randn(5, 4), torch.zeros(5, dtype=torch.long), per="token"
        )
