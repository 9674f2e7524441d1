"""Gradient rows of single samples, in factored form: how they are captured, checked and multiplied."""
