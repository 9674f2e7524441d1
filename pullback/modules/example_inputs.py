"""Inputs that transformers of torch and models of Hugging Face can be run on, made from what they say of themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.functional.batch import Batch

TRANSFORMERS = (
    nn.Transformer, nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)  # fmt: skip
HUGGING_FACE = ("transformers.modeling_utils", "PreTrainedModel")


def example_of(model: nn.Module) -> Batch | None:
    """An input of a transformer of torch, or of a model of Hugging Face by its configuration; None of others."""
    if isinstance(model, TRANSFORMERS):
        return tuple(sequences(model))
    if not any((kind.__module__, kind.__name__) == HUGGING_FACE for kind in type(model).__mro__):
        return None
    config: Any = model.config
    like = next(model.parameters())
    if getattr(model, "main_input_name", "") == "pixel_values":
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return {"pixel_values": torch.zeros(2, config.num_channels, *sides, dtype=like.dtype, device=like.device)}
    given: Any = model.dummy_inputs
    vocabulary = getattr(config, "vocab_size", None) or 2
    return {name: (value.to(like.device) % vocabulary) for name, value in given.items()}


def sequences(module: nn.Module) -> list[Tensor]:
    """One input of an encoder of torch, two of a decoder: sequences of two zeros."""
    attention = next(each for each in module.modules() if isinstance(each, nn.MultiheadAttention))
    like = next(module.parameters())
    inputs = 1 if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) else 2
    return [torch.zeros(2, 2, attention.embed_dim, dtype=like.dtype, device=like.device) for _ in range(inputs)]
