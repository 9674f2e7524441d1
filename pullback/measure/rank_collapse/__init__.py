"""Whether attention makes tokens one: residuals, cosines and ranks of any transformer, layer by layer, head by head."""

from pullback.measure.rank_collapse.attention_weight_norm import attention_weight_norm
from pullback.measure.rank_collapse.find import NothingToMeasure, may_attend
from pullback.measure.rank_collapse.measured import rank_collapse
from pullback.measure.rank_collapse.result import AttentionHeads, RankCollapse, Tokens
from pullback.measure.rank_collapse.spec import AttentionSpec

__all__ = [
    "AttentionHeads",
    "AttentionSpec",
    "NothingToMeasure",
    "RankCollapse",
    "Tokens",
    "attention_weight_norm",
    "may_attend",
    "rank_collapse",
]
