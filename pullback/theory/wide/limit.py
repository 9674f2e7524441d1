"""``limit_of``: what a user's network becomes when all its layers are made wider without end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from pullback._checks import input_error
from pullback._results import Shown
from pullback.theory.expectations.activations import Array
from pullback.theory.wide.call_values import Raw
from pullback.theory.wide.drawn_weights import Reader, Source
from pullback.theory.wide.interpreter import Layers
from pullback.theory.wide.modules import Modules
from pullback.theory.wide.signals import NeedsPairsError
from pullback.theory.wide.tracing import Step, steps_of

_ENTRIES = 2**22  # pairs of inputs times pairs of pixels that are worked on together
_PIXELS = 2**13  # of an image whose pixels are mixed: a single pair of them has that many squared


@dataclass(frozen=True)
class Limit(Shown):
    """The infinitely wide limit of a network, as a function of inputs.

    Attributes:
        layers: (name, what it is and from what its weights are drawn), in the order of the calls.
    """

    layers: tuple[tuple[str, str], ...]
    _steps: Sequence[Step] = field(repr=False)
    _layers: Layers = field(repr=False)

    def __call__(self, x1: Any, x2: Any = None) -> tuple[Array, Array]:
        """NNGP and NTK kernels of one output, between two sets of inputs.

        Args:
            x1: inputs as the network takes them, (N1, ...).
            x2: other inputs, (N2, ...); None for those of ``x1``.

        Returns:
            (nngp, ntk), each (N1, N2) in float64. ``pb.tangent_kernel(model, x)`` sums over C outputs, and is C times
            the ntk.

        Raises:
            InputError: inputs that are no finite numbers, or not of one shape, or that a layer cannot take; images
                too large for their pixels to be mixed.
            UnsupportedError: a call that has no limit, by the name of its layer.
        """
        where = "limit_of"
        a = _inputs(x1, "x1", where)
        b = a if x2 is None else _inputs(x2, "x2", where)
        if a.shape[1:] != b.shape[1:]:
            shape = ", ".join(map(str, a.shape[1:]))
            raise input_error(where, f"`x2` (N2, {shape})", f"{tuple(b.shape)}", "Pass inputs of one shape")
        try:
            self._block(a[:1], b[:1], pairs=False)
            pairs = False
        except NeedsPairsError:
            pairs = True
        pixels = math.prod(a.shape[2:]) if pairs else 1
        if pixels > _PIXELS:
            expected = f"at most {_PIXELS} pixels where a layer mixes them"
            raise input_error(where, expected, f"{pixels}", "Pass smaller images, or a network that flattens")
        size = max(1, int(_ENTRIES**0.5 / pixels))
        kernels = np.zeros((2, len(a), len(b)))
        for i in range(0, len(a), size):
            for j in range(i if x2 is None else 0, len(b), size):
                rows, columns = slice(i, i + size), slice(j, j + size)
                block = self._block(a[rows], b[columns], pairs=pairs)
                kernels[:, rows, columns] = block
                if x2 is None:
                    kernels[:, columns, rows] = block.transpose(0, 2, 1)
        if x2 is None:  # rounding of blocks on the diagonal
            kernels = (kernels + kernels.transpose(0, 2, 1)) / 2
        return kernels[0], kernels[1]

    def _block(self, a: Tensor, b: Tensor, *, pairs: bool) -> Array:
        """Both kernels of a block, (2, N1, N2)."""
        out = self._layers.run(self._steps, Raw(a, b), pairs=pairs)
        kernels = [out.nngp, out.ntk]
        if out.pairs:
            kernels = [np.diagonal(each, axis1=-2, axis2=-1) for each in kernels]
        return np.stack([each.mean(-1) for each in kernels])

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.layers)
        return "\n".join(f"{name:<{width}}  {what}" for name, what in self.layers)


def limit_of(model: nn.Module, *, weights: Source = "measured") -> Limit:
    """The infinitely wide limit of a network: its NNGP and NTK kernels as functions of inputs.

    The network's own calls are followed (``torch.fx``), in whatever parametrisation it is written: a layer multiplies
    covariances of units by the variance of its weights times the units they sum over, and adds to the tangent kernel
    what its own trained weights and biases give, at the widths it has. So torch's layers give the kernel of the
    standard parametrisation at their widths, which ``pb.tangent_kernel(model, x)`` scatters around; layers that scale
    N(0, 1) weights in the forward pass give that of the NTK parametrisation.

    Known are linear layers and convolutions (stride, padding, dilation, groups of several channels), elementwise
    activations, average pooling, means and sums over positions, flattening, sums of branches, layer, group and RMS
    norm, padding, products with numbers, dropout in eval mode. What comes before the first layer may be anything.

    Args:
        model: in eval mode. It is read, not changed.
        weights: where variances come from. "measured": the mean square of each tensor, whose relative error for n
            numbers is sqrt(2 / n); "torch": what torch's layers draw when they are made, uniform up to 1 /
            sqrt(fan_in); or a mapping from parameter names to standard deviations, others measured. Weights are
            taken for Gaussian of these variances, as their sums are over many inputs. Over few they are not: with
            "torch" the units of a first layer of up to 32 inputs are drawn, 2^17 of them, which leaves an error of a
            kernel's largest entry of 1e-5 at 2 inputs, 1e-3 at 16 and 2e-3 at 32 (Gaussian ones: 0.06, 0.013 and
            0.005; tanh). They count as Gaussian where something stands between them and their activation, where a
            norm comes before them, and where pairs of pixels are followed.

    Returns:
        Limit: call it with inputs; ``str`` lists the layers. Variances are read now, not when it is called.

    Raises:
        InputError: code that cannot be followed without inputs; weights that are not around 0; unknown names.
        UnsupportedError: a layer that has no such limit, by its name: batch norm, max pooling, attention, recurrent
            layers, a layer used twice, an activation behind another.

    Cost: a call: per layer N1 N2 expectations, times P for convolutions of images of P pixels, P^2 where pixels are
        mixed; in blocks, so that memory is bounded. Drawn units: 2^17 products of each pair.

    References: Lee et al. (2018), arXiv:1711.00165; Jacot et al. (2018), arXiv:1806.07572; Novak et al. (2020),
        neural-tangents, arXiv:1912.02803, whose ``stax`` this follows for modules as they are.

    Example:
        >>> torch.manual_seed(0) and None
        >>> model = nn.Sequential(nn.Linear(3, 512), nn.ReLU(), nn.Linear(512, 1))
        >>> x = torch.eye(3)
        >>> _, ntk = limit_of(model, weights="torch")(x)
        >>> round(float(ntk[0, 0]), 2)  # (512 E phi^2 + 1) + 512 / (3 * 512) E phi'^2 (1 + 1)
        58.22
    """
    where = "limit_of"
    if not isinstance(model, nn.Module):
        raise input_error(where, "a module", type(model).__name__, "Pass the network itself")
    steps = steps_of(model, where)
    modules = Modules(Reader(model, weights, where), where)
    return Limit(tuple(modules.described(steps)), steps, Layers(modules))


def _inputs(x: Any, name: str, where: str) -> Tensor:
    tensor = torch.as_tensor(x).detach().cpu().double()
    if tensor.dim() < 2 or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        got = f"shape {tuple(tensor.shape)}" if tensor.dim() < 2 or not tensor.numel() else "NaN or infinity"
        raise input_error(where, f"finite `{name}` (N, ...)", got, "Pass a batch of inputs")
    return tensor
