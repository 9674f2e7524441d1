"""One file per kind of layer. Importing this package registers every rule."""

from pullback.kernels.rules import conv, embedding, linear, norm
from pullback.kernels.rules.registry import RULES, Call, Rule, add_rule

__all__ = ["RULES", "Call", "Rule", "add_rule", "conv", "embedding", "linear", "norm"]
