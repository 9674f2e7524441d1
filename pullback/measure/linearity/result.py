"""What ``measure.linearity`` finds, of one network or of a family."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pullback._results import Estimate, Shown
from pullback.measure.linearity.slopes import Slope
from pullback.measure.linearity.tensor_norms import NormBounds


@dataclass(frozen=True)
class Linearity(Shown):
    """Of C outputs f_c at N inputs; of a family the means over its draws at W widths, and then (W, N, C) each.

    Attributes:
        hessian_norm: spectral norm of the Hessian of each output in the trained weights, (N, C); ``stderr`` is the
            residual: an eigenvalue lies within it. Of a family the standard error over draws, the residual of one.
        converged: whether every residual is below ``tol`` of its norm, (N, C).
        q_inf: Q_inf = max over layers of max_i |df/da_i|, a the activations, output neurons before a last function
            included; ``stderr`` is what rounding leaves.
        q_2: Q_2 = max over layers of |df/da|_2, of the hidden layers.
        q_221: Q_{2,2,1} from both sides; None where the model is no chain of layers.
        bound: what these allow ``hessian_norm`` to be by the main theorem, see ``linearity_bound.hessian_bound``; None
            as for ``q_221``.
        kernel_norm: largest eigenvalue of the tangent kernel of all inputs and outputs, (N C, N C).
        kernel_trace: its trace.
        kernel_diagonal: K(x, x) = |grad f_c|^2, (N, C).
        diagonal_limit: what that tends to with the width, (N, C); None where no limit is known.
        layers: names of the layers with signals.
        layer_inf: max_i |df/da_i| by layer, (L, N, C).
        layer_2: |df/da|_2 by layer.
        hidden: how many of ``layers`` are hidden ones; output neurons follow.
        tensor_221: |d2 a^l / (da^{l-1})2|_{2,2,1} of every map of the chain, (M, N), the last one's largest output.
        widths: of a family, ascending.
        draws: of a family the single networks, W rows of S.
        slopes: of a family over two widths or more: slopes of logarithms against log m with confidence intervals.
    """

    hessian_norm: Estimate
    converged: Tensor
    q_inf: Estimate
    q_2: Estimate
    q_221: NormBounds | None
    bound: Tensor | None
    kernel_norm: Estimate
    kernel_trace: Estimate
    kernel_diagonal: Tensor
    diagonal_limit: Tensor | None
    layers: tuple[str, ...]
    layer_inf: Tensor
    layer_2: Tensor
    hidden: int
    tensor_221: Tensor | None
    widths: tuple[int, ...] = ()
    draws: tuple[tuple[Linearity, ...], ...] = ()
    slopes: dict[str, Slope] = field(default_factory=dict)

    @property
    def q_inf_hidden(self) -> Tensor:
        """Q_inf of the hidden layers alone, without output neurons."""
        return self.layer_inf[..., : self.hidden, :, :].amax(-3)

    def __str__(self) -> str:
        if self.widths:
            return "\n".join([f"widths {', '.join(map(str, self.widths))}, {len(self.draws[0])} draws: slopes",
                              *(f"{name}: {slope}" for name, slope in self.slopes.items())])  # fmt: skip
        parts = {"|H|": self.hessian_norm.value, "Q_inf": self.q_inf.value, "Q_2": self.q_2.value}
        shown = ", ".join(f"{name} up to {float(value.max()):.4g}" for name, value in parts.items() if value.numel())
        theorem = "" if self.q_221 is None or self.bound is None else (
            f"\nQ_221 up to {float(torch.as_tensor(self.q_221.lower).max()):.4g} ({self.q_221.label}); the theorem "
            f"allows |H| {float(self.bound.max()):.4g}"
        )  # fmt: skip
        solved = "" if bool(self.converged.all()) else "\nnot all Hessian norms have converged"
        return f"{shown}\n|K| {self.kernel_norm.value:.4g}, tr K {self.kernel_trace.value:.4g}{theorem}{solved}"
