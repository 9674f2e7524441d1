"""Kernels of models of the transformers package, and of low-rank adapters on one, against the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import pullback as pb
from pullback import reference
from pullback.functional import take
from tests.compare import assert_same
from tests.stacks.models import STACKS, Stack, stack
from tests.stacks.plain import unchanged
from tests.thinned import thinned

every_stack = pytest.mark.parametrize("each", STACKS, ids=lambda each: each.name)

# What still goes through gradients of batches of one, and the call that no rule reads.
FALLBACK: dict[str, set[str]] = {}


def assert_exact(made: tuple[Any, ...], n: int) -> pb.Kernel:
    """Kernel, its blocks by layer and parameter, and a cross-kernel against gradients of batches of one."""
    model, loss_fn, x, y = made
    gradients = {k: g.flatten(1) for k, g in reference.per_sample_gradients(model, loss_fn, x, y).items()}
    blocks = {name: g @ g.T for name, g in gradients.items()}
    total = torch.stack(list(blocks.values())).sum(0)
    size = float(total.abs().max())
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, total)
    assert list(kernel.parameters) == list(blocks)
    for name, block in blocks.items():
        assert_same(kernel.parameters[name], block, scale=size)
    assert_same(torch.stack(list(kernel.layers.values())).sum(0), kernel.total, 1e-12)
    cut, rest = slice(0, n // 2), slice(n // 2, n)
    cross = pb.backward_kernel(model, loss_fn, take(x, cut), take(y, cut), x2=take(x, rest), y2=take(y, rest))
    assert_same(cross.total, total[cut, rest], scale=size)
    assert_same(torch.stack(list(cross.layers.values())).sum(0), cross.total, 1e-12, scale=size)
    return kernel


@pytest.mark.parametrize("each", thinned(STACKS))
def test_equals_the_loop(each: Stack) -> None:
    made = each.build(5)
    with unchanged(made[0]):
        kernel = assert_exact(made, 5)
    reached = {part for layer in kernel.plan.layers for part in layer.rule.split(" + ")}
    assert each.rules <= reached


@pytest.mark.parametrize("each", thinned(STACKS))
def test_what_reaches_the_fallback(each: Stack) -> None:
    """Every parameter is taken by a rule, up to the listed ones."""
    plan = pb.backward_kernel(*each.build(3)).plan
    fallen = {name for layer in plan.layers if "fallback" in layer.rule for name in layer.parameters}
    assert fallen == FALLBACK.get(each.name.partition("-")[0], set())


@pytest.mark.slow
def test_attention_implementations_agree() -> None:
    """The fused attention and the written one are the same model."""
    for name in ("gpt2", "llama", "bert_tokens", "vit"):
        eager, fused = (pb.backward_kernel(*stack(f"{name}-{kind}").build(4)) for kind in ("eager", "sdpa"))
        assert_same(fused.total, eager.total, 1e-6)  # the written one takes its softmax in float32, eps 1.2e-7


def test_tied_embedding_and_head_appear_once() -> None:
    """GPT-2's head is its table: one block, with the terms between both uses."""
    model, loss_fn, x, y = stack("gpt2-eager").build(4)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert "transformer.wte.weight" in kernel.parameters
    assert "lm_head.weight" not in kernel.parameters
    table = reference.per_sample_gradients(model, loss_fn, x, y)["transformer.wte.weight"].flatten(1)
    assert_same(kernel.parameters["transformer.wte.weight"], table @ table.T)


def test_adapters_leave_the_frozen_weights_out() -> None:
    """Both forms of the same adapter train the same numbers and have the same kernel."""
    apart, merged = (pb.backward_kernel(*stack(name).build(4)) for name in ("adapters", "merged_adapters"))
    assert all(name.endswith((".up", ".down")) for name in apart.parameters)
    assert "model.embed_tokens.weight" in apart.plan.frozen
    assert_same(merged.total, apart.total)
    for name in apart.parameters:
        assert_same(merged.parameters[name], apart.parameters[name], scale=float(apart.total.abs().max()))


def test_a_tokenizer_like_mapping() -> None:
    """Inputs in a mapping that is no dict, as tokenizers return them."""
    from transformers import BatchEncoding

    model, loss_fn, x, y = stack("bert_sequences-sdpa").build(4)
    expected = pb.backward_kernel(model, loss_fn, x, y)
    assert torch.equal(pb.backward_kernel(model, loss_fn, BatchEncoding(x), y).total, expected.total)
