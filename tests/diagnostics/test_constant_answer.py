"""The level of one answer for all, against a search for that answer; and which loss is told to be which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.diagnostics.constant_answer import constant_answer
from pullback.functional import per_sample_loss

Case = tuple[Callable[..., Any], Tensor, Tensor, str]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int = 5, seed: int = 1) -> Tensor:
    """Unequal frequencies."""
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return (classes * drawn.square()).long()


IGNORED = labels(12, 6).masked_fill(labels(12, 6, seed=2) == 0, -100)
IGNORED[:, 0] = 1  # each sample keeps a label
ODD_IGNORED = labels(12, 6).masked_fill(labels(12, 6, seed=2) == 2, 3)
ODD_IGNORED[:, 0] = 1


def by_token(reduction: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        return each.mean(1) if reduction == "mean" else each.sum(1)

    return loss


def by_sample(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


WEIGHT = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)


def next_token(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].movedim(-1, 1), y[:, 1:], reduction="none").mean(1)


CASES: dict[str, Case] = {
    "classes": (nn.CrossEntropyLoss(), draw(40, 5), labels(40), "cross-entropy"),
    "a function": (by_sample, draw(9, 3), labels(9, classes=3), "cross-entropy"),
    "a class that is not there": (nn.CrossEntropyLoss(), draw(40, 9), labels(40), "cross-entropy"),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), draw(40, 5), labels(40), "cross-entropy"),
    "pixels": (nn.CrossEntropyLoss(), draw(6, 5, 3, 4), labels(6, 3, 4), "cross-entropy"),
    "pixels, summed": (nn.CrossEntropyLoss(reduction="sum"), draw(6, 5, 3, 4), labels(6, 3, 4), "cross-entropy"),
    "positions that do not count": (nn.CrossEntropyLoss(), draw(12, 5, 6), IGNORED, "cross-entropy"),
    "summed positions that count": (nn.CrossEntropyLoss(reduction="sum"), draw(12, 5, 6), IGNORED, "cross-entropy"),
    "another number for none": (nn.CrossEntropyLoss(ignore_index=3), draw(12, 5, 6), ODD_IGNORED, "cross-entropy"),
    "tokens, classes last": (by_token("mean"), draw(8, 6, 5), labels(8, 6), "cross-entropy"),
    "tokens, classes last, summed": (by_token("sum"), draw(8, 6, 5), labels(8, 6), "cross-entropy"),
    "as many tokens as classes": (by_token("mean"), draw(8, 5, 5), labels(8, 5), "cross-entropy"),
    "next tokens": (next_token, draw(8, 6, 5), labels(8, 6), "cross-entropy"),
    "squares": (nn.MSELoss(), draw(30), 3 + 7 * draw(30, seed=3), "squared"),
    "squares of several": (nn.MSELoss(), draw(30, 4), draw(30, 4, seed=3) * torch.arange(4.0), "squared"),
    "summed squares": (nn.MSELoss(reduction="sum"), draw(30, 2, 2), draw(30, 2, 2, seed=3), "squared"),
    "half squares": (lambda o, y: 0.5 * (o - y).square().mean(1), draw(30, 2), draw(30, 2, seed=3), "squared"),
    "a column and a row": (lambda o, y: (o[:, 0] - y).square(), draw(30, 1), draw(30, seed=3), "squared"),
    "a row and a column": (lambda o, y: (o - y[:, 0]).abs(), draw(30), draw(30, 1, seed=3), "absolute"),
    "distances": (nn.L1Loss(), draw(31, 3), 2 * draw(31, 3, seed=3).exp(), "absolute"),
    "distances, summed": (nn.L1Loss(reduction="sum"), draw(31, 2), 2 * draw(31, 2, seed=3).exp(), "absolute"),
    "Huber's": (nn.HuberLoss(), draw(30, 2), 4 * draw(30, 2, seed=3).exp(), "huber"),
    "smooth distances": (nn.SmoothL1Loss(), draw(30), 9 * draw(30, seed=3) ** 3, "huber"),
    "binary": (nn.BCEWithLogitsLoss(), draw(30, 1), labels(30, 1, classes=2).double(), "binary"),
    "several labels": (nn.BCEWithLogitsLoss(reduction="sum"), draw(30, 3), labels(30, 3, classes=2).double(), "binary"),
    "binary of probabilities": (nn.BCELoss(), draw(30, 1).sigmoid(), labels(30, 1, classes=2).double(), "binary-nll"),
    "logarithms": (nn.NLLLoss(), draw(30, 4).log_softmax(1), labels(30, classes=4), "cross-entropy"),  # both, then
    "no logarithms": (nn.NLLLoss(), draw(30, 4), labels(30, classes=4), "nll"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_other_constant_is_better(name: str) -> None:
    loss_fn, outputs, targets, form = CASES[name]
    options: dict[str, Any] = {
        theirs: getattr(loss_fn, own)
        for own, theirs in {"label_smoothing": "smoothing", "ignore_index": "ignored"}.items()
        if hasattr(loss_fn, own)
    }
    found = constant_answer(outputs, targets, per_sample_loss(loss_fn, outputs, targets), **options)
    assert found is not None
    assert found.form == form
    if form != "nll":  # of what are no logarithms there is no best
        best = searched(
            loss_fn,
            outputs,
            targets,
            SPACES.get(name, lambda free: free),
            last=outputs.shape[1:] != targets.shape[1:] and targets.shape == outputs.shape[:-1],
        )
        assert found.loss == pytest.approx(best, rel=1e-2, abs=1e-4)  # a class that is not there is never reached
        assert found.loss <= best + 1e-6


SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "binary of probabilities": torch.sigmoid,
    "logarithms": lambda free: free.log_softmax(1),
}


def searched(loss_fn: Any, outputs: Tensor, targets: Tensor, to_space: Callable[[Tensor], Tensor], last: bool) -> float:
    """The least mean loss of one answer for all samples: of each output, or of each class at every position."""
    classes = not targets.is_floating_point()
    axis = -1 if last else 1
    shape = [
        1 if classes and place not in (axis, axis % outputs.dim()) else size for place, size in enumerate(outputs.shape)
    ]
    shape[0] = 1
    free = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=300, line_search_fn="strong_wolfe")

    def mean_loss() -> Tensor:
        return per_sample_loss(loss_fn, to_space(free).expand(outputs.shape), targets).mean()

    def closure() -> Tensor:
        search.zero_grad()
        loss = mean_loss()
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return float(mean_loss().detach())


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "targets"),
    [
        (nn.HuberLoss(delta=2.0), draw(30, 2), 5 * draw(30, 2, seed=3)),
        (lambda o, y: 2 * (o[:, 0] - y).abs(), draw(30, 1), draw(30, seed=3)),
        (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), draw(30, 3), labels(30, classes=3)),
        (lambda o, y: F.cross_entropy(o, y, reduction="none") - 1, draw(30, 3), labels(30, classes=3)),
        (nn.MultiMarginLoss(), draw(30, 3), labels(30, classes=3)),
    ],
)  # fmt: skip
def test_other_losses_have_none(loss_fn: Any, outputs: Tensor, targets: Tensor) -> None:
    assert constant_answer(outputs, targets, per_sample_loss(loss_fn, outputs, targets)) is None


def test_what_is_no_such_thing_has_none() -> None:
    losses = torch.ones(3)
    assert constant_answer({"logits": losses}, losses, losses) is None
    assert constant_answer(losses, [1, 2, 3], losses) is None
    assert constant_answer(torch.ones(3, 2), torch.ones(3), losses) is None
    assert constant_answer(torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.long), losses * torch.nan) is None


def test_what_the_outputs_are() -> None:
    y = labels(30, classes=4)
    for outputs, kind in (
        (draw(30, 4), "scores"),
        (draw(30, 4).softmax(1), "probabilities"),
        (draw(30, 4).sigmoid(), "scores"),
        (draw(30, 4).log_softmax(1), "log-probabilities"),
        (draw(30, 4).half().softmax(1), "probabilities"),
    ):
        found = constant_answer(outputs, y, F.cross_entropy(outputs.double(), y, reduction="none"))
        assert found is not None
        assert found.outputs == kind
    targets = labels(30, 1, classes=2).double()
    for outputs, kind in ((draw(30, 1), "scores"), (draw(30, 1).sigmoid(), "probabilities")):
        found = constant_answer(outputs, targets, per_sample_loss(nn.BCEWithLogitsLoss(), outputs, targets))
        assert found is not None
        assert found.outputs == kind
