"""Questions that take trainings or other machines: each a script of its own, with its own results."""
