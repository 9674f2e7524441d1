"""Convolutions whose gradients have a derivative in what is passed back, and in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


class LinearConvolutions(TorchFunctionMode):
    """Convolutions whose gradients have a derivative in u alone.

    Torch's own derivative of a convolution's gradient is taken in inputs and weights as well, asked for or not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONVOLUTIONS:
            return _convolved(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}


def _convolved(
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    axes = weight.dim() - 2
    if isinstance(padding, str) or input.dim() != weight.dim():
        return func(input, weight, bias, stride, padding, dilation, groups)
    several = [list(each) if isinstance(each, Sequence) else [each] * axes for each in (stride, padding, dilation)]
    how = (*(each * axes if len(each) == 1 else each for each in several), False, [0] * axes, groups)
    return _Convolution.apply(input, weight, bias, how)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.mask = how, list(ctx.needs_input_grad[:3])
        ctx.bias = None if bias is None else list(bias.shape)
        return _aten.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> Any:
        x, weight = (t.detach() for t in ctx.saved_tensors)
        return *_Gradients.apply(u[0], x, weight, ctx.bias, ctx.mask, ctx.how), None


class _Gradients(Function):
    """Of a convolution: linear in u, whose derivative is the convolution's along changes of all it is given."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, x: Tensor, weight: Tensor, bias: Any, mask: list[bool], how: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.shape = how, u.shape
        ctx.set_materialize_grads(False)
        return _aten.convolution_backward(u, x, weight, bias, *how, mask)

    @staticmethod
    def backward(ctx: Any, *change: Tensor | None) -> Any:
        (x, weight), (dx, dw, db) = ctx.saved_tensors, change
        parts = [] if dx is None else [_aten.convolution(dx, weight, None, *ctx.how)]
        if dw is not None:
            parts.append(_aten.convolution(x, dw, db, *ctx.how))
        elif db is not None:
            parts.append(db.reshape(-1, *[1] * (x.dim() - 2)).expand(ctx.shape))
        return sum(parts[1:], start=parts[0]) if parts else None, None, None, None, None, None
