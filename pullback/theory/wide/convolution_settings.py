"""Settings of torch's convolutions, pools and borders, as the pixels they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pullback._checks import unsupported
from pullback.theory.expectations.activations import Array
from pullback.theory.wide.pixels import Places, numbered, padded, window_matrix, windows

MODES = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
_BORDERS = {
    "ZeroPad": "zeros", "CircularPad": "circular", "ReflectionPad": "reflect", "ReplicationPad": "replicate",
}  # fmt: skip


def several(value: Any, axes: int) -> tuple[Any, ...]:
    """A setting for each axis."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes


@dataclass(frozen=True)
class Convolution:
    """Settings of a convolution; ``padding`` is "valid", "same" or numbers by axis."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    mode: str = "zeros"

    def places(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Places, tuple[int, ...]]:
        """Pixels that each output meets, and the outputs' size."""
        axes = len(size)
        dilation, stride = several(self.dilation, axes), several(self.stride, axes)
        if self.padding == "same":
            whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            widths = [(each // 2, each - each // 2) for each in whole]
        elif self.padding == "valid":
            widths = [(0, 0)] * axes
        else:
            widths = [(each, each) for each in several(self.padding, axes)]
        return windows(padded(numbered(size), widths, self.mode), kernel, stride, dilation)


def of_convolution(module: nn.modules.conv._ConvNd) -> Convolution:
    """Of a module."""
    return Convolution(module.stride, module.padding, module.dilation, module.groups, module.padding_mode)


def of_call(
    weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Convolution, Any, Any]:
    """Of a call of ``torch.nn.functional``, without its inputs."""
    return Convolution(stride, padding, dilation, groups), weight, bias


@dataclass(frozen=True)
class Pool:
    """Settings of an average pool."""

    kernel: Any
    stride: Any
    padding: Any
    counts_border: bool
    divisor: int | None

    def matrix(self, size: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        """What it does to pixels, (outputs, pixels), and the outputs' size."""
        axes = len(size)
        kernel = several(self.kernel, axes)
        widths = [(each, each) for each in several(self.padding, axes)]
        image = padded(numbered(size), widths, "zeros")
        places, made = windows(image, kernel, several(self.stride, axes), (1,) * axes)
        inside = (places >= 0).sum(0) if not self.counts_border else np.full(places.shape[1], len(places))
        divisors = inside if self.divisor is None else np.full(places.shape[1], self.divisor)
        return window_matrix(places, image.max() + 1, divisors.astype(np.float64)), made


def of_pool(module: Any) -> Pool:
    """Of a module."""
    return of_pool_call(
        0, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad,
        getattr(module, "divisor_override", None),
    )  # fmt: skip


def of_pool_call(
    axes: int,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Pool:
    """Of a call of ``torch.nn.functional``, without its inputs."""
    if ceil_mode:
        raise unsupported("limit_of", "pooling of whole windows", "ceil_mode=True", "Pad the image, or cut it")
    return Pool(
        kernel_size, kernel_size if stride in (None, ()) else stride, padding, count_include_pad, divisor_override
    )


def is_padding(module: nn.Module | None) -> bool:
    """Whether a module makes a border of zeros, or of the image's own pixels."""
    return type(module).__name__[:-2] in _BORDERS


def padding_mode(module: nn.Module) -> str:
    """Which border a module makes."""
    return _BORDERS[type(module).__name__[:-2]]


def border(size: tuple[int, ...], widths: Sequence[int], mode: str) -> tuple[Places, tuple[int, ...]]:
    """Where the pixels of a bordered image come from; widths as torch has them, last axis first."""
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
    pairs += [(0, 0)] * (len(size) - len(pairs))
    image = padded(numbered(size), pairs[::-1], mode)
    return image.reshape(1, -1), image.shape
