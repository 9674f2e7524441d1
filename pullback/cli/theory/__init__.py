"""``pullback theory``: the commands and what they draw."""
