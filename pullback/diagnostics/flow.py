"""Gradient flow over depth: which layer stopped learning, and do gradients vanish or explode on the way back?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown, to_frame
from pullback.diagnostics.moments import square_kernel
from pullback.kernels import Kernel
from pullback.spectral import largest_eigenvalues

VERDICT_CHANGE = math.log(100.0)  # squared norms that change a hundredfold from the last layer to the first
WEIGHT_RULES = (
    "linear",
    "conv",
    "fallback",
)  # the layers the slope is fitted over: norms and tables scale otherwise


@dataclass(frozen=True)
class LayerFlow(Shown):
    """Profile over the layers, in the order of the forward pass (input first).

    Attributes:
        layers: module names.
        sample_norms: |g_i^(l)|, (L, N).
        gradient_norms: root mean square of those over the samples, (L,).
        frobenius: |K^(l)|_F / N, (L,).
        spectral: largest eigenvalue of K^(l) / N, (L,).
        spectral_residuals: bound on the error of ``spectral``, (L,).
        trace_share: tr K^(l) / tr K, (L,); the shares sum to 1.
        slope: change of ln mean_i |g_i^(l)|^2 per weight layer towards the input (Theil-Sen: the median over all
            pairs of layers). Below 0 gradients shrink on their way back.
        verdict: "vanishing" or "exploding" if that slope times the depth is a hundredfold change or more of the
            squared norm, else "steady".
        balance: largest over smallest |K^(l)|_F / P_l; 1 if every parameter weighs alike.
    """

    layers: tuple[str, ...]
    sample_norms: Tensor
    gradient_norms: Tensor
    frobenius: Tensor
    spectral: Tensor
    spectral_residuals: Tensor
    trace_share: Tensor
    slope: float
    verdict: str
    balance: float

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each layer.

        Raises:
            InputError: pandas is not installed.
        """
        names = ("gradient_norms", "frobenius", "spectral", "spectral_residuals", "trace_share")
        columns = {name: getattr(self, name).tolist() for name in names}
        return to_frame("LayerFlow.to_pandas", {"layer": self.layers, **columns})


def layer_flow(kernel: Kernel, *, num_matvecs: int = 12) -> LayerFlow:
    """Gradient norms and kernel norms layer by layer, and whether gradients vanish or explode with depth.

    Args:
        kernel: of one set of samples with itself.
        num_matvecs: Lanczos steps for the spectral norms, whose error is in ``spectral_residuals``; 0 leaves them NaN.

    Raises:
        InputError: a cross-kernel, or a plain tensor without layers.

    Cost: one pass over every block and one batched Lanczos run.

    References: the verdict's threshold is a convention of this package, stated in ``docs/design.md``.

    Example:
        >>> import pullback as pb
        >>> _ = torch.manual_seed(0)
        >>> model = pb.modules.MLP([8, 16, 16, 16, 3], activation="tanh")
        >>> x, y = torch.randn(12, 8), torch.arange(12) % 3
        >>> flow = layer_flow(pb.backward_kernel(model, torch.nn.CrossEntropyLoss(), x, y))
        >>> flow.verdict, round(float(flow.trace_share.sum()), 4)
        ('steady', 1.0)
    """
    where = "layer_flow"
    if not isinstance(kernel, Kernel):
        raise input_error(where, "a Kernel with its layers", type(kernel).__name__, "Pass pb.backward_kernel(…)")
    square_kernel(kernel, where)
    blocks = torch.stack(list(kernel.layers.values()))  # (L, N, N)
    n = blocks.shape[1]
    squares = blocks.diagonal(dim1=1, dim2=2).clamp(min=0)  # |g_i^(l)|^2, (L, N)
    means = squares.mean(1)
    frobenius = torch.linalg.matrix_norm(blocks) / n
    unknown = torch.full_like(means, math.nan), torch.full_like(means, math.nan)
    spectral, residuals = largest_eigenvalues(blocks, num_matvecs=num_matvecs) if num_matvecs else unknown
    share = squares.sum(1) / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    slope, depth = _slope(kernel, means)
    change = slope * depth
    verdict = "vanishing" if change <= -VERDICT_CHANGE else "exploding" if change >= VERDICT_CHANGE else "steady"
    per_param = frobenius / torch.tensor([kernel.layer_sizes[layer] for layer in kernel.layers], device="cpu").to(
        frobenius
    )
    smallest = float(per_param.min())
    balance = float(per_param.max()) / smallest if smallest > 0 else math.inf
    return LayerFlow(
        layers=tuple(kernel.layers),
        sample_norms=squares.sqrt(),
        gradient_norms=means.sqrt(),
        frobenius=frobenius,
        spectral=spectral / n,
        spectral_residuals=residuals / n,
        trace_share=share,
        slope=slope,
        verdict=verdict,
        balance=balance,
    )


def _slope(kernel: Kernel, means: Tensor) -> tuple[float, int]:
    """Median slope of ln mean |g|^2 per weight layer towards the input, and the steps from last layer to first."""
    weighty = {
        name.rpartition(".")[0]
        for layer in kernel.plan.layers
        if layer.rule.startswith(WEIGHT_RULES) or "fallback" in layer.rule
        for name in layer.parameters
    }
    kept = [place for place, layer in enumerate(kernel.layers) if layer in weighty]
    values = means[kept].double()
    if len(kept) < 2 or not bool((values > 0).any()):
        return 0.0, max(0, len(kept) - 1)
    logs = values.clamp(min=torch.finfo(torch.float64).tiny).log().flip(0)  # from the output to the input
    i, j = torch.triu_indices(len(kept), len(kept), 1, device=logs.device)
    return float(((logs[j] - logs[i]) / (j - i)).median()), len(kept) - 1
