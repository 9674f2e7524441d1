"""Transposed convolutions in one to three dimensions: convolutions in which input and output change places.

The output gradient is the image here: unfolded, it is D, and the input is A. D alone has an axis of outputs, so the
Gram matrix of inputs is shared by all of them. Unlike a convolution's input it is unfolded at once: with stride s and
k taps an axis it grows by k / s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.transposed_convolution import TransposedConvFactor
from pullback.gradients.rules.convolution import per_axis
from pullback.gradients.rules.registry import Call, Rule, add_rule


def _unfolded(
    maps: Tensor, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """What each of ``size`` input positions reaches of the output: (..., *out) to (..., *size, *kernel)."""
    lead = maps.dim() - len(size)
    for axis, (n, k, s, e) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        reach = (k - 1) * e + 1
        windows = maps.narrow(lead + axis, 0, (n - 1) * s + reach)  # output padding beyond it is reached by nothing
        maps = windows.unfold(lead + axis, reach, s)[..., ::e]  # the position axis stays, the taps go last
    return maps


def _transposed(space: int) -> Callable[[Call], list[Factor]]:
    def build(call: Call) -> list[Factor]:
        arguments = call.arguments
        groups = arguments.get("groups", 1)
        stride, padding, dilation = (
            per_axis(arguments.get(name, default), space)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        weight = arguments["weight"].shape  # (g d, c, *kernel)
        x = full_precision(call.samples(arguments["input"]))  # (N, b, g d, *in), or (N, g d, *in) unbatched
        maps = full_precision(call.gradient)  # (N, C, b, g c, *out)
        if x.dim() == space + 2:
            x, maps = x.unsqueeze(1), maps.unsqueeze(2)
        factors: list[Factor] = []
        if "weight" in call.names:
            image = F.pad(maps, [n for each in reversed(padding) for n in (each, each)])
            size = tuple(x.shape[3:])
            patches = _unfolded(image.unflatten(3, (groups, -1)), size, tuple(weight[2:]), stride, dilation)
            # (N, C, b, g, c, *in, *kernel) to (N, C, T, g, p); T runs over the images of a sample and their pixels
            patches = patches.flatten(5 + space).flatten(5, 4 + space)  # (N, C, b, g, c, pixels, taps)
            gradients = patches.permute(0, 1, 2, 5, 3, 4, 6).flatten(5).flatten(2, 3)
            inputs = x.unflatten(2, (groups, -1)).flatten(4).permute(0, 1, 4, 2, 3).flatten(1, 2)
            factors.append(TransposedConvFactor(inputs, gradients, call.names["weight"], None, weight))
        if "bias" in call.names:
            factors.append(DenseFactor({call.names["bias"]: maps.flatten(4).sum((2, 4))}))
        return factors

    return build


_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
for _space, _function in ((1, F.conv_transpose1d), (2, F.conv_transpose2d), (3, F.conv_transpose3d)):
    add_rule(_function, Rule(f"conv_transpose{_space}d", _SIGNATURE, ("weight", "bias"), "input", _transposed(_space)))
