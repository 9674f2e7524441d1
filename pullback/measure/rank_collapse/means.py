"""Means over samples and networks, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._statistics import mean_and_stderr
from pullback.measure.networks.profile import Profile
from pullback.measure.rank_collapse.collect import MeasuredNetwork
from pullback.measure.rank_collapse.heads import MeasuredHeads
from pullback.measure.rank_collapse.result import AttentionHeads, RankCollapse, Tokens
from pullback.measure.rank_collapse.statistics import HEADS, SPECTRUM, TOKENS, cumulative

RELATIVE = TOKENS.index("relative_residual")


def joined(runs: Sequence[MeasuredNetwork], where: str) -> RankCollapse:
    """One result of what each network showed.

    Raises:
        InputError: networks with different layers.
    """
    names = [tuple(layer.name for layer in run.layers) for run in runs]
    if len(set(names)) > 1:
        raise input_error(where, "the same layers in every network", "others for another seed", "Check the model")
    floor = max(run.floor for run in runs)
    layers = list(zip(*([layer.tokens for layer in run.layers] for run in runs), strict=True))  # (N, 7) of each run
    starts = [run.start for run in runs if run.start is not None]
    heads = [tuple(layer.heads for layer in run.layers) for run in runs]
    return RankCollapse(
        **_tokens(layers, floor),
        layers=names[0],
        attention=tuple(_attention(same) for same in zip(*heads, strict=True)),
        start=Tokens(**_tokens([starts], floor)) if len(starts) == len(runs) else None,
        unread=runs[0].unread,
        floor=floor,
        num_inputs=max(len(run) for run in layers[0]),
        num_seeds=len(runs),
    )


def _tokens(layers: Sequence[Sequence[Tensor]], floor: float) -> dict[str, Profile]:
    """Of each layer, in every network, (N, 7)."""
    with_logs = [
        [torch.cat([run, run[:, RELATIVE, None].clamp(min=floor).log()], 1) for run in runs] for runs in layers
    ]
    profiles = [_profile(runs) for runs in with_logs]  # (8,) each
    values, errors = torch.stack([one.value for one in profiles], 1), torch.stack([one.stderr for one in profiles], 1)
    return {name: Profile(values[k], errors[k]) for k, name in enumerate((*TOKENS, "log_relative_residual"))}


def _attention(runs: Sequence[list[MeasuredHeads]]) -> AttentionHeads:
    """Of one layer, in every network: its calls side by side."""
    values = [torch.cat([call.values for call in run], 2) for run in runs]  # (N, 6, H)
    spectra = [torch.cat([call.spectrum for call in run], 2) for run in runs]
    numbers = {name: _profile([run[:, k] for run in values]) for k, name in enumerate(HEADS)}
    numbers |= {name: _profile([run[:, k] for run in spectra]) for k, name in enumerate(SPECTRUM)}
    singular = shares = None
    if runs[0][0].singular:
        longest = max(s.shape[1] for run in runs for call in run for s in call.singular)
        rows = [[_padded(call.singular, longest, 0.0) for call in run] for run in runs]
        singular = _profile([torch.cat(run, 1) for run in rows])
        parts = [[_padded([cumulative(s) for s in call.singular], longest, 1.0) for call in run] for run in runs]
        shares = _profile([torch.cat(run, 1) for run in parts])
    names = tuple(name for call in runs[0] for name in call.names)
    return AttentionHeads(names, **numbers, singular_values=singular, cumulative=shares)


def _padded(rows: Sequence[Tensor], length: int, value: float) -> Tensor:
    """(N, H, K)."""
    return torch.stack([torch.nn.functional.pad(row, (0, length - row.shape[1]), value=value) for row in rows])


def _profile(runs: Sequence[Tensor]) -> Profile:
    """Over networks, of means over samples, (N, ...) each; of one network over samples."""
    samples = runs[0] if len(runs) == 1 else torch.stack([run.mean(0) for run in runs])
    if len(samples) == 1:
        return Profile(samples[0], torch.full_like(samples[0], torch.nan))
    return Profile(*mean_and_stderr(samples))
