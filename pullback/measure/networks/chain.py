"""A network as a chain of maps between activations, for what is measured layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional.batch import Batch
from pullback.functional.model_view import ModelView
from pullback.functional.target_checks import logits_of
from pullback.measure.networks.layer_outputs import caught, has_matrix, is_transformed
from pullback.operators.layer_jacobians import chain_of


@dataclass(frozen=True)
class Signals:
    """Activations of a batch of N and the derivatives of the C outputs in them.

    Attributes:
        layers: names of what was differentiated in: all activations but the inputs and the outputs themselves.
        maximum: max_i |df_c/da_i| of every layer, (L, N, C).
        length: |df_c/da|_2, (L, N, C).
        maps: the chain, and the inputs of each of its maps (N, ...); empty where the model is no chain.
        hidden: how many of ``layers`` are before the read-out; those behind it are output neurons.
    """

    layers: tuple[str, ...]
    maximum: Tensor
    length: Tensor
    maps: tuple[tuple[nn.Module, Tensor], ...]
    hidden: int


def signals_of(model: nn.Module, x: Batch, count: int, where: str) -> Signals:
    """Of a chain (``layer_maps()``, ``nn.Sequential``) its activations; of others what layers with a matrix return."""
    maps = maps_of(model, where) if isinstance(x, Tensor) else None
    with torch.enable_grad():
        if maps is None or not isinstance(x, Tensor):
            with caught(model, count, where) as found:
                outputs = outputs_of(model, x)
            inner = [each for each in found if not is_transformed(each.output) and not _equal(each.output, outputs)]
            return _signals(outputs, [o.name for o in inner], [o.output for o in inner], (), len(inner))
        inputs = [x.clone().detach()]
        for layer in maps:
            following = layer(inputs[-1].clone())
            inputs.append(following if following.requires_grad else following.requires_grad_())
        expected = outputs_of(model, x)
        if expected.shape != inputs[-1].shape or not torch.allclose(expected, inputs[-1], rtol=1e-4, atol=1e-6):
            got = "maps whose chain gives other outputs"
            raise input_error(where, "`layer_maps()` that make up the model", got, "List every map, in order")
        hidden = max(k for k, layer in enumerate(maps) if any(has_matrix(part) for part in layer.modules()))
        names = [f"hidden {k + 1}" for k in range(hidden)]
        names += ["output neuron"] * (len(maps) - 1 - hidden)
        chain = tuple(zip(maps, [a.detach() for a in inputs[:-1]], strict=True))
        return _signals(inputs[-1], names, inputs[1:-1], chain, hidden)


def maps_of(model: nn.Module, where: str) -> list[nn.Module] | None:
    """The maps of a chain with a read-out, what follows that apart; None for other models, and for shared weights."""
    if not (isinstance(model, nn.Sequential) or callable(getattr(model, "layer_maps", None))):
        return None
    maps = chain_of(model, where)
    last = list(maps[-1]) if type(maps[-1]) is nn.Sequential else [maps[-1]]
    if len(last) > 1:  # a read-out and the function behind it
        maps = [*maps[:-1], last[0], nn.Sequential(*last[1:])]
    owned = [id(p) for layer in maps for p in layer.parameters()]
    matrices = any(has_matrix(part) for layer in maps for part in layer.modules())
    return maps if matrices and len(owned) == len(set(owned)) else None


def outputs_of(model: nn.Module, x: Any) -> Tensor:
    """What the model returns, one tensor (N, ...)."""
    outputs = logits_of(ModelView(model, {}, (), {})(x))
    assert isinstance(outputs, Tensor)  # Jacobian has looked at it
    return outputs


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.detach().flatten(), b.detach().flatten()))


def _signals(
    outputs: Tensor, names: list[str], inner: list[Tensor], maps: tuple[tuple[nn.Module, Tensor], ...], hidden: int
) -> Signals:
    """Derivatives of every output, by one backward pass each for all samples."""
    flat = outputs.reshape(len(outputs), -1)
    empty = flat.new_zeros(len(inner), *flat.shape)
    if not inner or not flat.requires_grad:
        return Signals(tuple(names), empty, empty.clone(), maps, hidden)
    largest, lengths = [], []
    for c in range(flat.shape[1]):
        slopes = torch.autograd.grad(flat[:, c].sum(), inner, retain_graph=True, allow_unused=True)
        rows = [(torch.zeros_like(a) if g is None else g).flatten(1) for g, a in zip(slopes, inner, strict=True)]
        largest.append(torch.stack([row.abs().amax(1) for row in rows]))
        lengths.append(torch.stack([row.norm(dim=1) for row in rows]))
    return Signals(tuple(names), torch.stack(largest, 2).detach(), torch.stack(lengths, 2).detach(), maps, hidden)
