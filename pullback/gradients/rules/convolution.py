"""Convolutions in one to three dimensions: stride, padding, dilation and groups.

As a sum of outer products the inputs are the unfolded patches; they are unfolded only where they are needed, some
samples and channels at a time. With one output a sample and large maps the materialised form uses the library's own
weight gradient, batched by vmap, which is then faster than patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.convolution import ConvFactor, positions
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rules.registry import Arguments, Call, Probe, Rule, Source, add_rule


def per_axis(value: Any, space: int) -> tuple[int, ...]:
    """One number, or one an axis, as one an axis."""
    return (value,) * space if isinstance(value, int) else tuple(value) * (space if len(value) == 1 else 1)


def _convolution(space: int) -> Callable[[Call], Factor]:
    def build(call: Call) -> Factor:
        arguments = call.arguments
        weight = arguments["weight"]
        groups = arguments.get("groups", 1)
        stride = per_axis(arguments.get("stride", 1), space)
        dilation = per_axis(arguments.get("dilation", 1), space)
        image = full_precision(call.samples(arguments["input"]))  # (N, b, c, *space), or (N, c, *space) unbatched
        maps = full_precision(call.gradient)
        if image.dim() == space + 2:
            image, maps = image.unsqueeze(1), maps.unsqueeze(2)
        if "weight" not in call.names:
            return DenseFactor({call.names["bias"]: maps.flatten(4).sum((2, 4))})
        return ConvFactor(
            inputs=image,
            gradients=positions(maps, groups),
            weight=call.names["weight"],
            bias=call.names.get("bias"),
            weight_shape=weight.shape,
            maps=maps,
            settings=(stride, dilation, _zeros(arguments.get("padding", 0), weight.shape[2:], dilation)),
        )

    return build


def _probe(space: int) -> Probe:
    def probe(argument: str, source: Source, arguments: Arguments, gradient: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``<dL/dW, u v^T>``: the output gradients summed with u over channels, times the image of the one filter v."""
        if argument == "bias":
            sums = full_precision(gradient).flatten(-space).sum(-1)  # (..., g p)
            return (sums @ u.to(sums)).sum(dtype=torch.float64)
        groups, image, kernel = arguments.get("groups", 1), full_precision(arguments["input"]), source.shape[2:]
        stride = per_axis(arguments.get("stride", 1), space)
        dilation = per_axis(arguments.get("dilation", 1), space)
        zeros = _zeros(arguments.get("padding", 0), kernel, dilation)
        # the filter's taps as channels of their own, (..., g, taps, *space): as small as the taps are few
        filters = v.to(image).view(source.shape[1], -1).T  # (taps, c)
        pixels = image.unflatten(-space - 1, (groups, -1)).flatten(-space)
        seen = (filters @ pixels).unflatten(-1, image.shape[-space:])
        seen = F.pad(seen, [n for each in reversed(zeros) for n in each])
        out = gradient.shape[-space:]
        shifted: Any = 0
        for tap, place in enumerate(itertools.product(*map(range, kernel))):
            part = seen.select(-space - 1, tap)
            for axis, (at, s, e, o) in enumerate(zip(place, stride, dilation, out, strict=True)):
                part = part.movedim(axis - space, -1)[..., at * e : at * e + (o - 1) * s + 1 : s].movedim(
                    -1, axis - space
                )
            shifted = shifted + part
        maps = full_precision(gradient).unflatten(-space - 1, (groups, -1)).flatten(-space)  # (..., g, p, T)
        weighted = (u.to(maps).view(groups, 1, -1) @ maps).squeeze(-2)
        return (shifted.flatten(-space) * weighted).sum(dtype=torch.float64)

    return probe


def _zeros(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each axis."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [e * (k - 1) for k, e in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((n, n) for n in per_axis(padding, len(kernel)))


_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
for _space, _function in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
    add_rule(
        _function,
        Rule(f"conv{_space}d", _SIGNATURE, ("weight", "bias"), "input", _convolution(_space), probe=_probe(_space)),
    )
