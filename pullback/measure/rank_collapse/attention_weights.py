"""Rows of weights that sum to one, whatever made them, and which of their entries were hidden by masks."""

from __future__ import annotations

from collections import deque
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from pullback.measure.rank_collapse.fused_attention import Call, Part, Shape, four_axes, limit

ROUNDING = 64  # machine epsilons that a sum of a row may be off: exponentials of scores of that size are
COARSE = 0.05  # or this, in half precision, where it is less
SCORED = ("_softmax", "_safe_softmax", "_log_softmax", "exp", "logsumexp", "amax", "max", "sigmoid", "relu", "clamp",
          "clamp_min", "softplus", "threshold")  # fmt: skip
KEPT = 4  # masks


def sums_to_one(A: Tensor) -> bool:
    """Whether the last axis of (..., T, S) holds weights: none negative, of sum 1 up to rounding.

    Rows in which all is hidden may be zero or nan, as long as there are others; all of them are nan for weights of nan.
    """
    if A.dim() < 2 or A.shape[-1] < 2 or not A.is_floating_point():
        return False
    if not bool(_fine(A[(0,) * (A.dim() - 1)])):  # one row tells of nearly all that are none
        return False
    sums = _sums(A)
    return bool(_fine(A).all() and (((sums - 1).abs() < 0.5).any() or sums.isnan().all()) and not (A.amin() < 0))


def _sums(A: Tensor) -> Tensor:
    return A.sum(-1, dtype=torch.promote_types(A.dtype, torch.float32))


def _fine(A: Tensor) -> Tensor:
    sums = _sums(A)
    off = min(ROUNDING * torch.finfo(A.dtype).eps, COARSE)
    return ((sums - 1).abs() <= off) | (sums == 0) | sums.isnan()


def are_equal(A: Tensor) -> bool:
    """Whether the weights of a row are equal, but for those that are zero: an average, or a choice."""
    most = A.amax(-1, keepdim=True)
    return not bool(((most != A) & (A != 0)).any())


class Masks:
    """Masks that came by of late: entries of scores that are hidden, or of weights that are multiplied with zero."""

    def __init__(self) -> None:
        self._hidden: deque[Tensor] = deque(maxlen=KEPT)

    def look(self, name: str, args: Any) -> None:
        """Before an operation is run, which may be in place."""
        name, x = name.rstrip("_"), args[0] if args else None
        if not isinstance(x, Tensor) or x.dim() < 2 or x.is_nested or not x.numel():
            return
        if name in SCORED and x.is_floating_point():
            if bool((x.amin() <= limit(x.dtype)) | x.amin().isnan()):
                self._add(x <= limit(x.dtype))
        elif name == "masked_fill" and _is_zero(args[2]):
            self._add(args[1])
        elif name == "where" and len(args) == 3:
            for hidden, fill in ((x, args[1]), (~x, args[2])) if x.dtype == torch.bool else ():
                if _is_zero(fill):
                    self._add(hidden)
        elif name == "mul" and isinstance(args[1], Tensor):
            for mask in args[:2]:
                if mask.dim() > 1 and not mask.is_nested and _is_mask(mask):
                    self._add(mask == 0)
        elif name == "tril" and x.is_floating_point():
            diagonal = args[1] if len(args) > 1 else 0
            self._add(torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(diagonal + 1))

    def _add(self, hidden: Tensor) -> None:
        """Of samples and of heads in which all is alike once."""
        if bool(hidden.any()):
            hidden = hidden if hidden.dim() < 4 else four_axes(hidden)
            for axis in range(hidden.dim() - 2):
                first = hidden.narrow(axis, 0, 1)
                hidden = first if bool((hidden == first).all()) else hidden
            self._hidden.append(hidden.clone())

    def shown(self, P: Tensor) -> tuple[Tensor, Tensor]:
        """Of (B, H, T, S): how many entries of a row are not hidden, (B, H, T); the keys that some row shows, (B, S).

        A mask counts where the weights are zero in all that it hides; a row in which all is hidden is uniform.
        """
        hidden = None
        for mask in self._hidden:
            if (fitting := _fitted(mask, P)) is not None:
                hidden = fitting if hidden is None else hidden | fitting
        empty = _sums(P) == 0
        B, H, T, S = P.shape
        if hidden is None:
            counts = torch.full((B, H, T), S, device=P.device)
            return counts.masked_fill_(empty, 0), torch.ones(B, S, dtype=torch.bool, device=P.device)
        shown = ~hidden
        counts = shown.sum(-1).expand(B, H, T)
        return counts.masked_fill(empty, 0), shown.flatten(1, 2).any(1).expand(B, S)


def _fitted(mask: Tensor, P: Tensor) -> Tensor | None:
    """A mask over (B, H, T, S), with 1 for axes along which all is alike; None if it is not that of these weights.

    Its axes may be in another order.
    """
    mask = mask.unsqueeze(0) if mask.dim() == 3 and len(mask) not in (1, len(P)) else mask
    for order in permutations(range(4)):
        turned = four_axes(mask).permute(order)
        if all(size in (1, whole) for size, whole in zip(turned.shape, P.shape, strict=True)):
            turned = turned.expand(*turned.shape[:-1], P.shape[-1])
            empty = turned.all(-1, keepdim=True)
            uniform = (P[..., :1] == P).all(-1, keepdim=True) | P[..., :1].isnan()
            if not bool(torch.where(empty, ~uniform, (turned & (P != 0)).any(-1, keepdim=True)).any()):
                return turned
    return None


def _is_zero(fill: Any) -> bool:
    return not bool(fill.any()) if isinstance(fill, Tensor) else fill == 0


def _is_mask(x: Tensor) -> bool:
    """Whether all entries are zero or one."""
    first = x[(0,) * x.dim()]
    return bool((first == 0) | (first == 1)) and bool(((x == 0) | (x == 1)).all())


def call_of(P: Tensor, V: Tensor, masks: Masks) -> Call:
    """The attention of weights (..., T, S), of which three axes share the first among samples and heads, and values."""
    packed, P, V = P.dim() == 3, four_axes(P), four_axes(V)
    B, H, T, _ = P.shape
    allowed, attended = masks.shown(P)
    empty = allowed == 0  # uniform or nan

    def part(n: int, heads: slice) -> Part:
        rows = P[n, heads].to(torch.float64, copy=True)
        return rows.masked_fill_(empty[n, heads].unsqueeze(-1), 0.0), V[n, heads].double(), allowed[n, heads]

    return Call(Shape(B, H, packed, (T,) * B), V.dtype, part, lambda n: attended[n])
