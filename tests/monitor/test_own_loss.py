"""The loss a model computes for itself, on models of a line: its form, sample by sample, and what passes for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.monitor.own_loss import (
    FORMS,
    OwnLoss,
    _gives,
    _reduction,
    binary,
    classes,
    next_token,
    squared,
    stated_loss,
)
from tests.compare import assert_same

N, T, C = 6, 5, 3


class Own(nn.Module):
    """Returns its scores, and a loss of them where it is given labels."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], factor: float = 1.0) -> None:
        super().__init__()
        self.loss, self.factor = loss, factor

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": self.factor * self.loss(x, labels), "logits": x} if labels is not None else {"logits": x}


def tokens(x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(x.flatten(0, -2), labels.flatten())


def shifted(x: Tensor, labels: Tensor) -> Tensor:
    return tokens(x[:, :-1], labels[:, 1:])


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


LABELS = (torch.arange(N * T) % C).view(N, T)
LABELS[1] = LABELS[2, 3:] = LABELS[0, 0] = -100  # a sample without labels, and some with fewer
EVERY: list[tuple[Any, Tensor, Tensor, Any]] = [
    (tokens, scores(N, C), torch.arange(N) % C, classes),
    (tokens, scores(N, T, C), LABELS, classes),
    (shifted, scores(N, T, C), LABELS, next_token),
    (lambda z, t: F.mse_loss(z, t), scores(N, C), scores(N, C) + 1, squared),
    (lambda z, t: F.mse_loss(z.squeeze(), t.squeeze()), scores(N, 1), torch.arange(N) / 3, squared),
    (F.binary_cross_entropy_with_logits, scores(N, C), (scores(N, C) > 0.3).float(), binary),
]


@pytest.mark.parametrize(("loss", "x", "labels", "form"), EVERY)
def test_the_form_is_found_and_is_the_loss_of_each_sample(loss: Any, x: Tensor, labels: Tensor, form: Any) -> None:
    found = OwnLoss()
    with pytest.raises(pb.UnsupportedError, match="got no sample with labels so far. Pass loss_fn="):
        found({"logits": x}, labels)
    model = Own(loss)
    found.settle(model, {"x": x, "labels": labels}, labels)
    assert found.form is form
    each = found({"logits": x}, labels)
    assert each.shape == (N,)
    for i in range(N):
        own = loss(x[[i]], labels[[i]])
        assert_same(each[i], torch.zeros(()) if own.isnan() else own, 1e-6, scale=1.0)
    assert found.taken() > 0
    assert found.taken() == 0


@pytest.mark.parametrize(("loss", "x", "labels", "form"), EVERY[:4])
@pytest.mark.parametrize(("factor", "taken"), [(1 + 3e-6, True), (1 + 1e-4, False), (2.0, False)])
def test_a_loss_that_is_off_is_not_taken(
    loss: Any, x: Tensor, labels: Tensor, form: Any, factor: float, taken: bool
) -> None:
    found = OwnLoss()
    found.settle(Own(loss, factor), {"x": x, "labels": labels}, labels)
    assert (found.form is form) == taken
    if not taken:
        assert found.form is None
        with pytest.raises(pb.UnsupportedError, match=r"got a loss of [\d.]+, which follows in another way"):
            found({"logits": x}, labels)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_how_near_a_form_has_to_come(size: float) -> None:
    """Relative to losses above 1, absolutely below: 1e-5, or four units of rounding where those are more."""
    logits = torch.full((1, 2), size**0.5)
    own, allowed = size, 1e-5 * max(1.0, size)
    for sign in (-1, 1):
        assert _gives(squared, logits, torch.zeros(1, 2), own + sign * 0.9 * allowed)
        assert not _gives(squared, logits, torch.zeros(1, 2), own + sign * 1.1 * allowed)
    half = logits.half()
    assert _gives(squared, half, torch.zeros(1, 2).half(), size * (1 + 3.5e-3) if size > 1 else size + 3.5e-3)
    assert not _gives(squared, None, torch.zeros(1, 2), own)
    assert not _gives(classes, logits, torch.zeros(1, 2), own)  # labels that are no classes


def test_shapes_no_form_is_for() -> None:
    with pytest.raises(ValueError, match="^$"):
        next_token(scores(N, C), torch.zeros(N).long())
    for labels in (torch.zeros(N, 2).long(), torch.zeros(N)):
        with pytest.raises(ValueError, match="^$"):
            classes(scores(N, C), labels)
    for form in (squared, binary):
        for labels in (torch.zeros(N, C).long(), torch.zeros(N, 2)):
            with pytest.raises(ValueError, match="^$"):
                form(scores(N, C), labels)
    assert list(FORMS) == [next_token, classes, squared, binary]


@pytest.mark.parametrize("form", [classes, next_token])
def test_how_a_batch_s_loss_is_made_of_its_samples(form: Any) -> None:
    """The mean, the sum, or the mean over all labels; nothing else."""
    x = scores(N, T, C)
    each = form(x, LABELS)
    shown = LABELS[:, 1:] if form is next_token else LABELS
    weights = (shown != -100).sum(1).float()
    made = {"mean": each.mean(), "sum": each.sum(), "weighted mean": each @ weights / weights.sum()}
    for name, value in made.items():
        assert _reduction(form, x, LABELS, float(value)) == name
        assert _reduction(form, x, LABELS, float(value) + 3e-4) is None
    assert_same(made["weighted mean"], (tokens if form is classes else shifted)(x, LABELS), 1e-6)


def test_which_number_is_the_loss() -> None:
    a, b = torch.tensor(1.0), torch.ones(3)
    assert stated_loss(b) is b
    assert stated_loss({"loss": a, "logits": b}) is a
    assert stated_loss({"logits": b}) is None
    assert stated_loss((a, b)) is a
    assert stated_loss((b, b)) is None
    assert stated_loss((a, a)) is None
