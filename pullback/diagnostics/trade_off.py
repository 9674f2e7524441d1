"""Alignment against conditioning: what the measured numbers mean for speed and stability, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pullback._results import Shown
from pullback._text import percent
from pullback.diagnostics.alignment import alignment
from pullback.diagnostics.moments import moments
from pullback.kernels import Kernel

REINFORCING = 0.3  # mean cosine above which samples are said to reinforce each other
WELL, ILL = (
    0.5,
    0.75,
)  # log(spread) / log(N): 0 for orthogonal gradients of equal length, 1 for a single direction


@dataclass(frozen=True)
class TradeOff(Shown):
    """The two sides of gradient alignment, with the numbers behind them.

    Attributes:
        label: for example "aligned, ill-conditioned".
        mean_cosine: between the gradients of different samples.
        conflict_fraction: share of pairs that pull against each other.
        spread: N tr(K^2) / tr(K)^2, 1 to N.
        text: pros and cons in a few sentences.
    """

    label: str
    mean_cosine: float
    conflict_fraction: float
    spread: float
    text: str


def trade_off(kernel: Kernel | Tensor) -> TradeOff:
    """Say what alignment buys and costs at the measured conditioning.

    Example:
        >>> import torch
        >>> trade_off(torch.ones(3, 3)).label
        'aligned, ill-conditioned'
    """
    agreement = alignment(kernel)
    spread = moments(kernel, num_params=1).spread
    n = len(agreement.cosine)
    place = math.log(max(spread, 1.0)) / math.log(n) if math.isfinite(spread) else 0.0
    condition = "well conditioned" if place < WELL else "ill-conditioned" if place > ILL else "moderately conditioned"
    if agreement.mean_cosine > REINFORCING:
        label = f"aligned, {condition}"
        pull = "Steps on one sample help the others, which speeds up the first phase of training"
    elif agreement.mean_cosine < -REINFORCING:
        label = f"conflicting, {condition}"
        pull = "Steps on one sample undo those on others, so progress on the mean loss is slow or oscillates"
    else:
        label = f"{condition}, no reinforcement"
        pull = "Samples neither help nor hinder each other much, so each has to be learnt on its own"
    cost = {
        "well conditioned": "No direction dominates: a large learning rate is safe, and the pace is even",
        "moderately conditioned": "A few directions dominate: they set the largest stable learning rate",
        "ill-conditioned": "Almost one direction dominates: it sets the largest stable learning rate, and all "
        "others learn slowly at it; adaptive or second-order methods even this out",
    }[condition]
    numbers = (
        f"mean cosine {agreement.mean_cosine:.3g}, {percent(float(agreement.conflict_fraction))} of pairs in conflict, "
        f"spread {spread:.3g} of at most {n}"
    )
    return TradeOff(label, agreement.mean_cosine, agreement.conflict_fraction, spread, f"{pull}. {cost}. ({numbers}.)")
