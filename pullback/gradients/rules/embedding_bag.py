"""Bags of embeddings: an embedding whose output gradients are shared out to the tokens of a bag.

A token's share of its bag's output is its weight (mode sum), one over the bag's length (mean), or whether it is the
largest, feature by feature (max). The padding token has no share.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.tokens import TokenFactor, token_factor
from pullback.gradients.rules.registry import Arguments, Call, Rule, add_rule


def _embedding_bag(call: Call) -> TokenFactor:
    arguments = call.arguments
    padding = arguments.get("padding_idx")
    tokens = call.samples(arguments["input"])  # (N, b, T), b bags a sample
    padded = torch.zeros_like(tokens, dtype=torch.bool)
    if padding is not None:
        padding %= len(arguments["weight"])
        padded = tokens == padding
    gradient = full_precision(call.gradient).unsqueeze(3)  # (N, C, b, 1, p)
    shared = gradient * _shares(call, tokens, padded).unsqueeze(1)  # (N, C, b, T, p)
    weight = arguments["weight"].shape
    return token_factor(call.names["weight"], weight, tokens.flatten(1), shared.flatten(2, 3), padding)


def _shares(call: Call, tokens: Tensor, padded: Tensor) -> Tensor:
    """What the features of each token add to its bag, (N, b, T, p) or (N, b, T, 1)."""
    mode = call.arguments.get("mode", "mean")
    if mode == "max":
        values = call.arguments["weight"][tokens].masked_fill(padded.unsqueeze(3), float("-inf"))
        largest = values.argmax(2, keepdim=True)  # the first of equals, as torch takes it
        return full_precision(torch.zeros_like(values).scatter_(2, largest, 1))
    if (weights := call.arguments.get("per_sample_weights")) is not None:
        return full_precision(call.samples(weights)).unsqueeze(3)
    number = (~padded).unsqueeze(3).to(full_precision(call.gradient).dtype)
    return number / number.sum(2, keepdim=True).clamp(min=1) if mode == "mean" else number


def _readable(arguments: Arguments) -> bool:
    """One bag a row, fixed weights, and no table that is rescaled by frequency or by a maximal norm."""
    weights = arguments.get("per_sample_weights")
    return (
        arguments["input"].dim() == 2
        and arguments.get("offsets") is None
        and arguments.get("max_norm") is None
        and not arguments.get("scale_grad_by_freq")
        and (weights is None or not weights.requires_grad)
    )


_SIGNATURE = (
    *("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse"),
    *("per_sample_weights", "include_last_offset", "padding_idx"),
)
add_rule(F.embedding_bag, Rule("embedding_bag", _SIGNATURE, ("weight",), "input", _embedding_bag, _readable))
