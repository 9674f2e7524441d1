"""One file per kind of layer. Importing this package registers every rule."""

from pullback.kernels.rules import conv, elementwise, embedding, linear, norm
from pullback.kernels.rules.elementwise import COPIES
from pullback.kernels.rules.registry import LOOKUPS, REISSUED, RULES, USER_RULES, Call, Rule, Source, add_rule

__all__ = [
    "COPIES",
    "LOOKUPS",
    "REISSUED",
    "RULES",
    "USER_RULES",
    "Call",
    "Rule",
    "Source",
    "add_rule",
    "conv",
    "elementwise",
    "embedding",
    "linear",
    "norm",
]
