"""``rank_collapse``: a forward pass that finds the layers, and a second one that measures them as it goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_count, input_error
from pullback.functional.batch import Batch
from pullback.functional.model_view import check_module
from pullback.functional.undisturbed import undisturbed
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.measure.rank_collapse.call_checks import check_dense, checked
from pullback.measure.rank_collapse.collect import Asked, MeasuredNetwork, measured_pass
from pullback.measure.rank_collapse.find import plan_of
from pullback.measure.rank_collapse.means import joined
from pullback.measure.rank_collapse.result import RankCollapse
from pullback.measure.rank_collapse.spec import AttentionSpec

DRAWN = 10  # networks, unless the caller says how many
INPUTS = 2**31  # added to the seed of a network for its inputs, which must not repeat its weights


def rank_collapse(
    model_or_spec: nn.Module | AttentionSpec,
    inputs: Batch | None = None,
    *,
    mask: Tensor | None = None,
    spectrum: bool = True,
    seeds: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> RankCollapse:
    """Whether the tokens of a transformer become one: residual, cosine and ranks behind each layer, and each head's P.

    Attention is read from the operations a forward pass is made of, fused or not, below the model's own code: of any
    model whose tokens are mixed by weights that sum to one, without its ``output_attentions``, and with the outputs it
    has anyway, to the bit. What attends in another way is named in ``unread``. A layer is an element of the list of
    blocks that the attention is in; tokens are what it returns. Padded tokens, to which no row may attend, are left
    out. The predicted counterparts are ``theory.rank_collapse_bound`` and ``theory.token_profile``.

    A model stays in the mode it is in. Nothing of the model or the global random state changes.

    Args:
        model_or_spec: a module, measured as it is; or a specification, of which ``seeds`` networks are drawn.
        inputs: what the model is called with: a tensor, a tuple in order, a mapping by keyword. A tensor alone is
            queries, keys and values of a layer that needs these, as ``nn.MultiheadAttention``. None (specifications
            alone): tokens drawn anew for every network.
        mask: (N, T), True where a token is one, False where it is padding; None to tell by the model's own masks.
        spectrum: whether singular values of P, and the largest of the tokens, are taken: T^3 a head.
        seeds: networks to draw of a specification; None for 10.
        seed: the networks are those of seeds ``seed``, ``seed + 1``, ...
        dtype: of networks made of a specification.

    Returns:
        RankCollapse: one entry a layer.

    Raises:
        InputError: a model without attention that can be read, inputs of one token, a row with nothing to attend to,
            tokens that are not finite, a mask that fits no layer; ``inputs`` that are missing, no tensors, or not what
            the model takes; ``seeds`` for a module. What a model raises itself passes through.
        UnsupportedError: parameters that are spread over processes.

    Cost: two forward passes, and T^2 D a layer for the ranks, T^3 a head for spectra. Matrices are made of one layer
    at a time, a few heads of a sample at once.

    References: Dong, Cordonnier, Loukas (2021), arXiv:2103.03404; Noci et al. (2022), arXiv:2206.03126; Wang et al.
    (2020), arXiv:2006.04768, figure 1.

    Example:
        >>> found = rank_collapse(AttentionSpec(4), seeds=3)
        >>> [f"{r:.0e}" for r in found.log_relative_residual.value.exp()[:3]]
        ['8e-01', '3e-02', '9e-07']
        >>> found.collapsed
        ('3',)
    """
    where = "rank_collapse"
    _check_options(mask, spectrum, seed, dtype, where)
    if not isinstance(model_or_spec, AttentionSpec):
        if seeds is not None:
            raise input_error(where, "`seeds` for a specification alone", f"{seeds} and a module", "Leave it out")
        model = _checked(model_or_spec, where)
        return joined([_one(model, checked(model, inputs, where), Asked(mask, spectrum, where))], where)
    count = DRAWN if seeds is None else seeds
    check_count(where, "seeds", count, 1)
    runs = []
    for number in range(seed, seed + count):
        x = model_or_spec.inputs(number + INPUTS) if inputs is None else _fitting(model_or_spec, inputs, where)
        model = model_or_spec.build(number, dtype).to(x.device)
        runs.append(_one(model, x.to(dtype), Asked(mask, spectrum, where)))
    return joined(runs, where)


def _one(model: nn.Module, inputs: Batch, asked: Asked) -> MeasuredNetwork:
    """One network: what is found by the first pass is measured by the second, with the same random numbers."""
    with undisturbed(model, derivatives=False), torch.no_grad():
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            plan = plan_of(model, inputs, asked.where)
        return measured_pass(model, inputs, plan, asked)


def _checked(model: object, where: str) -> nn.Module:
    """The module that is evaluated; refuses what is none, and what has nothing to evaluate."""
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise input_error(where, "an nn.Module or an AttentionSpec", got, "Pass the model itself")
    check_module(model, where)
    model = unwrap(model)
    if getattr(model.forward, "__func__", None) is nn.Module.forward:
        raise input_error(where, "a model with a forward method", type(model).__name__, "Pass one that can be called")
    refuse_sharded(model, where)
    return model


def _check_options(mask: object, spectrum: object, seed: object, dtype: object, where: str) -> None:
    if mask is not None and not isinstance(mask, Tensor):
        raise input_error(where, "`mask` as a tensor", type(mask).__name__, "Pass torch.as_tensor(mask)")
    if isinstance(mask, Tensor) and (mask.is_meta or not bool(((mask == 0) | (mask == 1)).all())):
        raise input_error(where, "a `mask` of True and False", "other entries", "Pass True where a token is no padding")
    if not isinstance(spectrum, bool):
        raise input_error(where, "`spectrum` True or False", repr(spectrum), "Pass one of them")
    check_count(where, "seed", seed, 0)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise input_error(where, "`dtype` of floating point", repr(dtype), "Pass torch.float32 or torch.float64")


def _fitting(spec: AttentionSpec, inputs: Any, where: str) -> Tensor:
    expected = f"`inputs` (N, {spec.tokens}, {spec.width})"
    fits = isinstance(inputs, Tensor) and inputs.dim() == 3 and inputs.shape[1:] == (spec.tokens, spec.width)
    if not fits:
        got = f"{tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise input_error(where, expected, got, "Pass inputs of the specification's sizes")
    if inputs.is_meta:
        raise input_error(where, "`inputs` of numbers", "shapes alone, on device meta", "Move them to the CPU")
    check_dense(inputs, where)
    return inputs
