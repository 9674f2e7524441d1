"""Convolutions in one to three dimensions: stride, padding, dilation and groups.

As a sum of outer products the inputs are the unfolded patches; they are unfolded only where the ghost form asks.
The materialised form uses the library's own weight gradient, one sample at a time but batched by vmap, which is
several times faster than unfolding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from pullback.kernels.factors import OuterFactor
from pullback.kernels.rules.registry import Call, Rule, add_rule, full_precision

_WEIGHT_GRADIENT: dict[int, Callable[..., Tensor]] = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


@dataclass(frozen=True)
class ConvFactor(OuterFactor):
    """Rows of a convolution's weight.

    ``inputs`` is the padded image (N, b, g d', *space) with b images per sample, and ``gradients`` the
    (N, T, g, p) view of ``maps``, the output gradient (N, b, g p, *out).
    """

    maps: Tensor = None  # type: ignore[assignment]
    settings: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # stride, dilation

    def left(self, index: slice) -> Tensor:
        image = self.inputs[index]
        stride, dilation = self.settings
        kernel, out = self.weight_shape[2:], self.maps.shape[3:]
        n, b = image.shape[:2]
        patches = image.unflatten(2, (self.gradients.shape[2], -1))  # (n, b, g, c, *space)
        for axis, (k, s, e, o) in enumerate(zip(kernel, stride, dilation, out, strict=True)):
            windows = patches.unfold(4 + axis, (k - 1) * e + 1, s)[..., ::e]  # position axis stays, taps go last
            patches = windows.narrow(4 + axis, 0, o)
        space = len(kernel)
        order = (0, 1, *range(4, 4 + space), 2, 3, *range(4 + space, 4 + 2 * space))
        return patches.permute(order).reshape(n, b * out.numel(), self.gradients.shape[2], -1)

    def outer(self, index: slice, outputs: slice) -> Tensor:
        g, p = self.gradients.shape[2:]
        maps = self.maps[index].unflatten(2, (g, p))[:, :, :, outputs]
        p = maps.shape[3]
        shape = torch.Size([g * p, *self.weight_shape[1:]])
        stride, dilation = self.settings
        gradient = _WEIGHT_GRADIENT[len(stride)]

        def one(image: Tensor, output_gradient: Tensor) -> Tensor:
            return gradient(image, shape, output_gradient, stride, 0, dilation, g)

        weight = torch.func.vmap(one)(self.inputs[index].contiguous(), maps.flatten(2, 3).contiguous())
        return weight.reshape(len(weight), g, p, -1)


def _tuple(value: Any, space: int) -> tuple[int, ...]:
    return (value,) * space if isinstance(value, int) else tuple(value) * (space if len(value) == 1 else 1)


def _convolution(space: int) -> Callable[[Call], OuterFactor]:
    def build(call: Call) -> OuterFactor:
        arguments = call.arguments
        weight = arguments["weight"]
        groups = arguments.get("groups", 1)
        stride = _tuple(arguments.get("stride", 1), space)
        dilation = _tuple(arguments.get("dilation", 1), space)
        image = full_precision(call.samples(arguments["input"]))  # (N, b, c, *space), or (N, c, *space) unbatched
        maps = full_precision(call.gradient)
        if image.dim() == space + 2:
            image, maps = image.unsqueeze(1), maps.unsqueeze(1)
        if any(padding := _padding(arguments.get("padding", 0), weight.shape[2:], dilation)):
            image = F.pad(image, padding)
        gradients = maps.unflatten(2, (groups, -1)).flatten(4).permute(0, 1, 4, 2, 3).flatten(1, 2)
        return ConvFactor(
            inputs=image,
            gradients=gradients,
            weight=call.names.get("weight"),
            bias=call.names.get("bias"),
            weight_shape=weight.shape,
            maps=maps,
            settings=(stride, dilation),
        )

    return build


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Zeros before and after each axis, last axis first, as ``F.pad`` wants them."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [e * (k - 1) for k, e in zip(kernel, dilation, strict=True)]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    return [n for each in reversed(_tuple(padding, len(kernel))) for n in (each, each)]


_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
for _space, _function in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
    add_rule(_function, Rule(f"conv{_space}d", _SIGNATURE, ("weight", "bias"), "input", _convolution(_space)))
