"""Numbers of the heads of one attention, a few matrices at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.measure.rank_collapse.frames import Layer
from pullback.measure.rank_collapse.fused_attention import Call
from pullback.measure.rank_collapse.statistics import SPECTRUM, of_heads, of_spectrum

ENTRIES = 2**18  # of matrices that are made at once, and at least those of one head
SHARE = 8  # of all matrices of a call at most one in so many at once: made in float64, with a few copies
Real = list[Tensor | None]  # of each sample, which of its tokens are no padding, (T,); None for all


@dataclass
class MeasuredHeads:
    """Attention of one call.

    Attributes:
        names: of the H heads.
        values: (N, 6, H), those of ``statistics.HEADS``.
        spectrum: (N, 3, H), those of ``statistics.SPECTRUM``, nan where they were not asked for.
        singular: of each sample (H, K); empty likewise.
    """

    names: tuple[str, ...]
    values: Tensor
    spectrum: Tensor
    singular: list[Tensor]


def real_tokens(call: Call, layer: Layer, mask: Tensor | None, where: str) -> Real:
    """Tokens that are no padding: as the caller says, or those to which some row may attend.

    Raises:
        InputError: a sample with fewer than two.
    """
    if len(set(call.shape.lengths)) > 1:  # padding has been taken out
        counts, real = list(call.shape.lengths), cast("Real", [None] * layer.samples)
    else:
        fits = mask is not None and tuple(mask.shape) == (layer.samples, layer.tokens)
        attended = [
            mask[number].bool() if mask is not None and fits else _attended(call, layer, number)
            for number in range(layer.samples)
        ]
        counts = [layer.tokens if each is None else int(each.sum()) for each in attended]
        real = [None if count == layer.tokens else each for each, count in zip(attended, counts, strict=True)]
    short = next((number for number, count in enumerate(counts) if count < 2), None)
    if short is not None:
        got = f"{counts[short]} in sample {short}"
        raise input_error(where, "two or more tokens a sample that are no padding", got, "Leave that sample out")
    return real


def _attended(call: Call, layer: Layer, number: int) -> Tensor | None:
    """Tokens of a sample that some row may attend to, where they are its keys; None for windows and other keys."""
    places = _places(call, layer, number)
    if len(places) > 1 and not call.shape.packed:
        return None
    attended = torch.stack([call.attended(n) for n in places]).any(0)
    return attended if len(attended) == layer.tokens else None


def of_call(
    call: Call, layer: Layer, real: Real, name: str, spectrum: bool, where: str
) -> tuple[MeasuredHeads, list[Tensor]]:
    """Numbers of the heads, and each sample's outputs of all heads, (T, H d_v), where those are the layer's tokens.

    Raises:
        InputError: a row with nothing to attend to.
    """
    values, spectra, singular, outputs = [], [], [], []
    for number in range(layer.samples):
        places = _places(call, layer, number)
        rows = real[number]
        parts = [_of_part(call, n, rows, (spectrum, layer.key is None), (where, name, number)) for n in places]
        pack = torch.cat if call.shape.packed else lambda many, _: torch.stack(many).mean(0)
        numbers = [pack(list(each), -1) for each in zip(*(part[:2] for part in parts), strict=True)]
        values.append(numbers[0])
        spectra.append(numbers[1])
        if spectrum:
            many = [part[2] for part in parts]
            singular.append(torch.cat(many) if call.shape.packed else torch.stack(many).mean(0))
        outputs.append(torch.cat([part[3] for part in parts], -1 if call.shape.packed else -2))
    names = tuple(f"{name}.{head}" for head in range(values[0].shape[-1]))
    return MeasuredHeads(names, torch.stack(values), torch.stack(spectra), singular), outputs


def _places(call: Call, layer: Layer, number: int) -> range:
    """Indices of a sample in the call: one, or that of each of its windows, or heads."""
    each = call.shape.batch // layer.samples
    return range(number * each, (number + 1) * each)


def _of_part(
    call: Call, n: int, rows: Tensor | None, kept: tuple[bool, bool], said: tuple[str, str, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(6, H), (3, H), singular values (H, K), outputs (T, H d_v) of one index; those two where they are kept."""
    T, H = call.shape.lengths[n], call.shape.heads
    spectrum, alone = kept
    keys = call.attended(n)
    rows = rows if rows is not None and len(rows) == T else None
    step = max(1, min(ENTRIES // (T * len(keys)), call.shape.batch * H // SHARE))
    values, spectra, singular, outputs = [], [], [], list[Tensor]()
    for first in range(0, H, step):
        P, V, allowed = call.part(n, slice(first, min(H, first + step)))
        P, V = (P, V) if bool(keys.all()) else (P[..., keys], V[:, keys])
        P, allowed = (P, allowed) if rows is None else (P[:, rows], allowed[:, rows])
        _check_rows(allowed, rows, said)
        if not bool(torch.isfinite(P.sum() + V.sum())):
            where, name, number = said
            got = f"NaN or infinity in sample {number} in `{name}`"
            raise input_error(where, "finite tokens", got, "Check weights, inputs and precision")
        more, sizes = of_spectrum(P) if spectrum else (P.new_full((len(SPECTRUM), len(P)), torch.nan), P[:, 0])
        values.append(of_heads(P, V, allowed).cpu())
        spectra.append(more.cpu())
        singular.append(sizes.cpu())
        outputs += [(P @ V).transpose(0, 1).flatten(1).cpu()] if alone else []
    joined = torch.cat(outputs, 1) if alone else torch.empty(0)
    return torch.cat(values, 1), torch.cat(spectra, 1), torch.cat(singular), joined


def _check_rows(allowed: Tensor, rows: Tensor | None, said: tuple[str, str, int]) -> None:
    if bool((allowed > 0).all()):
        return
    where, name, number = said
    row = int((allowed == 0).any(0).nonzero()[0])
    place = row if rows is None else int(rows.nonzero()[row])
    got = f"a mask that leaves row {place} of sample {number} nothing in `{name}`"
    raise input_error(where, "something to attend to for every token", got, "Let each token attend to itself")
