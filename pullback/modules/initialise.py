"""``initialise``: weights at the edge between vanishing and exploding gradients, for any tree of modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from pullback._checks import check_option, input_error, unsupported
from pullback._rng import make_generator
from pullback.functional.batch import Batch
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.modules.branches import DrawnLayer, Initialisation, branch_depths
from pullback.modules.fan_in import filters
from pullback.modules.followers import followed
from pullback.modules.weights import draw_weights, layers_of
from pullback.theory import MeanField, critical_sigma_w, starting_point
from pullback.theory.expectations.activations import activation_of
from pullback.theory.expectations.calls import Activation, name_of

CHI = {"critical": 1.0, "ordered": 0.8, "chaotic": 1.25}
# their outputs are no sums of inputs with weights of their own, or they go round in themselves
OTHERS = nn.Bilinear | nn.RNNBase | nn.RNNCellBase


@overload
def initialise(
    model: nn.Module,
    phase: str = ...,
    weights: str = ...,
    *,
    x: Batch | None = ...,
    activation: Activation | None = ...,
    sigma_b: float | None = ...,
    seed: int = ...,
    report: Literal[False] = ...,
) -> nn.Module: ...


@overload
def initialise(
    model: nn.Module,
    phase: str = ...,
    weights: str = ...,
    *,
    x: Batch | None = ...,
    activation: Activation | None = ...,
    sigma_b: float | None = ...,
    seed: int = ...,
    report: Literal[True],
) -> Initialisation: ...


def initialise(
    model: nn.Module,
    phase: str = "critical",
    weights: str = "gaussian",
    *,
    x: Batch | None = None,
    activation: str | Callable[[Tensor], Tensor] | None = None,
    sigma_b: float | None = None,
    seed: int = 0,
    report: bool = False,
) -> nn.Module | Initialisation:
    """Draw the weights of every linear and convolutional layer anew, in place, so that gradients keep their size.

    Weights have variance sigma_w^2 / fan_in with sigma_w on the critical line of the activation that follows the
    layer: the first one that is called on its outputs with no other layer in between, be it a module or a function,
    shared by layers or not, behind normalisation, pooling or the sum with a skip. Layers that none follows (the
    outputs, attention's projections) get sigma_w = 1.

    fan_in is the number of weights that meet in one output: the inputs of a linear layer; for a convolution those of a
    group times the entries of the filter, divided by the stride in every direction if it is transposed. Without ``x``
    zero padding is not counted: next to it fewer weights meet data, and mean squares fall by a factor of 0.84 a layer
    in 8 x 8 maps (3 x 3 filters), of 0.44 in 2 x 2 maps. With ``x`` the mean over all outputs is taken.

    GELU and SiLU are critical only with biases: lengths leave their critical point where sigma_b is below 0.42 and
    0.75. Without a ``sigma_b`` they get (sigma_w, sigma_b) = (1.399, 0.572) and (1.402, 1.020). Fifty layers then
    change mean squared gradients by less than a factor of two, where torch's own start loses 52 decades.

    Transformers: attention draws tokens together a little in every layer, and so deep ones lose them. With "critical"
    each residual branch x + f(x) of a stream that attention adds to is multiplied by 1 / sqrt(L), L layers of that
    stream (encoder and decoder each have their own), through the weights and biases of the layer that ends it: cosines
    of tokens then stay below one at any depth (``theory.token_profile``). Sums are found by the calls. "ordered" and
    "chaotic" leave branches as they are drawn, and so are those of streams without attention: where there is no
    normalisation in them, each doubles the mean square of a ReLU network's stream, and of its gradients.

    Args:
        model: any module; tables (and outputs that share their weights), normalisation and attention's packed input
            projections are left alone.
        phase: "critical" (chi_1 = 1); "ordered" (0.8) or "chaotic" (1.25), to see what goes wrong there.
        weights: "gaussian", or "orthogonal": orthonormal rows or columns times what makes the same variance, which
            keeps not only the mean of the singular values of a linear layer but all of them where the activation is
            nearly linear. Of a convolution each filter is a row, and each group a matrix.
        x: an example of the model's inputs, as the model takes them (a tensor, a tuple, or a dict by keyword). Two
            samples will do. Needed where the order of calls does not follow from the code alone, because it decides by
            shapes or values; torch's transformers and models of Hugging Face need none.
        activation: of all layers but the outputs, where it is not a call that can be found: a name of
            ``theory.MeanField`` or an elementwise function.
        sigma_b: standard deviation of the biases of all layers. None leaves it to ``theory.starting_point``: 0 for
            ReLU, tanh and their like and for the outputs.
        seed: of the draw, from a generator of its own.
        report: return what was drawn, and what was left alone, beside the model.

    Returns:
        The model; with ``report`` an ``Initialisation``, whose text is a table.

    Raises:
        InputError: an unknown option; no layer with weights; an order of calls that needs ``x``; no activation found,
            or several behind one layer; one without a critical point, at this ``sigma_b`` or at all; layers that are
            not called, have no biases where the critical point needs them, or a weight that cannot be drawn; residual
            branches of a transformer that no single layer ends.
        UnsupportedError: recurrent or bilinear layers; parameters spread over processes.

    References: Poole et al. (2016), arXiv:1606.05340; Schoenholz et al. (2017), arXiv:1611.01232;
    Noci et al. (2022), arXiv:2206.03126, for transformers.

    Example:
        >>> model = initialise(nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)))
        >>> abs(model[0].weight.var().item() * 1000 - 2) < 0.04
        True
    """
    where = "initialise"
    check_option(where, "phase", phase, tuple(CHI))
    check_option(where, "weights", weights, ("gaussian", "orthogonal"))
    if not isinstance(model, nn.Module):
        raise input_error(where, "`model` to be an nn.Module", type(model).__name__, "Pass the model itself")
    inside = unwrap(model)
    refuse_sharded(inside, where)
    for name, module in inside.named_modules():
        if isinstance(module, OTHERS):
            got = f"{type(module).__name__} `{name}`"
            remedy = "Initialise the parts beside it one by one, as in pb.initialise(model.head)"
            raise unsupported(where, "layers for which a critical point is known", got, remedy)
    table = _scales(inside, activation, x, sigma_b, phase)
    generator = make_generator(seed)
    drawn: dict[int, str] = {}
    for name, layer in layers_of(inside, where).items():
        if name not in table or id(layer.weight) in drawn:
            continue
        found, weight = table[name], layer.weight
        assert isinstance(weight, Tensor)
        *_, rows, columns = filters(layer, weight).shape
        entries = max(rows, columns) if weights == "orthogonal" else 1
        spread = found.sigma_w * math.sqrt(entries / (found.fan_in or 1))
        draw_weights(layer, spread, found.sigma_b, generator, orthogonal=weights == "orthogonal")
        _scale(layer, found.factor)
        drawn[id(layer.weight)] = name
    if not report:
        return model
    kept = set(drawn.values())
    own = {name: module for name, module in inside.named_modules() if any(True for _ in module.parameters(False))}
    untouched = tuple(name for name, module in own.items() if id(getattr(module, "weight", None)) not in drawn)
    return Initialisation(model, tuple(each for name, each in table.items() if name in kept), untouched)


def _scale(layer: nn.Module, factor: float) -> None:
    """Multiply weights and biases; 1 leaves them as they are."""
    if factor == 1:
        return
    for part in (layer.weight, layer.bias):
        if isinstance(part, Tensor):
            with torch.inference_mode(part.is_inference()), torch.no_grad():
                part.mul_(factor)


def _scales(
    model: nn.Module, activation: Activation | None, x: Batch | None, sigma_b: float | None, phase: str
) -> dict[str, DrawnLayer]:
    """What each layer is to be drawn with, in the order of calls; all found before anything is drawn."""
    where = "initialise"
    layers = layers_of(model, where)
    table, order = followed(model, activation, x, where)
    if missing := layers.keys() - {each.name for each in table}:
        got = f"`{min(missing)}` without a call"
        remedy = "Pass an x= that reaches it, or initialise the parts one by one"
        raise input_error(where, "a forward pass through every layer", got, remedy)
    depths = branch_depths(order, where) if phase == "critical" else {}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    known: dict[str, tuple[float, float]] = {}
    found: dict[str, DrawnLayer] = {}
    first: dict[int, str] = {}
    for each in table:
        if id(each.layer.weight) in tables:
            continue
        sigma_w, bias = 1.0, sigma_b or 0.0
        if each.follows is not None:
            key = name_of(each.follows)
            if key not in known:
                known[key] = _sigmas(each.follows, sigma_b, CHI[phase])
            sigma_w, bias = known[key]
            if bias > 0 and each.layer._parameters.get("bias") is None and not order.normalises:
                expected = f"biases in layer `{each.name}`, since {key} is critical with sigma_b = {bias:.3g}"
                remedy = "Give the layer biases, or normalise before the activation"
                raise input_error(where, expected, "bias=False", remedy)
        bias = 0.0 if each.layer._parameters.get("bias") is None else bias
        phi = None if each.follows is None else name_of(each.follows)
        found[each.name] = DrawnLayer(each.name, phi, sigma_w, bias, each.fan_in, depths.get(each.name))
        one = found[first.setdefault(id(each.layer.weight), each.name)]
        if (one.sigma_w, one.fan_in, one.depth) != (sigma_w, each.fan_in, depths.get(each.name)):
            got = f"`{one.name}` and `{each.name}`, which share it and are followed by others"
            raise input_error(where, "one scale for each weight", got, "Initialise before the weights are tied")
    return found


def _sigmas(activation: Activation, sigma_b: float | None, chi: float) -> tuple[float, float]:
    """The sigma_w at which chi_1 has this value, and sigma_b."""
    phi = activation_of(activation, "initialise")
    if sigma_b is None:
        point = starting_point(phi)
        critical, bias = point.sigma_w, point.sigma_b
    else:
        critical, bias = critical_sigma_w(phi, sigma_b), sigma_b
    if chi == 1:
        return critical, bias
    sigma_w = float(brentq(lambda w: MeanField(phi, w, bias).chi - chi, critical / 3, critical * 3, xtol=1e-10))
    reached = MeanField(phi, sigma_w, bias).chi
    if abs(reached - chi) > 1e-6:  # chi_1 jumps there: no sigma_w has the value
        got = f"{reached:.3g} for {phi.name} with sigma_b={bias:.3g}"
        raise input_error(
            "initialise", f"a phase with chi_1 = {chi:g}", got, 'Use phase="critical" or a larger sigma_b'
        )
    return sigma_w, bias
