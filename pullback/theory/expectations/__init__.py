"""Expectations of activations over Gaussians: one and two variables, whole matrices, closed forms."""
