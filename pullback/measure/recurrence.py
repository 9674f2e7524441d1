"""Products of many Jacobians: powers of one, growth along a chain of different ones, steps of a recurrent network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_count, input_error
from pullback._results import Shown
from pullback._rng import make_generator
from pullback._statistics import mean_and_stderr
from pullback.operators import Jacobian


@dataclass(frozen=True)
class MatrixPowers(Shown):
    """What decides whether powers of a matrix vanish or explode, and what only bounds it.

    Attributes:
        spectral_radius: rho, the largest absolute eigenvalue: the limit of |J^k|^(1/k), which decides.
        sigma_max: the largest singular value, |J|: |J^k| <= sigma_max^k, so that below 1 powers vanish, but above 1
            they need not explode. The two agree for normal matrices.
        roots: |J^k|^(1/k) in the spectral norm for k = 1 .. n, (n,).
    """

    spectral_radius: float
    sigma_max: float
    roots: Tensor


def matrix_powers(J: Tensor, n: int = 50) -> MatrixPowers:
    """Spectral radius, largest singular value and |J^k|^(1/k) of a square matrix, for layers that are all alike.

    Args:
        J: a square matrix.
        n: highest power.

    Raises:
        InputError: ``J`` is not a finite square matrix; ``n`` < 1.

    Cost: n products and spectral norms; powers are scaled on the way and neither overflow nor vanish.

    References: Pascanu, Mikolov and Bengio (2013), arXiv:1211.5063; Gelfand's formula.

    Example:
        >>> found = matrix_powers(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), 3)
        >>> found.spectral_radius, found.sigma_max, found.roots.tolist()
        (0.0, 2.0, [2.0, 0.0, 0.0])
    """
    where = "matrix_powers"
    if J.dim() != 2 or J.shape[0] != J.shape[1] or not bool(torch.isfinite(J).all()):
        raise input_error(where, "a finite square matrix `J`", f"shape {tuple(J.shape)}", "Pass one layer's Jacobian")
    check_count(where, "n", n, 1)
    power, log_scale = torch.eye(len(J), dtype=J.dtype, device=J.device), torch.zeros((), dtype=J.dtype)
    roots = []
    for k in range(1, n + 1):
        power = J @ power
        norm = torch.linalg.matrix_norm(power, 2)
        log_scale = log_scale + norm.log().cpu()  # -inf once a power is zero, and from there on
        roots.append(torch.exp(log_scale / k))
        power = power / norm if float(norm) > 0 else power
    return MatrixPowers(float(torch.linalg.eigvals(J).abs().max()), float(roots[0]), torch.stack(roots))


@dataclass(frozen=True)
class Lyapunov(Shown):
    """Growth of volumes along a chain of L matrices.

    Attributes:
        exponents: (K,), mean over layers of ``growth``: (1 / L) log of the factor by which the chain stretches the
            first start direction, then the second one across the first, and so on. From random starts they tend to
            (1 / L) log of the product's singular values as L grows, the largest first. -inf where a direction is cut.
        stderr: of the limits, (K,), from the spread over layers, which it takes for independent; nan beside -inf, and
            for a single layer.
        growth: (L, K), by layer.
    """

    exponents: Tensor
    stderr: Tensor
    growth: Tensor


def lyapunov_exponents(
    matrices: Iterable[Tensor], k: int = 1, *, start: Tensor | None = None, seed: int = 0
) -> Lyapunov:
    """The ``k`` leading Lyapunov exponents of a product J_L ... J_1, by QR decompositions layer by layer.

    Nothing overflows or vanishes, and small exponents keep their digits, which in the product itself rounding covers.
    The mean squared singular value grows like chi_1^L, but a typical vector slower: for Gaussian J_l of variance 1 / n
    it is E |J v|^2 = |v|^2, and yet log |J v|^2 / |v|^2 falls by about 1 / n a layer.

    Args:
        matrices: J_1 to J_L, (rows, columns) each, first the one that is applied first; a generator will do. Layer
            Jacobians of one input are ``J[0] for J in pb.layer_jacobians(model, x)``.
        k: how many, at most the smallest of the widths.
        start: directions (n, k), n the columns of J_1; None draws them.
        seed: of the start, from a generator of its own.

    Raises:
        InputError: no matrices, widths that do not fit or are below ``k``, a start of another shape.

    Cost: per layer a product with k columns and their QR decomposition.

    References: Benettin et al. (1980); Newman (1986) for Gaussian matrices: 2 lambda_i = psi((n - i + 1) / 2) +
        log(2 / n).

    Example:
        >>> chain = [torch.tensor([[3.0, 0.0], [0.0, 0.5]])] * 40
        >>> found = lyapunov_exponents(chain, 2, start=torch.eye(2))
        >>> [round(v, 4) for v in found.exponents.exp().tolist()]  # the product itself holds 3^40 and 2^-40
        [3.0, 0.5]
    """
    where = "lyapunov_exponents"
    check_count(where, "k", k, 1)
    growth: list[Tensor] = []
    frame: Tensor | None = None
    for J in matrices:
        if J.dim() != 2 or min(J.shape) < k or (frame is not None and J.shape[1] != len(frame)):
            expected = f"matrices at least {k} wide on both sides that follow each other"
            raise input_error(where, expected, f"shape {tuple(J.shape)}", "Check the order, or lower `k`")
        if frame is None:
            frame = _start(J, k, start, seed, where)
        stretched = J @ frame
        frame, r = torch.linalg.qr(stretched)
        lengths = r.diagonal().abs()
        noise = torch.finfo(J.dtype).eps * len(J) * stretched.norm()  # what a direction that is cut off leaves
        growth.append(torch.where(lengths > noise, lengths, 0).log().cpu())
    if not growth:
        raise input_error(where, "at least one matrix", "none", "Pass the Jacobians of one layer after another")
    by_layer = torch.stack(growth)
    if len(by_layer) > 1:
        exponents, stderr = mean_and_stderr(by_layer)
    else:
        exponents, stderr = by_layer[0], torch.full_like(by_layer[0], torch.nan)
    return Lyapunov(exponents, stderr, by_layer)


def _start(J: Tensor, k: int, start: Tensor | None, seed: int, where: str) -> Tensor:
    """Orthonormal start directions (n, k)."""
    if start is None:
        drawn = torch.randn(J.shape[1], k, generator=make_generator(seed), dtype=torch.float64, device="cpu")
        start = drawn.to(J.device, J.dtype)
    if start.shape != (J.shape[1], k):
        raise input_error(where, f"a `start` ({J.shape[1]}, {k})", f"shape {tuple(start.shape)}", "Pass k columns")
    return torch.linalg.qr(start)[0]


def recurrent_jacobians(cell: nn.Module, x: Tensor, state: Tensor) -> Tensor:
    """Derivative of every state of a recurrent network in the one before, d h^t / d h^{t-1}, (T, B, n, n).

    Multiplied from the last to the first they give d h^T / d h^0.

    Args:
        cell: from (inputs (B, D), state (B, n)) to the next state (B, n), like ``nn.RNNCell`` and ``nn.GRUCell``.
        x: inputs of T steps, (T, B, D).
        state: h^0, (B, n).

    Raises:
        InputError: ``x`` without three axes or steps; an ``nn.LSTMCell``; see ``Jacobian``.

    Cost: n + 2 passes back through the cell for each step.

    Example:
        >>> cell = nn.RNNCell(2, 3)
        >>> tuple(recurrent_jacobians(cell, torch.zeros(5, 4, 2), torch.zeros(4, 3)).shape)
        (5, 4, 3, 3)
    """
    where = "recurrent_jacobians"
    if x.dim() != 3 or not len(x):
        got = f"shape {tuple(x.shape)}"
        raise input_error(where, "inputs `x` (T, B, D)", got, "Put the steps along the first axis")
    if isinstance(cell, nn.LSTMCell):
        remedy = "Wrap it: hand on state.chunk(2, 1), return torch.cat of both"
        raise input_error(where, "a cell whose state is one tensor", "an LSTMCell, with two", remedy)
    jacobians = []
    for step in x:
        J = Jacobian(cell, (step, state), wrt="input")
        jacobians.append(J.per_sample()[..., step.shape[1] :])  # columns of the inputs come first
        state = J.outputs()
    return torch.stack(jacobians)
