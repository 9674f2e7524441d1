"""Models as people have them, small and with random weights: from the transformers package, with adapters, and plain.

A stack is a name and a maker of (model, loss, x, y) in float64 and eval mode for a number of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

Made = tuple[nn.Module, Callable[..., Tensor], dict[str, Tensor], Tensor]
VOCABULARY, LENGTH, IGNORED = 17, 6, -100


@dataclass(frozen=True)
class Stack:
    """A model of the transformers package and the rules its parameters are to reach."""

    name: str
    make: Callable[[int, str], Made]
    rules: frozenset[str]
    attention: str = "eager"

    def build(self, n: int, seed: int = 0) -> Made:
        """Model and data of ``n`` samples, drawn from the seed."""
        torch.manual_seed(seed)
        model, loss_fn, x, y = self.make(n, self.attention)
        return model.double().eval(), loss_fn, x, y


def token_loss(outputs: Any, y: Tensor) -> Tensor:
    """Cross-entropy of a sequence, summed over its positions that are not ignored, (N,)."""
    each = F.cross_entropy(outputs.logits.transpose(1, 2), y, ignore_index=IGNORED, reduction="none")
    return each.sum(1)


def tokens(n: int) -> dict[str, Tensor]:
    """Sequences padded on the right to a common length, every third one not at all."""
    ids = torch.randint(1, VOCABULARY, (n, LENGTH))
    mask = torch.ones_like(ids)
    for i in range(n):
        mask[i, LENGTH - i % 3 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def labels(x: dict[str, Tensor], classes: int) -> Tensor:
    """A class for every token, ignored where there is none."""
    y = torch.randint(classes, x["input_ids"].shape)
    return y.masked_fill(x["attention_mask"] == 0, IGNORED)


def gpt2(n: int, attention: str) -> Made:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    x = tokens(n)
    return transformers.GPT2LMHeadModel(config), token_loss, x, labels(x, VOCABULARY)


def llama_config(attention: str) -> Any:
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )


def llama(n: int, attention: str) -> Made:
    x = tokens(n)
    return transformers.LlamaForCausalLM(llama_config(attention)), token_loss, x, labels(x, VOCABULARY)


def bert_config(attention: str) -> Any:
    return transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=12,
        num_labels=3,
        attn_implementation=attention,
    )


def bert_tokens(n: int, attention: str) -> Made:
    x = tokens(n)
    return transformers.BertForTokenClassification(bert_config(attention)), token_loss, x, labels(x, 3)


def bert_sequences(n: int, attention: str) -> Made:
    model = transformers.BertForSequenceClassification(bert_config(attention))
    return model, nn.CrossEntropyLoss(), tokens(n), torch.arange(n) % 3


def albert(n: int, attention: str) -> Made:
    """One layer used twice; the gradient of its keys' bias is zero but for rounding."""
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=12,
        num_labels=3,
        attn_implementation=attention,
    )
    return transformers.AlbertForSequenceClassification(config), nn.CrossEntropyLoss(), tokens(n), torch.arange(n) % 3


def t5(n: int, attention: str) -> Made:
    """Encoder and decoder, with biases of relative positions that all samples and layers share."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        attn_implementation=attention,
    )
    x = tokens(n)
    inputs = {**x, "decoder_input_ids": torch.randint(1, VOCABULARY, (n, LENGTH))}
    return transformers.T5ForConditionalGeneration(config), token_loss, inputs, labels(x, VOCABULARY)


def vit(n: int, attention: str) -> Made:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
        num_labels=3,
        attn_implementation=attention,
    )
    model = transformers.ViTForImageClassification(config)
    nn.init.normal_(model.vit.embeddings.cls_token)
    x = {"pixel_values": torch.randn(n, 3, 8, 8, dtype=torch.float64)}
    return model, nn.CrossEntropyLoss(), x, torch.arange(n) % 3


def resnet(n: int, attention: str) -> Made:
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 2],
        layer_type="basic",
        num_labels=3,
    )
    model = transformers.ResNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = {"pixel_values": torch.randn(n, 3, 32, 32, dtype=torch.float64)}
    return model, nn.CrossEntropyLoss(), x, torch.arange(n) % 3


class Adapter(nn.Module):
    """A frozen linear layer plus a trained product of low rank, applied apart or merged into one matrix."""

    def __init__(self, base: nn.Linear, rank: int, *, merged: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, rank))
        self.scale, self.merged = 0.5, merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.base.weight + self.scale * self.up @ self.down, self.base.bias)
        return self.base(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


def adapted_llama(n: int, attention: str, *, merged: bool) -> Made:
    """Only the adapters of the query and value projections are trained."""
    model, loss_fn, x, y = llama(n, attention)
    model.requires_grad_(False)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            adapter = Adapter(getattr(layer.self_attn, name), 2, merged=merged)
            setattr(layer.self_attn, name, adapter)
    return model, loss_fn, x, y


def adapters(n: int, attention: str) -> Made:
    return adapted_llama(n, attention, merged=False)


def merged_adapters(n: int, attention: str) -> Made:
    return adapted_llama(n, attention, merged=True)


STACKS = (
    *(
        Stack(f"{make.__name__}-{attention}", make, frozenset(rules.split()), attention)
        for make, rules in (
            (gpt2, "embedding linear layer_norm"),
            (llama, "embedding linear"),
            (bert_tokens, "embedding linear layer_norm"),
            (bert_sequences, "embedding linear layer_norm"),
            (albert, "embedding linear layer_norm"),
            (t5, "linear"),
            (vit, "conv2d linear layer_norm"),
        )
        for attention in ("eager", "sdpa")
    ),
    Stack("resnet", resnet, frozenset({"conv2d", "batch_norm", "linear"})),
    Stack("adapters", adapters, frozenset({"linear"})),
    Stack("merged_adapters", merged_adapters, frozenset()),
)


def stack(name: str) -> Stack:
    """The stack of that name."""
    return next(s for s in STACKS if s.name == name)
