"""The few numbers of a run that commands print, and how."""

from __future__ import annotations

from typing import Any

HEADLINE = {
    "loss.loss": "loss",
    "gradients.mean_gradient_norm": "mean gradient norm",
    "kernel.M1": "M1 (mean)",
    "kernel.M2": "M2 (mean)",
    "kernel.conditioning": "conditioning M2/M1^2",
    "kernel.effective_rank": "effective rank",
    "alignment.mean_cosine": "mean cosine",
    "alignment.conflict_fraction": "share of conflicting pairs",
    "flow.verdict": "gradient flow",
    "sharpness.hessian": "sharpness (Hessian)",
    "sharpness.gauss_newton": "sharpness (Gauss-Newton)",
    "sharpness.limit": "limit of the sharpness",
}


def formatted(value: Any) -> str:
    """A number to four digits, anything else as it is, nothing as a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
