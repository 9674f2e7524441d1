"""Embedding tables by token join: ``K_ij = sum over tokens v in both samples of <R_iv, R_jv>``.

R_iv is the summed output gradient of sample i at the positions that hold token v. Only tokens that occur are
touched; the table's other rows are zero in every gradient.
"""

from __future__ import annotations

import torch.nn.functional as F

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.tokens import TokenFactor, token_factor
from pullback.gradients.rules.registry import LOOKUPS, Arguments, Call, Rule, add_rule


def _embedding(call: Call) -> TokenFactor:
    arguments = call.arguments
    tokens = call.samples(arguments["input"])
    tokens = tokens.reshape(len(tokens), -1)
    gradient = full_precision(call.gradient)
    gradient = gradient.reshape(*gradient.shape[:2], tokens.shape[1], -1)
    return token_factor(call.names["weight"], arguments["weight"].shape, tokens, gradient, arguments.get("padding_idx"))


def _plain(arguments: Arguments) -> bool:
    """Tables rescaled by frequency or by a maximal norm have no gradient that belongs to one sample."""
    return not arguments.get("scale_grad_by_freq") and arguments.get("max_norm") is None


add_rule(
    F.embedding,
    Rule(
        "embedding",
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        ("weight",),
        "input",
        _embedding,
        _plain,
    ),
)
LOOKUPS[F.embedding] = _plain
