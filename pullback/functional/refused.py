"""Calls in which a sample has no gradient of its own: samples are coupled by the batch, or dropout is random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pullback._checks import unsupported
from pullback.functional.repeatable import coupling_norm, in_train_mode
from pullback.functional.walk import parts_of

Arguments = dict[str, Any]

_EVAL = "Call model.eval() first"
_DROPOUT = (
    ("input", "p", "training"),
    lambda a: a.get("training", True) and a.get("p", 0.5) > 0,
    "dropout in train mode",
    _EVAL,
)
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training")
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p")
_PACKED_ATTENTION = (
    *("query", "key", "value", "embed_dim", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training"),
)
_BY_FREQUENCY = (  # the third argument, which embeddings and bags call differently, is not read
    ("input", "weight", "", "max_norm", "norm_type", "scale_grad_by_freq"),
    lambda a: bool(a.get("scale_grad_by_freq", False)) and a["weight"].requires_grad,
    "gradients divided by the counts of tokens in the batch (`scale_grad_by_freq`)",
    "Set scale_grad_by_freq=False on that layer",
)
_REFUSED: dict[Callable[..., Any], tuple[tuple[str, ...], Callable[[Arguments], bool], str, str]] = {
    F.batch_norm: (
        _BATCH_NORM,
        lambda a: bool(a.get("training", False)),
        "batch norm in train mode",
        f"{_EVAL}, or pb.frozen_batch_norm(model, x) to hold a batch's statistics fixed",
    ),
    F.scaled_dot_product_attention: (
        _ATTENTION,
        lambda a: a.get("dropout_p", 0.0) > 0,
        "attention dropout in train mode",
        _EVAL,
    ),
    F.multi_head_attention_forward: (
        _PACKED_ATTENTION,
        lambda a: bool(a.get("training", True)) and a.get("dropout_p", 0.0) > 0,
        "attention dropout in train mode",
        _EVAL,
    ),
    F.embedding: _BY_FREQUENCY,
    F.embedding_bag: _BY_FREQUENCY,
}
_REFUSED |= dict.fromkeys(
    (
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
        *(torch.dropout_, torch.alpha_dropout, torch.feature_dropout),
    ),
    _DROPOUT,
)


def refuse(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layers: Callable[[], dict[int, str]],
    where: str,
) -> None:
    """Raise for a call that couples samples or draws random numbers; ``layers``: returns tensor id -> layer."""
    if func not in _REFUSED:
        return
    signature, is_active, what, remedy = _REFUSED[func]
    arguments = dict(zip(signature, args, strict=False)) | kwargs
    if is_active(arguments):
        if func is F.batch_norm and arguments.get("running_mean") is None:
            what = "batch norm without running statistics (track_running_stats=False)"
            remedy = (
                "Use pb.frozen_batch_norm(model, x) to hold a batch's statistics fixed, or track_running_stats=True"
            )
        known = layers()
        layer = next((known[id(a)] for a in arguments.values() if id(a) in known), None)
        raise unsupported(
            where,
            "a model in which each sample's gradient is its own",
            what + (f" in layer `{layer}`" if layer else ""),
            remedy,
        )


def refuse_recurrent_dropout(model: nn.Module, where: str) -> None:
    """Recurrent layers apply their dropout inside one fused call, so it is looked up on the module."""
    bad = {part for part in parts_of(model) if isinstance(part, nn.RNNBase) and part.training and part.dropout > 0}
    for name, module in model.named_modules() if bad else ():
        if module in bad:
            raise unsupported(
                where,
                "a model in which each sample's gradient is its own",
                f"dropout in train mode in layer `{name}`",
                "Call model.eval() first",
            )


def refuse_random_and_coupled(model: nn.Module, where: str) -> None:
    """Refuse layers that draw random numbers or mix the samples of a batch as they stand."""
    for module in parts_of(model):
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise coupling_norm(where, _name_of(module, model), tracked=module.running_mean is not None)
        rate = getattr(module, "p", 0) if isinstance(module, _DropoutNd) else 0
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            rate = module.dropout
        if module.training and rate > 0:
            raise in_train_mode(where, "dropout", _name_of(module, model), "Call model.eval()")


def _name_of(module: nn.Module, model: nn.Module) -> str:
    """The first name of a module within a model."""
    return next(name for name, each in model.named_modules() if each is module)
