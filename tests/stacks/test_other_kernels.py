"""Kernels of tokens and of outputs of the same models, and backward kernels within a memory limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers")

import pullback as pb
from pullback.functional import take
from tests.compare import assert_same
from tests.stacks.models import IGNORED, LENGTH, stack


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    """Gradient of one number in all trained parameters, (P,)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(trained, found, strict=True)])


def losses_of_tokens(outputs: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits.transpose(1, 2), y, ignore_index=IGNORED, reduction="none")


@pytest.mark.parametrize("name", ["gpt2-eager", "llama-sdpa", "bert_tokens-eager", "adapters", "merged_adapters"])
def test_a_row_for_every_token(name: str) -> None:
    model, _, x, y = stack(name).build(3)
    kernel = pb.backward_kernel(model, losses_of_tokens, x, y, per="token")
    rows = [
        gradient(each, model)
        for i in range(3)
        for each in F.cross_entropy(model(**take(x, [i])).logits[0], y[i], ignore_index=IGNORED, reduction="none")
    ]
    g = torch.stack(rows)
    assert kernel.total.shape == (3 * LENGTH, 3 * LENGTH)
    assert_same(kernel.total, g @ g.T)
    assert not kernel.total[(y == IGNORED).flatten()].any()
    assert not [a.parameters for a in kernel.plan.layers if "fallback" in a.rule]


@pytest.mark.parametrize("name", ["bert_sequences-sdpa", "vit-eager", "resnet"])
def test_tangent_kernels(name: str) -> None:
    model, _, x, _ = stack(name).build(3)
    jacobian = torch.stack(
        [torch.stack([gradient(z, model) for z in model(**take(x, [i])).logits[0]]) for i in range(3)]
    )
    for contract, equation in (
        ("trace", "icp,jcp->ij"),
        ("diagonal", "icp,jcp->ijc"),
        ("full", "icp,jep->ijce"),
        ("sum", "icp,jep->ij"),
    ):
        kernel = pb.tangent_kernel(model, x, contract=contract)
        assert_same(kernel.total, torch.einsum(equation, jacobian, jacobian))
        assert not [a.parameters for a in kernel.plan.layers if "fallback" in a.rule]


@pytest.mark.parametrize("name", ["gpt2-sdpa", "llama-eager", "vit-sdpa", "merged_adapters"])
def test_within_a_memory_limit(name: str) -> None:
    """Several passes over batches, also where the model returns the keys and values it would cache."""
    model, loss_fn, x, y = stack(name).build(4)
    whole = pb.backward_kernel(model, loss_fn, x, y)
    limit = int(0.7 * pb.plan_kernel(model, loss_fn, x, y).peak_bytes)
    limited = pb.backward_kernel(model, loss_fn, x, y, memory_limit=limit)
    assert limited.plan.batch < 4
    assert_same(limited.total, whole.total)
    assert limited.outputs.logits.shape == whole.outputs.logits.shape
