"""Losses of whole sequences: the loss of a sample is the loss of the batch that holds only it, padding left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers")

import pullback as pb
from pullback.functional import take
from tests.compare import assert_different, assert_same
from tests.stacks.models import IGNORED, VOCABULARY, stack


class ClassesSecond(nn.Module):
    """Logits as ``nn.CrossEntropyLoss`` wants them, (N, C, T)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits.transpose(1, 2)


def by_definition(model: nn.Module, loss_of: Callable[[int], Tensor], n: int) -> Tensor:
    """K from the losses of batches of one, each a scalar made without this package."""
    rows = []
    for i in range(n):
        gradients = torch.autograd.grad(loss_of(i), list(model.parameters()), allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    g = torch.stack(rows)
    return g @ g.T


@pytest.mark.parametrize("name", ["gpt2-sdpa", "llama-eager", "bert_tokens-sdpa"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_run_over_the_samples_own_tokens(name: str, reduction: str) -> None:
    """The mean divides by the tokens of that sample that are not ignored, not by those of the batch."""
    inner, _, x, y = stack(name).build(5)
    model, loss_fn = ClassesSecond(inner).eval(), nn.CrossEntropyLoss(reduction=reduction)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, by_definition(model, lambda i: loss_fn(model(**take(x, [i])), y[[i]]), 5))
    with torch.no_grad():
        assert_same(kernel.losses, torch.stack([loss_fn(model(**take(x, [i])), y[[i]]) for i in range(5)]))


def test_another_ignored_index() -> None:
    inner, _, x, y = stack("bert_tokens-eager").build(5)
    model, loss_fn = ClassesSecond(inner).eval(), nn.CrossEntropyLoss(ignore_index=7)
    with pytest.raises(pb.InputError, match="labels from 0 to 2, got -100 for sample 1"):
        pb.backward_kernel(model, loss_fn, x, y)
    moved = y.masked_fill(y == IGNORED, 7)
    expected = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y).total
    assert torch.equal(pb.backward_kernel(model, loss_fn, x, moved).total, expected)


def test_a_sequence_without_a_label() -> None:
    """Nothing to average is no loss; nothing to sum is a zero."""
    inner, _, x, y = stack("llama-sdpa").build(4)
    model = ClassesSecond(inner).eval()
    y[2] = IGNORED
    with pytest.raises(pb.InputError, match="a finite loss for every sample, got nan for sample 2"):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y)
    kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(reduction="sum"), x, y)
    assert not kernel.total[2].any()
    assert kernel.total[0, 0] > 0


def shifted_loss(outputs: Any, y: Tensor) -> Tensor:
    """Next-token loss as language models define it: position t predicts the label of position t + 1."""
    each = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), y[:, 1:], ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (y[:, 1:] != IGNORED).sum(1)


@pytest.mark.parametrize("name", ["gpt2-eager", "llama-sdpa"])
def test_the_models_own_loss(name: str) -> None:
    """A callable on the model's output object agrees with the loss the model computes itself for one sample."""
    model, _, x, _ = stack(name).build(5)
    y = x["input_ids"].masked_fill(x["attention_mask"] == 0, IGNORED)
    kernel = pb.backward_kernel(model, shifted_loss, x, y)
    own = by_definition(model, lambda i: model(**take(x, [i]), labels=y[[i]]).loss, 5)
    assert_same(kernel.total, own, 1e-6)  # transformers computes its own loss in float32, eps 1.2e-7


@pytest.mark.parametrize("name", ["llama-eager", "bert_tokens-sdpa", "gpt2-sdpa"])
def test_padding_changes_nothing(name: str) -> None:
    """Masked and ignored positions: sample by sample, the kernel of the sequences at their own lengths."""
    model, loss_fn, x, y = stack(name).build(6)
    lengths = x["attention_mask"].sum(1).tolist()
    padded = pb.backward_kernel(model, loss_fn, x, y).total
    assert len(set(lengths)) == 3
    for length in set(lengths):
        same = [i for i, other in enumerate(lengths) if other == length]
        cut = {key: value[same, :length] for key, value in x.items()}
        own = pb.backward_kernel(model, loss_fn, cut, y[same, :length]).total
        assert_same(own, padded[same][:, same], scale=float(padded.abs().max()))


def test_the_mask_matters() -> None:
    """The comparison above can fail: without its mask the padding takes part."""
    model, loss_fn, x, y = stack("bert_tokens-eager").build(6)
    masked = pb.backward_kernel(model, loss_fn, x, y).total
    assert_different(pb.backward_kernel(model, loss_fn, {"input_ids": x["input_ids"]}, y).total, masked, 1e-4)


def test_outputs_of_the_model_stay_what_they_are() -> None:
    """A model that returns an object, here with the keys and values it would cache, has it in ``kernel.outputs``."""
    model, loss_fn, x, y = stack("llama-eager").build(3)
    outputs = pb.backward_kernel(model, loss_fn, x, y).outputs
    assert outputs.logits.shape == (3, 6, VOCABULARY)
    assert not outputs.logits.requires_grad
    assert type(outputs) is type(model(**x))
