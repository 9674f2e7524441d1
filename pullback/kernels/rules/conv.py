"""Convolutions in one to three dimensions: stride, padding, dilation and groups.

As a sum of outer products the inputs are the unfolded patches; they are unfolded only where they are needed. With
one output a sample the materialised form uses the library's own weight gradient, batched by vmap, which is several
times faster than unfolding; with more outputs all of them share the patches and one product makes their rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from pullback.kernels.factors import Contract, Form, Piece, gram_flops, output_pairs
from pullback.kernels.outer import GhostPiece, OuterFactor, combine
from pullback.kernels.rules.registry import Arguments, Call, Probe, Rule, Source, add_rule, full_precision

_WEIGHT_GRADIENT: dict[int, Callable[..., Tensor]] = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}
_BLOCK_NUMBERS = 2**22  # unfolded inputs formed at a time: 16 MB in float32, near the size of the caches


@dataclass(frozen=True)
class ConvFactor(OuterFactor):
    """Rows of a convolution's weight.

    ``inputs`` is the padded image (N, b, g d', *space) with b images per sample; ``gradients`` is the
    (N, C, T, g, p) view of ``maps``, the output gradient (N, C, b, g p, *out).
    """

    maps: Tensor = None  # type: ignore[assignment]
    settings: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # stride, dilation

    piece_bytes = 128 * 2**20  # a convolution with few output channels is slow

    @property
    def space(self) -> int:
        """Dimensions of an image."""
        return len(self.settings[0])

    def tensors(self) -> dict[str, Tensor]:
        return {"inputs": self.inputs, "maps": self.maps}

    def with_tensors(self, tensors: dict[str, Tensor]) -> ConvFactor:
        changed = {"inputs": self.inputs, "maps": self.maps} | tensors
        views = positions(changed["maps"], self.gradients.shape[3], self.space)
        return ConvFactor(
            changed["inputs"],
            views,
            self.weight,
            self.bias,
            self.weight_shape,
            maps=changed["maps"],
            settings=self.settings,
        )

    def blocks(self, count: int) -> Iterator[slice]:
        T, g, d, _ = self.dims
        step = max(1, _BLOCK_NUMBERS // max(1, T * g * d))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def left(self, index: slice) -> Tensor:
        image = self.inputs[index]
        stride, dilation = self.settings
        kernel, out = self.weight_shape[2:], self.maps.shape[4:]
        n, b = image.shape[:2]
        patches = image.unflatten(2, (self.gradients.shape[3], -1))  # (n, b, g, c, *space)
        for axis, (k, s, e, o) in enumerate(zip(kernel, stride, dilation, out, strict=True)):
            windows = patches.unfold(4 + axis, (k - 1) * e + 1, s)[..., ::e]  # position axis stays, taps go last
            patches = windows.narrow(4 + axis, 0, o)
        order = (0, 1, *range(4, 4 + self.space), 2, 3, *range(4 + self.space, 4 + 2 * self.space))
        return patches.permute(order).reshape(n, b * out.numel(), self.gradients.shape[3], -1)

    def transposed_left(self, index: slice) -> Tensor:
        image = self.inputs[index]
        if self.space != 2 or image.shape[1] != 1:
            return super().transposed_left(index)
        stride, dilation = self.settings
        patches = F.unfold(image[:, 0], self.weight_shape[2:], dilation, 0, stride)  # (n, g d, T)
        return patches.unflatten(1, (self.gradients.shape[3], -1))

    def outer(self, index: slice, outputs: slice) -> Tensor:
        if self.num_outputs > 1:
            return super().outer(index, outputs)
        g, p = self.gradients.shape[3:]
        maps = self.maps[index][:, 0].unflatten(2, (g, p))[:, :, :, outputs]
        p = maps.shape[3]
        shape = torch.Size([g * p, *self.weight_shape[1:]])
        stride, dilation = self.settings
        gradient = _WEIGHT_GRADIENT[self.space]

        def one(image: Tensor, output_gradient: Tensor) -> Tensor:
            return gradient(image, shape, output_gradient, stride, 0, dilation, g)

        weight = torch.func.vmap(one)(self.inputs[index].contiguous(), maps.flatten(2, 3).contiguous())
        return weight.reshape(len(weight), 1, g, p, -1)

    # Stride one: A A^T is a sum over taps of shifted Gram matrices of pixels, so nothing is unfolded.
    def forms(self) -> tuple[Form, ...]:
        whole = self.weight is not None and all(s == 1 for s in self.settings[0]) and self.inputs.shape[1] == 1
        return (*super().forms(), "shift") if whole and math.prod(self.weight_shape[2:]) > 1 else super().forms()

    def flops(self, form: Form, n1: int, n2: int | None, contract: Contract = "full") -> float:
        if form != "shift":
            return super().flops(form, n1, n2, contract)
        T, g, d, p = self.dims
        taps = math.prod(self.weight_shape[2:])
        pixels = math.prod(self.inputs.shape[3:])
        each = pixels**2 * (d / taps) + T**2 * (taps + 1 + output_pairs(self.num_outputs, contract) * p)
        return gram_flops(n1, n2) * g * each

    def pieces(self, form: Form, max_numbers: int) -> Iterator[Piece]:
        if form == "shift":
            yield ShiftPiece(self)
        else:
            yield from super().pieces(form, max_numbers)


@dataclass(frozen=True)
class ShiftPiece(GhostPiece):
    """Tiles in which ``(A_i A_j^T)_ts = sum over taps k of (X_i X_j^T)[t + k, s + k]``, X the pixels."""

    factor: ConvFactor

    def tile(self, out: Tensor, rows: slice, other: Piece, columns: slice, contract: Contract, *, add: bool) -> None:
        assert isinstance(other, ShiftPiece)
        x1, x2 = self.factor.inputs[rows][:, 0], other.factor.inputs[columns][:, 0]  # (n, g c, *space)
        d1, d2 = self.factor.right(rows), other.factor.right(columns)
        groups = d1.shape[3]
        for k in range(groups):
            inner = self._shifted(x1.unflatten(1, (groups, -1))[:, k], x2.unflatten(1, (groups, -1))[:, k], other)
            if self.factor.bias is not None:
                inner += 1
            combine(out, inner, d1[:, :, :, k], d2[:, :, :, k], contract, unit=False, add=add or k > 0)

    def _shifted(self, x1: Tensor, x2: Tensor, other: ShiftPiece) -> Tensor:
        """(n1, c, *space) and (n2, c, *space) to A A^T, (n1, T, n2, S)."""
        space1, space2 = x1.shape[2:], x2.shape[2:]
        left, right = x1.flatten(2).transpose(1, 2), x2.flatten(2).transpose(1, 2)  # (n, pixels, c)
        pixels = (left.flatten(0, 1) @ right.flatten(0, 1).T).view(len(x1), *space1, len(x2), *space2)
        out1, out2 = self.factor.maps.shape[4:], other.factor.maps.shape[4:]
        inner = pixels.new_zeros(len(x1), *out1, len(x2), *out2)
        for tap in torch.cartesian_prod(*[torch.arange(k) for k in self.factor.weight_shape[2:]]).reshape(
            -1, self.factor.space
        ):
            shifted = pixels
            for axis, (place, e) in enumerate(zip(tap.tolist(), self.factor.settings[1], strict=True)):
                shifted = shifted.narrow(1 + axis, place * e, out1[axis])
                shifted = shifted.narrow(2 + self.factor.space + axis, place * e, out2[axis])
            inner += shifted
        return inner.view(len(x1), out1.numel(), len(x2), out2.numel())


def positions(maps: Tensor, groups: int, space: int) -> Tensor:
    """(N, C, b, g p, *out) to (N, C, T, g, p); T runs over the images of a sample and their pixels."""
    split = maps.unflatten(3, (groups, -1)).flatten(5)  # (N, C, b, g, p, pixels)
    return split.permute(0, 1, 2, 5, 3, 4).flatten(2, 3)


def per_axis(value: Any, space: int) -> tuple[int, ...]:
    """One number, or one an axis, as one an axis."""
    return (value,) * space if isinstance(value, int) else tuple(value) * (space if len(value) == 1 else 1)


def _convolution(space: int) -> Callable[[Call], OuterFactor]:
    def build(call: Call) -> OuterFactor:
        arguments = call.arguments
        weight = arguments["weight"]
        groups = arguments.get("groups", 1)
        stride = per_axis(arguments.get("stride", 1), space)
        dilation = per_axis(arguments.get("dilation", 1), space)
        image = full_precision(call.samples(arguments["input"]))  # (N, b, c, *space), or (N, c, *space) unbatched
        maps = full_precision(call.gradient)
        if image.dim() == space + 2:
            image, maps = image.unsqueeze(1), maps.unsqueeze(2)
        if any(padding := _padding(arguments.get("padding", 0), weight.shape[2:], dilation)):
            image = F.pad(image, padding)
        return ConvFactor(
            inputs=image,
            gradients=positions(maps, groups, space),
            weight=call.names.get("weight"),
            bias=call.names.get("bias"),
            weight_shape=weight.shape,
            maps=maps,
            settings=(stride, dilation),
        )

    return build


def _probe(space: int) -> Probe:
    function = (F.conv1d, F.conv2d, F.conv3d)[space - 1]

    def probe(
        argument: str, source: Source, arguments: Arguments, gradient: Tensor, u: Tensor, v: Tensor
    ) -> Tensor | None:
        """``<dL/dW, u v^T>``: the output gradients summed with u over channels, times the image of the one filter v."""
        if argument != "weight":
            return None
        groups, image = arguments.get("groups", 1), full_precision(arguments["input"])
        filters = v.to(image).view(1, *source.shape[1:]).expand(groups, *source.shape[1:])
        rest = {k: arguments[k] for k in ("stride", "padding", "dilation", "groups") if k in arguments}
        seen = function(image, filters, None, **rest)  # (..., g, *out)
        maps = full_precision(gradient).unflatten(-space - 1, (groups, -1))  # (..., g, p, *out)
        weighted = torch.einsum("...gpt,gp->...gt", maps.flatten(-space), u.to(maps).view(groups, -1))
        return (seen.flatten(-space) * weighted).sum(dtype=torch.float64)

    return probe


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Zeros before and after each axis, last axis first, as ``F.pad`` wants them."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [e * (k - 1) for k, e in zip(kernel, dilation, strict=True)]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    return [n for each in reversed(per_axis(padding, len(kernel))) for n in (each, each)]


_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
for _space, _function in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
    add_rule(
        _function,
        Rule(f"conv{_space}d", _SIGNATURE, ("weight", "bias"), "input", _convolution(_space), probe=_probe(_space)),
    )
