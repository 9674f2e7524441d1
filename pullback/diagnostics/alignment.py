"""Do the gradients of two samples pull the same way? Signs and cosines of the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.diagnostics.drift import centred, cosine
from pullback.diagnostics.moments import square_kernel
from pullback.kernels import Kernel


@dataclass(frozen=True)
class Alignment(Shown):
    """Agreement and conflict between the gradients of N samples; pairs are unordered, i < j.

    Attributes:
        conflict_fraction: share of pairs with K_ij < 0: a step on one sample raises the other's loss.
        agreement_fraction: share of pairs with K_ij > 0. The rest are exactly orthogonal.
        mean_cosine: mean of K_ij / sqrt(K_ii K_jj) over pairs.
        cosine: (N, N); rows and columns of samples with zero gradient are zero.
        worst_pairs: (i, j, cosine) of the most conflicting pairs, most negative first; only negative ones.
        best_pairs: (i, j, cosine) of the pairs that agree most.
    """

    conflict_fraction: float
    agreement_fraction: float
    mean_cosine: float
    cosine: Tensor
    worst_pairs: list[tuple[int, int, float]]
    best_pairs: list[tuple[int, int, float]]


def alignment(kernel: Kernel | Tensor, *, num_pairs: int = 10) -> Alignment:
    """Signs and cosines between per-sample gradients.

    To first order, a step of size lr on sample j changes sample i's loss by -lr K_ij, so the sign says whether
    the samples help or hinder each other.

    Args:
        kernel: K of one set of samples with itself, (N, N).
        num_pairs: how many of the most conflicting and most agreeing pairs to list.

    Raises:
        InputError: not a symmetric kernel, or a single sample.

    Example:
        >>> a = alignment(torch.tensor([[5.0, -5.0], [-5.0, 5.0]]))
        >>> a.conflict_fraction, round(a.mean_cosine, 4), a.worst_pairs[0][:2]
        (1.0, -1.0, (0, 1))
    """
    where = "alignment"
    total = square_kernel(kernel, where)
    check_positive(where, "num_pairs", num_pairs)
    n = len(total)
    if n < 2:
        raise input_error(where, "two samples or more", "1", "Pass a larger batch")
    scale = total.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0)
    cosine = (total * inverse.unsqueeze(1) * inverse.unsqueeze(0)).clamp(-1, 1)
    pairs = n * (n - 1) / 2
    off = cosine.sign()
    signs, agreeing = (
        float(off.sum() - off.diagonal().sum()),
        int((off > 0).sum() - (off.diagonal() > 0).sum()),
    )
    positive = agreeing / 2
    negative = positive - signs / 2
    mean = float((cosine.sum(dtype=torch.float64) - cosine.diagonal().sum(dtype=torch.float64)) / (2 * pairs))
    count = min(num_pairs, int(pairs))
    worst = [pair for pair in _extreme(cosine, count, largest=False) if pair[2] < 0]
    best = _extreme(cosine, count, largest=True)
    return Alignment(negative / pairs, positive / pairs, mean, cosine, worst, best)


def _extreme(cosine: Tensor, count: int, *, largest: bool) -> list[tuple[int, int, float]]:
    """The pairs i < j with the largest or smallest cosine."""
    n = len(cosine)
    fill = -2.0 if largest else 2.0
    masked = cosine.masked_fill(torch.ones_like(cosine, dtype=torch.bool).tril(), fill)
    values, places = masked.flatten().topk(count, largest=largest)
    return [(p // n, p % n, v) for p, v in zip(places.tolist(), values.tolist(), strict=True)]


def label_alignment(kernel: Kernel | Tensor, y: Tensor) -> float:
    """Centred alignment of a kernel with that of the labels, between 0 (no relation) and 1; nan if undefined.

    The labels' kernel is 1 for two samples of one class and 0 for others, or <y_i, y_j> for targets that are numbers.

    Args:
        kernel: of one set of samples with itself, (N, N).
        y: their classes (N,), or targets (N, ...).

    Raises:
        InputError: not a symmetric kernel; another number of targets.

    References: Cristianini et al. (2001); Cortes, Mohri and Rostamizadeh (2012) for the centring.

    Example:
        >>> y = torch.tensor([0, 1, 0, 1])
        >>> label_alignment((y[:, None] == y).double(), y)
        1.0
    """
    where = "label_alignment"
    given = square_kernel(kernel, where)
    total, eps = given.double(), torch.finfo(given.dtype).eps
    if len(y) != len(total):
        raise input_error(where, f"{len(total)} targets", f"{len(y)}", "Pass the targets of the kernel's samples")
    classes = not y.is_floating_point() and y.dim() == 1
    rows = (F.one_hot(y.long() - y.min().long()) if classes else y.reshape(len(y), -1)).to(total)
    return cosine(centred(total, eps), centred(rows @ rows.T, eps))
