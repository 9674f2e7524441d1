"""The (2,2,1) norm of third-order tensors: how far second derivatives of a layer can add up over its units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown
from pullback._rng import make_generator

EXACT = 1e-6  # relative distance of the bounds below which they are one number
_STARTS = 8
_ROUNDS = 200


@dataclass(frozen=True)
class NormBounds(Shown):
    """A norm from both sides; numbers, or tensors of one shape.

    Attributes:
        lower: a value that is reached, so that the norm is at least this.
        upper: a bound that was proved; inf where none is known.
    """

    lower: float | Tensor
    upper: float | Tensor

    @property
    def exact(self) -> bool:
        """Whether both are one number, up to 1e-6 of it, everywhere."""
        low, high = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        return bool((high - low <= EXACT * low.abs()).all())

    @property
    def label(self) -> str:
        """What ``lower`` is: "exact", or "lower bound" with or without an upper one."""
        if self.exact:
            return "exact"
        known = bool(torch.isfinite(torch.as_tensor(self.upper)).all())
        return "between both bounds" if known else "lower bound, no upper one"


def norm_221(tensor: Tensor, *, seed: int = 0) -> NormBounds:
    """The supremum over unit a and b of sum_k |sum_ij T_ijk a_i b_j|, from below and from above.

    It controls combinations of the slices: |sum_k v_k T_k|_2 <= |T|_{2,2,1} max_k |v_k| (Liu, Zhu and Belkin 2020).
    From below by alternating maximisation: for signs s of the sums the best a and b are the outer singular vectors of
    sum_k s_k T_k, and for these the best signs are those of their sums; every round is at least as large as the one
    before. From above by the smaller of sqrt(|sum_k (T_k T_k^T)^(1/2)| |sum_k (T_k^T T_k)^(1/2)|), since
    |a^T T_k b| <= (a^T (T_k T_k^T)^(1/2) a)^(1/2) (b^T (T_k^T T_k)^(1/2) b)^(1/2), and sqrt(K) times the norm of T
    unfolded along its first or second axis. The two sides meet where the slices share singular vectors or act on
    different entries, as those of an elementwise activation do.

    Args:
        tensor: T, (I, J, K), floating.
        seed: of the starts.

    Returns:
        NormBounds of two numbers.

    Raises:
        InputError: no floating tensor with three axes; entries that are not finite.

    Cost: K singular value decompositions of (I, J) matrices, and one a round and start.

    Example:
        >>> T = torch.zeros(3, 3, 3, dtype=torch.float64)
        >>> T[0, 0, 0], T[1, 1, 1], T[2, 2, 2] = 1.0, -4.0, 2.0
        >>> found = norm_221(T)
        >>> round(found.lower, 9), round(found.upper, 9), found.label
        (4.0, 4.0, 'exact')
    """
    where = "norm_221"
    if tensor.dim() != 3 or not tensor.is_floating_point() or not tensor.numel():
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise input_error(where, "a floating tensor (I, J, K)", got, "Pass the tensor of second derivatives")
    if not bool(torch.isfinite(tensor).all()):
        raise input_error(where, "finite entries", "nan or infinity", "Look for the derivative that makes them")
    slices = tensor.detach().double().movedim(2, 0)  # (K, I, J)
    lower = max(_alternate(slices, start) for start in _starts(slices, seed))
    return NormBounds(lower, max(lower, _above(slices)))


def _starts(slices: Tensor, seed: int) -> list[Tensor]:
    """Signs to begin with: all alike, those of the largest slice's own outer vectors, and random ones."""
    count = len(slices)
    largest = slices[int(slices.flatten(1).norm(dim=1).argmax())]
    signs = torch.randint(2, (_STARTS, count), generator=make_generator(seed), device="cpu").to(slices) * 2 - 1
    return [torch.ones(count).to(slices), _signs(slices, *_outer(largest)), *signs]


def _alternate(slices: Tensor, signs: Tensor) -> float:
    """The value at which alternation from these signs stays."""
    value = -1.0
    for _ in range(_ROUNDS):
        a, b = _outer(torch.tensordot(signs, slices, 1))
        now = float(_sums(slices, a, b).abs().sum())
        if now <= value * (1 + 1e-12):
            break
        value, signs = now, _signs(slices, a, b)
    return max(value, now)


def _outer(matrix: Tensor) -> tuple[Tensor, Tensor]:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, 0], vh[0]


def _sums(slices: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("kij,i,j->k", slices, a, b)


def _signs(slices: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(_sums(slices, a, b) < 0, -1.0, 1.0).to(slices)


def _above(slices: Tensor) -> float:
    u, s, vh = torch.linalg.svd(slices, full_matrices=False)
    left, right = ((v * s.unsqueeze(1)) @ v.mT for v in (u, vh.mT))
    absolute = (top(left.sum(0)) * top(right.sum(0))) ** 0.5
    unfolded = min(float(torch.linalg.matrix_norm(slices.transpose(0, axis).flatten(1), 2)) for axis in (1, 2))
    return min(absolute, len(slices) ** 0.5 * unfolded)


def top(matrix: Tensor) -> float:
    """Largest eigenvalue of a positive semi-definite matrix."""
    return max(float(torch.linalg.eigvalsh(matrix)[-1]), 0.0)
