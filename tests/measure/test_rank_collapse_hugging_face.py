"""Rank collapse of Hugging Face's models, with random weights, against what they return when they are asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.measure import rank_collapse

N, T, D, H = 3, 6, 16, 4
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
KINDS = ("bert", "gpt2", "llama", "t5", "vit")


def model_of(kind: str) -> nn.Module:
    """Two layers of width 16 with 4 heads; weights ten times their usual size, so that rows of P are not uniform."""
    hf = pytest.importorskip("transformers")
    usual: dict[str, Any] = {
        "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H, "intermediate_size": 32, "vocab_size": 50,
    }  # fmt: skip
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "bert":
        model = hf.BertModel(hf.BertConfig(**usual, initializer_range=0.5))
    elif kind == "gpt2":
        given = {"n_embd": D, "n_layer": 2, "n_head": H, "vocab_size": 50, "initializer_range": 0.5}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**given, **tokens))
    elif kind == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**usual, num_key_value_heads=2, initializer_range=0.5, **tokens))
    elif kind == "t5":
        given = {"d_model": D, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": H, "vocab_size": 50}
        model = hf.T5ForConditionalGeneration(hf.T5Config(**given, decoder_start_token_id=0))
    else:
        usual.pop("vocab_size")
        model = hf.ViTModel(hf.ViTConfig(**usual, image_size=8, patch_size=4, initializer_range=0.5))
    return model.eval()


def inputs_of(kind: str, left: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(N, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, 50, (N, T), generator=generator)
    found = {"input_ids": ids, "attention_mask": RIGHT.flip(1) if left else RIGHT}
    return found | {"decoder_input_ids": ids[:, :4]} if kind == "t5" else found


def kept_of(inputs: dict[str, Tensor], tokens: int) -> Tensor:
    """Tokens that are no padding, (N, T)."""
    mask = inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.shape[1] == tokens else torch.ones(N, tokens, dtype=torch.bool)


@pytest.mark.parametrize(("kind", "left", "how"), [
    pytest.param(kind, left, how, marks=() if (kind, left, how) in quick else pytest.mark.slow)
    for quick in [{("llama", True, "sdpa"), ("t5", False, "eager")}]
    for kind in KINDS for left in (False, True) for how in ("sdpa", "eager") if not (left and kind in ("t5", "vit"))
])  # fmt: skip
def test_what_is_read_is_what_the_model_returns(kind: str, left: bool, how: str) -> None:
    model, inputs = model_of(kind), inputs_of(kind, left)
    if not hasattr(model, "set_attn_implementation"):
        pytest.skip("this transformers cannot change the way a model attends")
    model.set_attn_implementation("eager")  # type: ignore[operator]
    with torch.no_grad():
        told = model(**inputs, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(how)  # type: ignore[operator]
    with torch.no_grad():
        plain = model(**inputs)[0]
    outputs: list[Tensor] = []
    handle = model.register_forward_hook(lambda *call: outputs.append(call[2][0].clone()))
    found = rank_collapse(model, inputs)
    handle.remove()
    assert all(torch.equal(each, plain) for each in outputs)  # to the bit
    assert len(outputs) == 2
    assert found.unread == {}
    calls, states = told_by(told, kind)
    assert len(found.layers) == len(calls)
    for place, (matrices, hidden) in enumerate(zip(calls, states, strict=True)):
        heads = found.attention[place]
        assert len(heads.heads) == H * len(matrices)
        for part, P in enumerate(matrices):
            queries, keys = kept_of(inputs, P.shape[2]), kept_of(inputs, P.shape[3])
            rows = [P[n].double()[:, queries[n]][..., keys[n]] for n in range(N)]
            here = slice(part * H, part * H + H)
            entropy = torch.stack([torch.special.entr(each).sum(-1).mean(-1) for each in rows]).mean(0)
            torch.testing.assert_close(heads.entropy.value[here], entropy, rtol=1e-4, atol=1e-5)
            first = torch.stack([each[..., 0].mean(-1) for each in rows]).mean(0)
            torch.testing.assert_close(heads.first_token.value[here], first, rtol=1e-4, atol=1e-5)
            s = [torch.linalg.svdvals(each) for each in rows]
            rank = torch.stack([e.square().sum(-1).square() / e.pow(4).sum(-1) for e in s]).mean(0)
            torch.testing.assert_close(heads.effective_rank.value[here], rank, rtol=1e-4, atol=1e-5)
        if hidden is not None:
            kept = kept_of(inputs, hidden.shape[1])
            parts = [hidden[n][kept[n]].double() for n in range(N)]
            sizes = torch.stack([(X - X.mean(0)).norm() for X in parts])
            torch.testing.assert_close(found.frobenius_residual.value[place], sizes.mean(), rtol=1e-5, atol=0)


def told_by(told: Any, kind: str) -> tuple[list[list[Tensor]], list[Tensor | None]]:
    """Of each layer its attention matrices, and its output where the model returns it before its last norm."""
    if kind == "t5":
        calls = [[P] for P in told.encoder_attentions]
        calls += [list(pair) for pair in zip(told.decoder_attentions, told.cross_attentions, strict=True)]
        return calls, [told.encoder_hidden_states[1], None, told.decoder_hidden_states[1], None]
    states = list(told.hidden_states[1:])
    return [[P] for P in told.attentions], [*states[:-1], states[-1] if kind == "bert" else None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_padding_counts_for_nothing(kind: str) -> None:
    """Numbers of a padded sample are those of the sample alone, without its padding."""
    model, inputs = model_of(kind), inputs_of(kind)
    padded = rank_collapse(model, {name: value[1:2] for name, value in inputs.items()})
    alone = rank_collapse(model, {name: value[1:2, :4] for name, value in inputs.items()})
    for name in ("residual", "cosine", "stable_rank", "effective_rank"):
        torch.testing.assert_close(getattr(padded, name).value, getattr(alone, name).value, rtol=1e-4, atol=1e-5)
    for one, other in zip(padded.attention, alone.attention, strict=True):
        for name in ("entropy", "relative_entropy", "skew", "score_gradient", "cosine"):
            torch.testing.assert_close(getattr(one, name).value, getattr(other, name).value, rtol=1e-4, atol=1e-5)
