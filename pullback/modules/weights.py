"""Starting weights: the schemes by name, each with its variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pullback._checks import check_option, input_error
from pullback._rng import make_generator
from pullback.modules.fan_in import fan_in, fan_out, filters, from_filters, is_linear_map

SCHEMES = ("default", "he", "xavier", "gaussian", "orthogonal")


def initialise_weights(
    model: nn.Module, scheme: str, *, sigma_w: float = 1.0, sigma_b: float = 0.0, seed: int = 0
) -> nn.Module:
    """Draw the weights of every linear and convolutional layer anew, in place, and return the model.

    Variances: "he" 2 / fan_in, "xavier" 2 / (fan_in + fan_out), "gaussian" sigma_w^2 / fan_in; "orthogonal" makes
    sigma_w times a matrix with orthonormal rows or columns, a matrix for each group of a convolution, with a row for
    each filter; "default" leaves torch's own draw. fan_in counts the weights that meet in one output, fan_out those
    that one input meets; both are divided by the stride where a (transposed) convolution meets every stride-th entry of
    its filter only. Biases are normal with standard deviation sigma_b, or zero.

    Args:
        model: any module; layers of other kinds are left alone.
        scheme: one of ``SCHEMES``.
        sigma_w: for "gaussian" and "orthogonal".
        sigma_b: standard deviation of the biases.
        seed: of a generator of its own.

    Raises:
        InputError: an unknown scheme; the message lists them. A deviation below 0. A layer whose weight is no
            parameter of its own.

    Example:
        >>> layer = initialise_weights(nn.Linear(1000, 1000), "he")
        >>> abs(layer.weight.var().item() * 1000 - 2) < 0.04
        True
    """
    check_option("initialise_weights", "scheme", scheme, SCHEMES)
    if not (sigma_w >= 0 and sigma_b >= 0):
        got = f"{sigma_w!r} and {sigma_b!r}"
        raise input_error("initialise_weights", "`sigma_w` and `sigma_b` of at least 0", got, "Pass neither below 0")
    if scheme == "default":
        return model
    layers = layers_of(model, "initialise_weights")
    generator = make_generator(seed)
    for layer in layers.values():
        met, meets = fan_in(layer), fan_out(layer)
        gain = {"he": math.sqrt(2), "xavier": math.sqrt(2 * met / max(met + meets, 1))}.get(scheme, sigma_w)
        scale = gain if scheme == "orthogonal" else gain / math.sqrt(met or 1)  # layers of width 0 have no weights
        draw_weights(layer, scale, sigma_b, generator, orthogonal=scheme == "orthogonal")
    return model


def layers_of(model: nn.Module, where: str) -> dict[str, nn.Module]:
    """Linear and convolutional layers with weights to draw, by name, in the order of ``model.modules()``.

    Raises:
        InputError: a weight that is computed (weight norm, spectral norm, pruning), not there yet (lazy layers) or
            without numbers (the meta device): what is drawn would be lost.
    """
    layers: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if is_linear_map(module)}
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")
        if not isinstance(weight, Tensor):
            got, remedy = "a weight that is computed from others", "Draw first, then add the weight norm or the mask"
        elif isinstance(weight, UninitializedParameter):
            got, remedy = "one without a shape", "Run one batch through the model first"
        elif weight.device.type == "meta":
            got, remedy = "one on the meta device", "Move the model to a device with model.to_empty first"
        else:
            continue
        raise input_error(where, f"a weight in layer `{name}` that can be drawn", got, remedy)
    return layers


def draw_weights(
    layer: nn.Module, scale: float, sigma_b: float, generator: torch.Generator, *, orthogonal: bool
) -> None:
    """Draw a layer's weights, normal with this standard deviation or this times orthonormal ones, and its biases."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    dtype = torch.promote_types(weight.dtype, torch.float32)  # half precision has no QR decomposition
    shape = filters(layer, weight).shape
    drawn = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    with torch.inference_mode(weight.is_inference()), torch.no_grad():  # what is made in it is written to in it alone
        weight.copy_(from_filters(layer, scale * (_orthonormal(drawn) if orthogonal else drawn), weight))
        if isinstance(bias, Tensor):
            bias.copy_(sigma_b * torch.randn(bias.shape, generator=generator, dtype=dtype, device=generator.device))


def _orthonormal(matrices: Tensor) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer, uniformly distributed (signs of R fixed)."""
    wide = matrices.shape[-2] < matrices.shape[-1]
    q, r = torch.linalg.qr(matrices.mT if wide else matrices)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q.mT if wide else q
