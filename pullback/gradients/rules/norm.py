"""Normalisation layers: the rows are small, ``sum_t D_it * xhat_it`` and ``sum_t D_it``, and are formed at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor
from pullback.gradients.rules.registry import Call, Rule, add_rule


def _rows(call: Call, normalised: Tensor, axes: tuple[int, ...], scale: Tensor | None = None) -> DenseFactor:
    """Rows of scale and shift, (N, C, *shape); ``axes`` are the positions in the normalised input (N, ...).

    With ``scale`` the input is only centred, and the scale is still to be multiplied in.
    """
    gradient = full_precision(call.gradient)  # (N, C, ...)
    axes = tuple(axis + 1 for axis in axes)
    rows = {}
    if "weight" in call.names:
        product = gradient * normalised.unsqueeze(1)
        summed = product.sum(axes) if axes else product
        rows[call.names["weight"]] = summed if scale is None else summed * scale
    if "bias" in call.names:
        rows[call.names["bias"]] = gradient.sum(axes) if axes else gradient
    return DenseFactor(rows)


def _input(call: Call) -> Tensor:
    return full_precision(call.samples(call.arguments["input"]))  # (N, *shape for a batch of one)


def _positions(x: Tensor, features: int) -> tuple[int, ...]:
    """Axes between the samples and the last ``features`` axes."""
    return tuple(range(1, x.dim() - features))


def _layer_norm(call: Call) -> DenseFactor:
    x, shape = _input(call), tuple(call.arguments["normalized_shape"])
    normalised = F.layer_norm(x, shape, eps=call.arguments.get("eps", 1e-5))
    return _rows(call, normalised, _positions(x, len(shape)))


def _rms_norm(call: Call) -> DenseFactor:
    x, shape = _input(call), tuple(call.arguments["normalized_shape"])
    eps = call.arguments.get("eps")
    if eps is None:  # torch takes the machine epsilon of the input's own dtype
        eps = torch.finfo(call.arguments["input"].dtype).eps
    return _rows(call, F.rms_norm(x, shape, eps=eps), _positions(x, len(shape)))


def _per_channel(call: Call, normalised: Tensor, scale: Tensor | None = None) -> DenseFactor:
    """Channels are axis 2 of (N, 1, channels, ...): everything else is a position."""
    axes = tuple(axis for axis in range(1, normalised.dim()) if axis != 2)
    return _rows(call, normalised, axes, scale)


def _group_norm(call: Call) -> DenseFactor:
    x = _input(call)
    normalised = F.group_norm(x.flatten(0, 1), call.arguments["num_groups"], eps=call.arguments.get("eps", 1e-5))
    return _per_channel(call, normalised.view_as(x))


def _instance_norm(call: Call) -> DenseFactor:
    x = _input(call)
    return _per_channel(call, F.instance_norm(x.flatten(0, 1), eps=call.arguments.get("eps", 1e-5)).view_as(x))


def _batch_norm(call: Call) -> DenseFactor:
    """Running statistics only: train mode is refused when the call is seen."""
    x = _input(call)
    arguments = call.arguments
    shape = (-1, *[1] * (x.dim() - 3))
    mean, variance = (full_precision(arguments[k]).view(shape) for k in ("running_mean", "running_var"))
    scale = (variance + arguments.get("eps", 1e-5)).rsqrt().view(-1)
    return _per_channel(call, x - mean, scale)  # the scale goes to the sums: one pass less over the data


_AFFINE = ("weight", "bias")
add_rule(
    F.layer_norm,
    Rule("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps"), _AFFINE, "input", _layer_norm),
)
add_rule(
    F.rms_norm,
    Rule("rms_norm", ("input", "normalized_shape", "weight", "eps"), ("weight",), "input", _rms_norm),
)
add_rule(
    F.group_norm,
    Rule("group_norm", ("input", "num_groups", "weight", "bias", "eps"), _AFFINE, "input", _group_norm),
)
add_rule(
    F.instance_norm,
    Rule(
        "instance_norm",
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
        _AFFINE,
        "input",
        _instance_norm,
        lambda arguments: bool(arguments.get("use_input_stats", True)),
    ),
)
add_rule(
    F.batch_norm,
    Rule(
        "batch_norm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _AFFINE,
        "input",
        _batch_norm,
    ),
)
