"""How many weights meet in one output of a layer, and the matrices its weights are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Transposed = nn.modules.conv._ConvTransposeNd
TURNED = ("transformers.pytorch_utils", "Conv1D")  # GPT-2's linear layer, weights (inputs, outputs)


def is_turned(layer: nn.Module) -> bool:
    """Whether it is that linear layer of Hugging Face, which is no ``nn.Linear``."""
    return any((kind.__module__, kind.__name__) == TURNED for kind in type(layer).__mro__)


def is_linear_map(layer: nn.Module) -> bool:
    """Whether a layer is linear or convolutional, with weights to draw."""
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or is_turned(layer)


def fan_in(layer: nn.Module, sizes: Sequence[tuple[Sequence[int], Sequence[int]]] = ()) -> float:
    """Weights that meet in one output, so that weights of variance 1 / fan_in keep mean squares.

    Linear: the inputs. Convolution: inputs of the group times entries of the filter. Transposed convolution: the same
    divided by the stride in every direction, since an output meets every stride-th entry of a filter only.

    Args:
        layer: linear, convolutional or transposed convolutional.
        sizes: (inputs, outputs) along the axes of the filter, of every call. The mean over outputs is then exact,
            without the entries of filters that fall on zero padding; without sizes maps are taken for infinitely large.

    Example:
        >>> fan_in(nn.Conv2d(8, 4, 3, padding=1, groups=2)), fan_in(nn.ConvTranspose2d(8, 4, 4, stride=2))
        (36.0, 32.0)
        >>> fan_in(nn.Conv2d(8, 4, 3, padding=1), [((1, 1), (1, 1))])  # all but the middle of the filter sees zeros
        8.0
    """
    if isinstance(layer, nn.Linear):
        return float(layer.in_features)
    if is_turned(layer):
        return float(layer.get_parameter("weight").shape[0])
    assert isinstance(layer, nn.modules.conv._ConvNd)
    met = [math.prod(_met(layer, axis, *pair) for axis, pair in enumerate(zip(*each, strict=True))) for each in sizes]
    if not met:
        whole = math.prod(layer.kernel_size)
        met = [whole / math.prod(layer.stride) if isinstance(layer, Transposed) else whole]
    return layer.in_channels // layer.groups * sum(met) / len(met)


def fan_out(layer: nn.Module) -> float:
    """Weights that one input meets: ``fan_in`` of the way back."""
    if isinstance(layer, nn.Linear):
        return float(layer.out_features)
    if is_turned(layer):
        return float(layer.get_parameter("weight").shape[1])
    assert isinstance(layer, nn.modules.conv._ConvNd)
    whole = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    return float(whole if isinstance(layer, Transposed) else whole / math.prod(layer.stride))


def filters(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weights as (groups, outputs, inputs times entries of the filter), a view or a copy."""
    if isinstance(layer, nn.Linear):
        return weight.unsqueeze(0)
    if is_turned(layer):
        return weight.T.unsqueeze(0)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    grouped = weight.unflatten(0, (layer.groups, -1))
    return (grouped.transpose(1, 2) if isinstance(layer, Transposed) else grouped).flatten(2)


def from_filters(layer: nn.Module, matrices: Tensor, weight: Tensor) -> Tensor:
    """``filters`` undone: a tensor of the shape of ``weight``."""
    if is_turned(layer):
        return matrices[0].T
    if isinstance(layer, Transposed):
        groups, outputs, _ = matrices.shape
        inputs, _, *kernel = weight.shape
        return matrices.reshape(groups, outputs, inputs // groups, *kernel).transpose(1, 2).reshape(weight.shape)
    return matrices.reshape(weight.shape)


def _met(layer: nn.modules.conv._ConvNd, axis: int, inputs: int, outputs: int) -> float:
    """Entries of the filter that meet data along one axis, mean over the outputs."""
    k, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    if layer.padding_mode != "zeros" or layer.padding == "valid":  # other modes pad the inputs before the call
        padding = 0
    elif layer.padding == "same":
        padding = dilation * (k - 1) // 2
    else:
        assert not isinstance(layer.padding, str)
        padding = layer.padding[axis]
    shorter, longer = (inputs, outputs) if isinstance(layer, Transposed) else (outputs, inputs)
    met = torch.arange(shorter, device="cpu").unsqueeze(1) * stride - padding + torch.arange(k, device="cpu") * dilation
    return float(((met >= 0) & (met < longer)).sum()) / outputs
