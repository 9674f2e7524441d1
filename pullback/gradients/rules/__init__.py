"""One file per kind of layer. Importing this package registers every rule."""

from pullback.gradients.rules import (
    attention,
    convolution,
    elementwise,
    embedding,
    embedding_bag,
    linear,
    norm,
    prelu,
    recurrent,
    spread,
    transposed_convolution,
)
from pullback.gradients.rules.elementwise import COPIES
from pullback.gradients.rules.registry import LOOKUPS, REISSUED, RULES, Call, Rule, Source, add_rule
from pullback.gradients.rules.spread import written_shape

__all__ = [
    "COPIES",
    "LOOKUPS",
    "REISSUED",
    "RULES",
    "Call",
    "Rule",
    "Source",
    "add_rule",
    "attention",
    "convolution",
    "elementwise",
    "embedding",
    "embedding_bag",
    "linear",
    "norm",
    "prelu",
    "recurrent",
    "spread",
    "transposed_convolution",
    "written_shape",
]
