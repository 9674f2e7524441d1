"""Starting weights: the schemes by name, each with its variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pullback._checks import check_option
from pullback._rng import make_generator

SCHEMES = ("default", "he", "xavier", "gaussian", "orthogonal")


def initialise_weights(
    model: nn.Module, scheme: str, *, sigma_w: float = 1.0, sigma_b: float = 0.0, seed: int = 0
) -> nn.Module:
    """Draw the weights of every linear and convolutional layer anew, in place, and return the model.

    Variances: "he" 2 / fan_in, "xavier" 2 / (fan_in + fan_out), "gaussian" sigma_w^2 / fan_in; "orthogonal" makes
    sigma_w times a matrix with orthonormal rows or columns; "default" leaves torch's own draw. Biases are normal
    with standard deviation sigma_b, or zero.

    Args:
        model: any module; layers of other kinds are left alone.
        scheme: one of ``SCHEMES``.
        sigma_w: for "gaussian" and "orthogonal".
        sigma_b: standard deviation of the biases.
        seed: of a generator of its own.

    Raises:
        InputError: an unknown scheme; the message lists them.

    Example:
        >>> layer = initialise_weights(nn.Linear(1000, 1000), "he")
        >>> abs(layer.weight.var().item() * 1000 - 2) < 0.04
        True
    """
    check_option("initialise_weights", "scheme", scheme, SCHEMES)
    generator = make_generator(seed)
    if scheme == "default":
        return model
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            continue
        fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
        scale = {"he": math.sqrt(2), "xavier": math.sqrt(2 * fan_in / (fan_in + fan_out))}.get(scheme, sigma_w)
        draw_weights(module, scale, sigma_b, generator, orthogonal=scheme == "orthogonal")
    return model


@torch.no_grad()
def draw_weights(
    layer: nn.Module, sigma_w: float, sigma_b: float, generator: torch.Generator, *, orthogonal: bool
) -> None:
    """Draw a layer's weights with variance sigma_w^2 / fan_in, or sigma_w times orthonormal ones, and its biases."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    fan_out, fan_in = weight.shape[0], weight[0].numel()
    drawn = torch.randn(fan_out, fan_in, generator=generator, dtype=weight.dtype)
    drawn = sigma_w * _orthonormal(drawn) if orthogonal else drawn.mul_(sigma_w / math.sqrt(fan_in))
    weight.copy_(drawn.view_as(weight))
    if isinstance(bias, Tensor):
        bias.copy_(sigma_b * torch.randn(bias.shape, generator=generator, dtype=weight.dtype))


def _orthonormal(matrix: Tensor) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer, uniformly distributed (signs of R fixed)."""
    tall = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q.T if matrix.shape[0] < matrix.shape[1] else q
