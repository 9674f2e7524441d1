"""Gradient rows, one file a kind: what they hold, their products, and what a kernel of them costs."""
