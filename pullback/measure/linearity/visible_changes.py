"""The changes of a dense chain's weights that the Hessian of its outputs sees at one input: of m^2 directions 2 m.

The gradient in W of z = s W a is delta a^T, delta = s df/dz, and its change along any direction d delta a^T +
delta da^T. So the Hessian maps all changes of W to p a^T + delta q^T, and, being symmetric, all others to nothing. In
coordinates (p, q), q across a, on unit vectors along a and delta, it has the same eigenvalues but zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback.measure.linearity.dense_layer import DenseLayer, dense_layer


class _Changed(nn.Module):
    """A dense layer whose weights are W + p u^T + v q^T, q across u; u and v unit vectors or 0."""

    along_outputs: Tensor

    def __init__(self, layer: DenseLayer, a: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.own_bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        rows, columns = self.weight.shape
        self.along_inputs = _unit(a)
        if layer.weight_trained:
            self.rows, self.columns = nn.Parameter(a.new_zeros(rows)), nn.Parameter(a.new_zeros(columns))
        if layer.bias_trained:
            self.bias = nn.Parameter(a.new_zeros(rows))
        self.register_buffer("along_outputs", a.new_zeros(rows))

    def forward(self, a: Tensor) -> Tensor:
        """(N, ...) to (N, outputs)."""
        a = a.flatten(1)
        z = a @ self.weight.T
        if self.layer.weight_trained:
            u = self.along_inputs
            across = self.columns - u * (u @ self.columns)
            z = z + torch.outer(a @ u, self.rows) + torch.outer(a @ across, self.along_outputs)
        z = self.layer.scale * z
        if self.own_bias is not None:
            z = z + self.own_bias
        return self.layer.activation(z + self.bias if self.layer.bias_trained else z)


def visible_changes(maps: tuple[tuple[nn.Module, Tensor], ...], sample: int, output: int) -> nn.Sequential | None:
    """A module of few parameters whose output ``output`` at a sample has the Hessian of the chain's but for zeros.

    None where a map with trained weights is no dense layer.
    """
    parts: list[nn.Module] = []
    for layer, a in maps:
        dense = dense_layer(layer)
        if dense is not None:
            parts.append(_Changed(dense, a[sample].flatten()))
        elif any(p.requires_grad for p in layer.parameters()):
            return None
        else:
            parts.append(layer)
    chain = nn.Sequential(*parts).eval()
    changed = [part for part in parts if isinstance(part, _Changed) and part.layer.weight_trained]
    if not changed:
        return None
    with torch.enable_grad():
        value = chain(maps[0][1][sample : sample + 1].clone()).flatten()[output]
        slopes = torch.autograd.grad(value, [part.rows for part in changed])  # s |a| df/dz
    for part, slope in zip(changed, slopes, strict=True):
        part.along_outputs.copy_(_unit(slope))
    return chain


def _unit(vector: Tensor) -> Tensor:
    size = vector.norm()
    return vector / size if bool(size > 0) else torch.zeros_like(vector)
