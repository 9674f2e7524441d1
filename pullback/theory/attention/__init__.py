"""What attention does to tokens, predicted: paths, bounds on the collapse, scaled skips, tokens as particles."""

from pullback.theory.attention.bounds import CollapseBound, attention_paths, rank_collapse_bound
from pullback.theory.attention.particles import Clustering, cluster_tokens, in_hemisphere, simplex_cosine
from pullback.theory.attention.token_profile import TokenProfile, token_profile

__all__ = [
    "Clustering",
    "CollapseBound",
    "TokenProfile",
    "attention_paths",
    "cluster_tokens",
    "in_hemisphere",
    "rank_collapse_bound",
    "simplex_cosine",
    "token_profile",
]
