"""Rows of a convolution: outer products of patches and output gradients, or sums over shifts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from pullback.gradients.rows.combine import combine
from pullback.gradients.rows.contract import Contract, Form, Products, Work
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.outer import GhostPiece, OuterFactor
from pullback.gradients.rows.pieces import Piece, dense_pieces

_WEIGHT_GRADIENT: dict[int, Callable[..., Tensor]] = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


_BLOCK_NUMBERS = 2**22  # unfolded inputs formed at a time: 16 MB in float32, near the size of the caches


_LARGE_MAP = 512  # positions from which the library's weight gradient is faster than patches (measured on CPUs)


Settings = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]  # stride, dilation, zeros around


@dataclass(frozen=True)
class ConvFactor(OuterFactor):
    """Rows of a convolution's weight.

    ``inputs`` is the image (N, b, g d', *space) with b images per sample, without the zeros around it;
    ``gradients`` is the (N, C, T, g, p) view of ``maps``, the output gradient (N, C, b, g p, *out).
    """

    maps: Tensor = None  # type: ignore[assignment]
    settings: Settings = ((), (), ())

    piece_bytes = 128 * 2**20  # a convolution with few output channels is slow

    @property
    def space(self) -> int:
        """Dimensions of an image."""
        return len(self.settings[0])

    @property
    def by_patches(self) -> bool:
        """Whether rows are made from patches, and their numbers ordered (g, d, p), not (g, p, d)."""
        whole = self.inputs.shape[1] == 1 and self.gradients.shape[3] == 1
        return whole and (self.num_outputs > 1 or self.maps.shape[4:].numel() < _LARGE_MAP)

    def tensors(self) -> dict[str, Tensor]:
        return {"inputs": self.inputs, "maps": self.maps}

    def with_tensors(self, tensors: dict[str, Tensor]) -> ConvFactor:
        changed = {"inputs": self.inputs, "maps": self.maps} | tensors
        inputs, maps = changed["inputs"], changed["maps"]
        return replace(self, inputs=inputs, maps=maps, gradients=positions(maps, self.gradients.shape[3]))

    def temporary_bytes(self, n: int, piece_bytes: int) -> int:
        if self.by_patches:
            T, _, d, _ = self.dims
            return 2 * min(_BLOCK_NUMBERS, n * T * d) * self.element_size
        maps = self.inputs[0].numel() + self.maps[0].numel()
        return piece_bytes + n * maps * self.element_size  # the library's own copies

    def padded(self, image: Tensor) -> Tensor:
        """Images with the zeros around them."""
        around = [n for each in reversed(self.settings[2]) for n in each]
        return F.pad(image, around) if any(around) else image

    def blocks(self, count: int) -> Iterator[slice]:
        T, g, d, _ = self.dims
        step = max(1, _BLOCK_NUMBERS // max(1, T * g * d))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def left(self, index: slice) -> Tensor:
        image = self.padded(self.inputs[index])
        stride, dilation, _ = self.settings
        kernel, out = self.weight_shape[2:], self.maps.shape[4:]
        n, b = image.shape[:2]
        patches = image.unflatten(2, (self.gradients.shape[3], -1))  # (n, b, g, c, *space)
        for axis, (k, s, e, o) in enumerate(zip(kernel, stride, dilation, out, strict=True)):
            windows = patches.unfold(4 + axis, (k - 1) * e + 1, s)[..., ::e]  # position axis stays, taps go last
            patches = windows.narrow(4 + axis, 0, o)
        order = (0, 1, *range(4, 4 + self.space), 2, 3, *range(4 + self.space, 4 + 2 * self.space))
        return patches.permute(order).reshape(n, b * out.numel(), self.gradients.shape[3], -1)

    def patches(self, index: slice, channels: slice, out: Tensor) -> Tensor:
        """A of some channels, transposed: (n, d', T), at the start of ``out``; one image a sample, one group."""
        stride, dilation, zeros = self.settings
        kernel = self.weight_shape[2:]
        image = self.inputs[index][:, 0, channels]
        out = out[: len(image)]
        if self.space == 2 and all(before == after for before, after in zeros):
            around = [before for before, _ in zeros]
            return torch.ops.aten.im2col.out(image, kernel, dilation, around, stride, out=out)
        shape = torch.Size([len(self.weight_shape), image.shape[1], *kernel])
        part = replace(self, inputs=image.unsqueeze(1), weight_shape=shape)
        return out.copy_(part.left(slice(0, len(image)))[:, :, 0].transpose(1, 2))

    def _weight_pieces(self, name: str, max_numbers: int) -> Iterator[Piece]:
        """From patches: some input channels at a time, so that each patch is formed once."""
        if not self.by_patches:
            yield from super()._weight_pieces(name, max_numbers)
            return
        T, _, d, p = self.dims
        taps, C = self.weight_shape[2:].numel(), self.num_outputs
        step = max(1, max_numbers // (taps * p * C))
        maps = self.maps[:, :, 0].flatten(3).flatten(1, 2)  # (N, C p, T)
        for start in range(0, d // taps, step):
            channels = slice(start, min(start + step, d // taps))
            count = (channels.stop - channels.start) * taps
            block = maps.new_empty(self.num_samples, count, C * p)
            parts = list(self.blocks_of(T * count))
            work = maps.new_empty(parts[0].stop, count, T)  # one for all parts: fresh memory is dear
            for part in parts:
                torch.bmm(self.patches(part, channels, work), maps[part].mT, out=block[part])  # (n', d', C p)
            del work
            rows = block.view(-1, count, C, p).transpose(1, 2).flatten(2)  # (N, C, d' p)
            del block
            yield from dense_pieces(name, start * taps * p, rows)
            del rows

    def blocks_of(self, numbers: int) -> Iterator[slice]:
        """Stretches of samples with ``numbers`` unfolded numbers each."""
        step = max(1, _BLOCK_NUMBERS // max(1, numbers))
        for start in range(0, self.num_samples, step):
            yield slice(start, min(start + step, self.num_samples))

    def piece_order(self, name: str, value: Tensor) -> Tensor:
        if name == self.weight and self.by_patches:
            return value.reshape(len(value), -1).T.reshape(-1)
        return super().piece_order(name, value)

    def condensed(self) -> Factor:
        """Formed from patches without unfolding them a second time in another order."""
        if not self.by_patches:
            return super().condensed()
        T, _, d, p = self.dims
        maps = self.maps[:, :, 0].flatten(3).flatten(1, 2)  # (N, C p, T)
        rows = maps.new_empty(self.num_samples, self.num_outputs * p, d)
        parts = list(self.blocks_of(T * d))
        work = maps.new_empty(parts[0].stop, d, T)
        for part in parts:
            torch.bmm(maps[part], self.patches(part, slice(None), work).mT, out=rows[part])
        made = {self.weight: rows.view(self.num_samples, self.num_outputs, *self.weight_shape)}
        return DenseFactor(made | ({} if self.bias is None else {self.bias: self.bias_rows(slice(None))}))

    def outer(self, index: slice, outputs: slice) -> Tensor:
        if self.num_outputs > 1 or self.by_patches:
            return super().outer(index, outputs)
        g, p = self.gradients.shape[3:]
        maps = self.maps[index][:, 0].unflatten(2, (g, p))[:, :, :, outputs]
        p = maps.shape[3]
        shape = torch.Size([g * p, *self.weight_shape[1:]])
        stride, dilation, zeros = self.settings
        gradient = _WEIGHT_GRADIENT[self.space]
        even = all(before == after for before, after in zeros)
        around = tuple(before for before, _ in zeros) if even else 0

        def one(image: Tensor, output_gradient: Tensor) -> Tensor:
            return gradient(image, shape, output_gradient, stride, around, dilation, g)

        images = self.inputs[index] if even else self.padded(self.inputs[index])
        weight = torch.func.vmap(one)(images.contiguous(), maps.flatten(2, 3).contiguous())
        return weight.reshape(len(weight), 1, g, p, -1)

    # Stride one: A A^T is a sum over taps of shifted Gram matrices of pixels, so nothing is unfolded.
    @property
    def forms(self) -> tuple[Form, ...]:  # type: ignore[override]
        whole = all(s == 1 for s in self.settings[0]) and self.inputs.shape[1] == 1
        shifts = whole and math.prod(self.weight_shape[2:]) > 1
        return (*OuterFactor.forms, "shift") if shifts else OuterFactor.forms

    def work(self, form: Form, asked: Products) -> Work:
        if form != "shift":
            return super().work(form, asked)
        _, g, d, p = self.dims
        T, pairs = self.positions(form), asked.pairs
        taps = math.prod(self.weight_shape[2:])
        pixels = math.prod(n + sum(z) for n, z in zip(self.inputs.shape[3:], self.settings[2], strict=True))
        products = pixels**2 * (d / taps) + T**2 * (taps + 1 + pairs * p)
        each = asked.flops * g
        return Work(gemm=each * products, stream=each / 2 * T * T * (pairs + taps))

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
        x1, x2 = (f.padded(f.inputs[part][:, 0]) for f, part in ((self.factor, rows), (other.factor, columns)))
        d1, d2 = self.factor.right(rows), other.factor.right(columns)
        groups = d1.shape[3]
        for k in range(groups):
            inner = self._shifted(x1.unflatten(1, (groups, -1))[:, k], x2.unflatten(1, (groups, -1))[:, k], other)
            plus = self.factor.bias is not None
            combine(out, inner, (d1[:, :, :, k], d2[:, :, :, k]), contract, plus, unit=False, add=add or k > 0)

    def _shifted(self, x1: Tensor, x2: Tensor, other: ShiftPiece) -> Tensor:
        """(n1, c, *space) and (n2, c, *space) to A A^T, (n1, T, n2, S)."""
        space1, space2 = x1.shape[2:], x2.shape[2:]
        left, right = x1.flatten(2).transpose(1, 2), x2.flatten(2).transpose(1, 2)  # (n, pixels, c)
        pixels = (left.flatten(0, 1) @ right.flatten(0, 1).T).view(len(x1), *space1, len(x2), *space2)
        out1, out2 = self.factor.maps.shape[4:], other.factor.maps.shape[4:]
        inner = pixels.new_zeros(len(x1), *out1, len(x2), *out2)
        for tap in torch.cartesian_prod(*[torch.arange(k, device="cpu") for k in self.factor.weight_shape[2:]]).reshape(
            -1, self.factor.space
        ):
            shifted = pixels
            for axis, (place, e) in enumerate(zip(tap.tolist(), self.factor.settings[1], strict=True)):
                shifted = shifted.narrow(1 + axis, place * e, out1[axis])
                shifted = shifted.narrow(2 + self.factor.space + axis, place * e, out2[axis])
            inner += shifted
        return inner.view(len(x1), out1.numel(), len(x2), out2.numel())


def positions(maps: Tensor, groups: int) -> Tensor:
    """(N, C, b, g p, *out) to (N, C, T, g, p); T runs over the images of a sample and their pixels."""
    split = maps.unflatten(3, (groups, -1)).flatten(5)  # (N, C, b, g, p, pixels)
    return split.permute(0, 1, 2, 5, 3, 4).flatten(2, 3)
