"""``WideNetwork``: the fully connected network whose tangent kernel becomes constant with width, and its variants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback._memory import check_fits
from pullback._rng import make_generator
from pullback.modules.activations import activation_module

OUTPUTS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "softmax": lambda: nn.Softmax(dim=1),
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
_ROWS = 1024  # of a weight matrix drawn at a time, in float64: no second copy of a large one
Bottleneck = int | tuple[int, int]


class WideNetwork(nn.Module):
    """f(x) = phi(V a^L / sqrt(m_L)), a^l = sigma(W^l a^{l-1} / sqrt(m_{l-1})), a^0 = x: NTK scaling, no biases.

    W^l, (m_l, m_{l-1}), is N(0, 1) and trained; V, (C, m_L), is drawn from {-1, 1} and fixed. phi is the identity for
    ``output="linear"``. With it the Hessian of f vanishes like 1 / sqrt(m) and the tangent kernel stays; with any
    other phi, or a hidden layer whose width does not grow, neither does (Liu, Zhu and Belkin 2020).

    Args:
        in_features: m_0.
        widths: m_1 .. m_L, the hidden layers.
        activation: sigma, a name of ``modules.ACTIVATIONS`` or an elementwise function.
        output: phi: "linear", "softmax" (over the C outputs), "swish" (SiLU) or "tanh".
        bottleneck: the width of one hidden layer in place of that in ``widths``: of the middle one, or
            ``(layer, width)`` with layers counted from 1.
        train_output: train V too.
        seed: of W and V, from a generator of its own.
        outputs: C; None means 1, and 2 for "softmax".
        dtype: of the weights; None for torch's default. Weights of one seed agree in all dtypes, up to rounding.

    Attributes:
        widths: m_1 .. m_L as built.
        layers: the hidden layers' maps W^l / sqrt(m_{l-1}).
        readout: V / sqrt(m_L).
        bottleneck: (layer, width), or None.
        train_output: whether V is trained.

    Raises:
        InputError: no hidden layer, widths or outputs below 1, a softmax over one output, a bottleneck at no hidden
            layer, an unknown name; weights that do not fit this machine's memory.

    References: Liu, Zhu and Belkin (2020), arXiv:2010.01092; Jacot, Gabriel and Hongler (2018), arXiv:1806.07572.

    Example:
        >>> model = WideNetwork(3, [50, 40], "tanh")
        >>> sum(p.numel() for p in model.parameters()) == 50 * 3 + 40 * 50, tuple(model(torch.zeros(2, 3)).shape)
        (True, (2, 1))
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        output: str = "linear",
        bottleneck: Bottleneck | None = None,
        train_output: bool = False,
        seed: int = 0,
        *,
        outputs: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = "WideNetwork"
        check_option(where, "output", output, tuple(OUTPUTS))
        count = (2 if output == "softmax" else 1) if outputs is None else outputs
        if output == "softmax" and count == 1:
            raise input_error(where, "two or more `outputs` for a softmax", "1, which it makes 1", "Pass outputs=2")
        hidden = list(widths) if isinstance(widths, Sequence) else [widths]
        if not hidden:
            raise input_error(where, "at least one hidden layer in `widths`", "none", "Pass widths=[m_1, …]")
        if bottleneck is not None:
            layer, narrow = _place(bottleneck, len(hidden), where)
            hidden[layer - 1] = narrow
        sizes = [in_features, *hidden, count]
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise input_error(where, "whole sizes of at least 1", f"{sizes}", "Pass in_features, widths, outputs >= 1")
        kind = torch.get_default_dtype() if dtype is None else dtype
        weights = sum(rows * columns for columns, rows in pairwise(sizes))
        check_fits(where, f"{weights:,} weights", weights * kind.itemsize, None, "Pass smaller `widths`")
        self.widths = tuple(hidden)
        self._asked: dict[str, Any] = {
            "in_features": in_features, "activation": activation, "output": output, "train_output": train_output,
            "outputs": outputs, "dtype": dtype,
        }  # fmt: skip
        self.bottleneck = None if bottleneck is None else (layer, narrow)
        self.train_output = train_output
        self.layers = nn.ModuleList(ScaledLinear(d, p, kind) for d, p in pairwise(sizes[:-1]))
        self.activation = activation_module(activation)
        self.readout = ScaledLinear(hidden[-1], count, kind, trained=train_output)
        self.output = OUTPUTS[output]()
        make = make_generator(seed)
        with torch.no_grad():
            for one in self.layers:
                weight = one.weight
                assert isinstance(weight, Tensor)
                for rows in weight.split(_ROWS):
                    rows.copy_(torch.randn(rows.shape, generator=make, dtype=torch.float64, device=make.device))
            signs = torch.randint(2, self.readout.weight.shape, generator=make, device=make.device)
            self.readout.weight.copy_(2 * signs - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) with m_0 numbers a sample to (N, C)."""
        h = x.flatten(1)
        for layer in self.layers:
            h = self.activation(layer(h))
        return self.output(self.readout(h))

    def activations(self, x: Tensor) -> list[Tensor]:
        """a^0 (the flattened input) to a^L, V a^L / sqrt(m_L) and, if phi is another function, f; (N, width) each."""
        hidden = [x]
        for layer in self.layer_maps():
            hidden.append(layer(hidden[-1]))
        return [x.flatten(1), *hidden[1:]]

    def layer_maps(self) -> list[nn.Module]:
        """The maps between consecutive activations, for ``pb.layer_jacobians`` and ``measure.linearity``."""
        first, *others = self.layers
        maps = [nn.Sequential(nn.Flatten(), first, self.activation)]
        maps += [nn.Sequential(layer, self.activation) for layer in others]
        return [*maps, self.readout, *([] if isinstance(self.output, nn.Identity) else [self.output])]

    def resized(self, width: int, seed: int = 0) -> WideNetwork:
        """Another draw of the same kind of network, all hidden layers of this width but the bottleneck."""
        hidden = [width] * len(self.widths)
        return WideNetwork(widths=hidden, bottleneck=self.bottleneck, seed=seed, **self._asked)


class ScaledLinear(nn.Module):
    """W x / sqrt(inputs), without a bias; the weights are left for its owner to draw.

    Example:
        >>> layer = ScaledLinear(4, 1, torch.float32)
        >>> _ = nn.init.ones_(layer.weight)
        >>> layer(torch.ones(1, 4))
        tensor([[2.]], grad_fn=<MmBackward0>)
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, *, trained: bool = True) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(inputs)
        weight = torch.empty(outputs, inputs, dtype=dtype)
        if trained:
            self.weight: Tensor = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        return F.linear(x * self.scale, self.weight)

    def extra_repr(self) -> str:
        """Sizes, and whether it is trained."""
        kind = "trained" if isinstance(self.weight, nn.Parameter) else "fixed"
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {kind}"


def _place(bottleneck: Bottleneck, depth: int, where: str) -> tuple[int, int]:
    """Layer, from 1, and width of a bottleneck."""
    if isinstance(bottleneck, int):
        return (depth + 1) // 2, bottleneck
    layer, width = bottleneck
    if not 1 <= layer <= depth:
        expected = f"a bottleneck at one of the hidden layers 1 to {depth}"
        raise input_error(where, expected, f"layer {layer}", "Pass bottleneck=(layer, width)")
    return layer, width
