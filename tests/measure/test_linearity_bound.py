"""The bound from layers' norms, written out term by term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pullback.measure.linearity.bound import hessian_bound, q_221
from pullback.measure.linearity.dense_layer import MapNorms, dense_layer
from pullback.measure.linearity.tensor_norms import NormBounds


def norms(weights: float, inputs: float, second: tuple[float, float, float], **known: float) -> MapNorms:
    """Upper bounds twice the lower ones."""
    return MapNorms(weights, inputs, *(NormBounds(each, 2 * each) for each in second), **known)


CHAINS = {
    "weights of their own": [norms(1, 1, (7, 1, 1)), norms(2, 1, (3, 1, 0.1)), norms(0.5, 1, (1, 0, 0))],
    "mixed, the largest first": [norms(5, 1, (1, 1, 1)), norms(2, 1, (1, 1, 0.01)), norms(0.5, 1, (1, 3, 0.01))],
    "inputs, the largest in the middle": [norms(2, 1, (1, 1, 1)), norms(4, 1, (1, 1, 1)), norms(9, 1, (0, 0, 2))],
    "inputs of the first layer, which no weights lead to": [norms(0, 1, (0, 9, 9)), norms(1, 1, (0.5, 9, 9))],
    "unknown behind nothing": [norms(0, 1, (0.25, math.inf, math.inf)), norms(3, 1, (0, 0, 0))],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_largest_of_the_three_families(chain: str) -> None:
    maps = CHAINS[chain]
    for side in ("lower", "upper"):
        terms = [0.0]
        for place, each in enumerate(maps):
            terms.append(getattr(each.second_weights, side))
            before = [one.weights for one in maps[:place] if one.weights]
            terms += [one * getattr(each.mixed, side) for one in before]
            terms += [one * other * getattr(each.second_inputs, side) for one in before for other in before]
        assert float(getattr(q_221(maps), side)) == pytest.approx(max(terms))


@pytest.mark.parametrize(("bend", "slope"), [(math.inf, math.inf), (0.5, 0.25), (100.0, 100.0)])
def test_the_form_of_two_and_three_layers(bend: float, slope: float) -> None:
    """Its largest eigenvalue, from every pair of changes (u_k, u_l) and the ways they meet in a layer."""
    maps = [
        norms(2, 3, (0.5, 0.7, 0.2)),
        norms(1.5, 0.5, (0.3, 0.4, 0.6), bend=bend, slope=slope),
        norms(0.8, 2, (0, 0.9, 0.35), bend=bend, slope=slope),
    ]
    maximum, length = [0.4, 0.6], [1.1, 1.3]
    for count in (1, 2, 3):
        chain, most = [*maps[3 - count :]], maximum[3 - count :]
        form = torch.zeros(count, count, dtype=torch.float64)
        for place, each in enumerate(chain):
            q = (*most, 1.0)[place]
            q2 = (*length[3 - count :], 1.0)[place]
            reach = [math.prod(m.inputs for m in chain[k + 1 : place]) * chain[k].weights for k in range(place)]
            mixed = min(q * each.mixed.upper, q * each.bend + q2 * each.slope)
            form[place, place] += q * each.second_weights.upper
            for k, a in enumerate(reach):
                form[k, place] += a * mixed
                form[place, k] += a * mixed
                for j, b in enumerate(reach):
                    form[k, j] += q * a * b * each.second_inputs.upper
        expected = float(torch.linalg.eigvalsh(form)[-1])
        assert hessian_bound(chain, most, length[3 - count :]) == pytest.approx(expected, rel=1e-12)


def test_what_is_not_known_is_infinite_unless_nothing_meets_it() -> None:
    unknown = norms(1, 1, (0.25, math.inf, math.inf))
    assert hessian_bound([norms(0, 1, (0, 0, 0)), unknown], [1.0], [1.0]) == pytest.approx(0.5)
    assert hessian_bound([norms(1, 1, (0, 0, 0)), unknown], [1.0], [1.0]) == math.inf
    assert hessian_bound([unknown, norms(1, 1, (0, 0, 0))], [0.0], [0.0]) == pytest.approx(0)


def changed(how: str) -> nn.Module:
    """A layer whose call is not what its weights say."""
    layer = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    if how == "hook":
        layer[1].register_forward_hook(lambda module, args, out: 2 * out)
    elif how == "hook before":
        layer[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    elif how == "parametrised":
        nn.utils.parametrizations.weight_norm(layer[0])
    return layer


def test_a_layer_that_does_more_than_its_weights_say_has_no_closed_form() -> None:
    assert dense_layer(changed("nothing")) is not None
    for how in ("hook", "hook before", "parametrised"):
        assert dense_layer(changed(how)) is None, how
