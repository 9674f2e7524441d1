"""Singular values of the maps from layer to layer: do they keep the length of signals and gradients?"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pullback.functional import take
from pullback.functional.batch import copied
from pullback.functional.unwrap import unwrap
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work
from pullback.operators.layer_jacobians import chain_of, layer_jacobians

NUM_SAMPLES = 4
MOST_ENTRIES = 2**20  # of a map's matrix: a larger one is not formed, and nothing is measured


def measure(observed: Observation) -> Measurement:
    """By map, counted from 1: ``mean_square``, ``largest`` and ``smallest`` of its singular values s.

    Also ``end_to_end_mean_square`` of their product; the mean of s^2 is over the min(out, in) values and the samples.
    Nothing for models that are no chain of layers (``pb.layer_jacobians``), and for maps beyond 2^20 entries.
    """
    model, x = unwrap(observed.model), observed.x
    if not _is_chain(observed) or not _small(_widths(model, take(x, slice(0, 1)))):
        return Measurement({})
    matrices = layer_jacobians(model, take(x, slice(0, NUM_SAMPLES)))
    singular = {str(place): torch.linalg.svdvals(matrix.double()) for place, matrix in enumerate(matrices, start=1)}
    product = matrices[0].double()
    for matrix in matrices[1:]:
        product = matrix.double() @ product
    return Measurement(
        {
            "mean_square": {place: float(s.square().mean()) for place, s in singular.items()},
            "largest": {place: float(s.max()) for place, s in singular.items()},
            "smallest": {place: float(s.min()) for place, s in singular.items()},
            "end_to_end_mean_square": float(torch.linalg.svdvals(product).square().mean()),
        }
    )


def _is_chain(observed: Observation) -> bool:
    model, x = unwrap(observed.model), observed.x
    chain = callable(getattr(model, "layer_maps", None)) or isinstance(model, nn.Sequential)
    return chain and isinstance(x, Tensor) and x.is_floating_point()


@torch.no_grad()
def _widths(model: nn.Module, one: Tensor) -> list[int]:
    """Numbers that go into the first map, and that come out of each."""
    widths, h = [one.numel()], copied(one)
    for layer in chain_of(model, "jacobian"):
        h = layer(h)
        widths.append(h.numel())
    return widths


def _small(widths: list[int]) -> bool:
    """Whether every map's matrix, and that of the whole, may be formed."""
    return max([a * b for a, b in pairwise(widths)] + [widths[0] * max(widths)]) <= MOST_ENTRIES


def work(observed: Observation) -> Work:
    """Of every map a pass back for every one of its outputs."""
    if not _is_chain(observed):
        return Work()
    widths = _widths(unwrap(observed.model), take(observed.x, slice(0, 1)))
    return Work(1.0 + max(widths), most=NUM_SAMPLES) if _small(widths) else Work(fixed=1.0)


PROBE = Probe("jacobian", measure, sparse=True, work=work)
