"""The bound of the main theorem: what layers' derivatives allow the Hessian of an output to be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.measure.linearity.dense_layer import MapNorms
from pullback.measure.linearity.map_norms import map_norms
from pullback.measure.linearity.tensor_norms import NormBounds
from pullback.measure.networks.chain import Signals

Side = str  # "lower" or "upper"


def layer_norms(signals: Signals, sample: int, num_outputs: int) -> list[list[MapNorms]]:
    """Norms of every map of a chain at one sample; of the last map for every output alone."""
    norms = [[map_norms(layer, a[sample : sample + 1])] for layer, a in signals.maps[:-1]]
    last, a = signals.maps[-1]
    return [*norms, [map_norms(last, a[sample : sample + 1], c) for c in range(num_outputs)]]


def q_221(maps: Sequence[MapNorms]) -> NormBounds:
    """The largest of the three families of second derivatives, each with the first derivatives that lead to it.

    |d2 a^l / (dw^l)2|, |da^k / dw^k| |d2 a^l / da^{l-1} dw^l| for k < l, and |da^k / dw^k| |da^j / dw^j|
    |d2 a^l / (da^{l-1})2| for k <= j < l, second derivatives in the (2,2,1) norm. k = j is among them: that is the
    second derivative of an output in the weights of one layer through a later one.
    """
    values: dict[Side, float] = {}
    for side in ("lower", "upper"):
        largest, best = 0.0, 0.0  # |da/dw| of the layers before
        for each in maps:
            second = [float(getattr(part, side)) for part in (each.second_weights, each.mixed, each.second_inputs)]
            best = max(best, second[0], _times(largest, second[1]), _times(largest**2, second[2]))
            largest = max(largest, each.weights)
        values[side] = best
    return NormBounds(values["lower"], values["upper"])


def hessian_bound(maps: Sequence[MapNorms], maximum: Sequence[float], length: Sequence[float]) -> float:
    """A bound on the Hessian's spectral norm: the theorem's, before its constants are taken out.

    Along a change u of the weights, u_l of layer l's, the second derivative of an output is the sum over layers of
    df/da^l times the layer's own second derivative along (da^{l-1}, u_l), and |da^{l-1}| is at most the sum over
    k < l of |da^{l-1}/da^k| |da^k/dw^k| |u_k|. Each term is at most max_i |df/da_i| times a (2,2,1) norm; of the mixed
    one the part with the activation's first derivative may be taken as |df/da|_2 times slope instead, which is the
    theorem's Q_2 / sqrt(m). The bound is the largest eigenvalue of that form in |u_1|, |u_2|, …

    Args:
        maps: of the chain, the last for the output at hand.
        maximum: max_i |df/da_i| of every map but the last.
        length: |df/da|_2 of them.
    """
    count = len(maps)
    form = torch.zeros(count, count, dtype=torch.float64)
    reach = torch.zeros(count, dtype=torch.float64)  # of a unit change of each layer's weights, in the map's inputs
    for place, each in enumerate(maps):
        q, q2 = (maximum[place], length[place]) if place < count - 1 else (1.0, 1.0)
        own = torch.zeros(count, dtype=torch.float64)
        own[place] = 1.0
        mixed = min(_times(q, float(each.mixed.upper)), _times(q, each.bend) + _times(q2, each.slope))
        form += q * _scaled(torch.outer(own, own), float(each.second_weights.upper))
        form += _scaled(torch.outer(reach, own) + torch.outer(own, reach), mixed)
        form += q * _scaled(torch.outer(reach, reach), float(each.second_inputs.upper))
        reach = each.inputs * reach + each.weights * own
    return float(torch.linalg.eigvalsh(form)[-1]) if bool(torch.isfinite(form).all()) else float("inf")


def _times(a: float, b: float) -> float:
    """A product in which nothing times an unknown bound is nothing."""
    return 0.0 if a == 0 or b == 0 else a * b


def _scaled(matrix: Tensor, by: float) -> Tensor:
    """Entries that are 0 stay 0, whatever they are multiplied by."""
    return torch.where(matrix == 0, matrix, matrix * by)
