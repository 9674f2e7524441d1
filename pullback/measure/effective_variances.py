"""``effective_variances``: where the layers of an existing model stand in the phase diagram."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._results import Shown
from pullback.functional.batch import Batch
from pullback.functional.model_view import check_module
from pullback.functional.undisturbed import undisturbed
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.measure.networks.profile import Profile
from pullback.modules.followers import Followed, followed
from pullback.theory import MeanField
from pullback.theory.expectations.activations import Activation, activation_of
from pullback.theory.expectations.calls import name_of


@dataclass(frozen=True)
class EffectiveVariances(Shown):
    """What random network each layer looks like, (L,) layers in the order in which they are first called.

    Attributes:
        layers: names.
        activations: that follow them; "linear" where none does.
        sigma_w: sqrt(fan_in) times the root mean square of the weights; standard errors as of independent weights.
        sigma_b: root mean square of the biases.
        chi: chi_1 of an infinitely wide network of such layers, at the length it settles at: the factor of mean squared
            gradients a layer. Its standard error is what those of the sigmas make of it.
        phase: "ordered" or "chaotic", or "critical" where chi is within three standard errors of 1.
    """

    layers: tuple[str, ...]
    activations: tuple[str, ...]
    sigma_w: Profile
    sigma_b: Profile
    chi: Profile
    phase: tuple[str, ...]


def effective_variances(
    model: nn.Module, *, x: Batch | None = None, activation: str | Callable[[Tensor], Tensor] | None = None
) -> EffectiveVariances:
    """Effective sigma_w and sigma_b of every linear and convolutional layer, and its place in the phase diagram.

    The place is that of a network made of this layer and the activation behind it alone: normalisation and skips are
    not in it, and weights that training has made dependent are read as if they were random.

    Args:
        model: any module.
        x: as of ``initialise``: an example of the inputs, where the order of calls does not follow from the code.
        activation: as of ``initialise``, where activations are no calls that can be found.

    Raises:
        InputError: no layer with weights; no activation found, or several behind one layer; an order of calls that
            needs ``x``.
        UnsupportedError: parameters spread over processes.

    Cost: one pass over the weights, and five fixed points a layer (a few milliseconds each).

    References: Poole et al. (2016), arXiv:1606.05340, for the diagram.

    Example:
        >>> from pullback.modules import MLP
        >>> model = MLP([500, 500, 500, 10], "tanh", init="gaussian", sigma_w=2.0, sigma_b=0.3)
        >>> found, chi = effective_variances(model), MeanField("tanh", 2.0, 0.3).chi
        >>> found.phase[:2], bool((abs(found.chi.value[:2] - chi) < 3 * found.chi.stderr[:2]).all())
        (('chaotic', 'chaotic'), True)
    """
    where = "effective_variances"
    check_module(model, where)
    model = unwrap(model)
    refuse_sharded(model, where)
    known: dict[str, Activation] = {}
    layers, activations, rows, phases = [], [], [], []
    table, _ = followed(model, activation, x, where)
    with undisturbed(model, training=False):  # a spectral norm moves its buffers when the weight is read
        sigmas = [_sigmas(each) for each in table]
    for each, (sigma_w, sigma_b) in zip(table, sigmas, strict=True):
        follows = "linear" if each.follows is None else each.follows
        if name_of(follows) not in known:
            known[name_of(follows)] = activation_of(follows, where)
        phi = known[name_of(follows)]
        chi = _chi(phi, sigma_w, sigma_b)
        layers.append(each.name)
        activations.append(phi.name)
        rows.append([sigma_w, sigma_b, chi])
        near = abs(chi[0] - 1) <= 3 * chi[1]
        phases.append("critical" if near else "ordered" if chi[0] < 1 else "chaotic")
    numbers = torch.tensor(rows, dtype=torch.float64, device="cpu")  # (L, 3, 2)
    w, b, c = (Profile(numbers[:, k, 0], numbers[:, k, 1]) for k in range(3))
    return EffectiveVariances(tuple(layers), tuple(activations), w, b, c, tuple(phases))


def _sigmas(each: Followed) -> tuple[tuple[float, float], tuple[float, float]]:
    """(sigma_w, standard error), (sigma_b, standard error)."""
    weight, bias = each.layer.weight, each.layer.bias
    assert isinstance(weight, Tensor)
    sigma_w = _root_mean_square(weight, each.fan_in)
    return sigma_w, _root_mean_square(bias, 1) if isinstance(bias, Tensor) else (0.0, 0.0)


def _root_mean_square(tensor: Tensor, factor: float) -> tuple[float, float]:
    """Of sqrt(factor) times the entries, and its standard error; nan for one entry."""
    squares = factor * tensor.detach().double().flatten() ** 2
    root = math.sqrt(float(squares.mean()))
    if root == 0:
        return 0.0, 0.0
    spread = float(squares.std()) if len(squares) > 1 else math.nan
    return root, spread / math.sqrt(len(squares)) / (2 * root)


def _chi(phi: Activation, sigma_w: tuple[float, float], sigma_b: tuple[float, float]) -> tuple[float, float]:
    """(chi_1, standard error), the error to first order in those of the sigmas."""
    (w, w_error), (b, b_error) = sigma_w, sigma_b
    if w == 0:
        return 0.0, 0.0
    if math.isnan(w_error + b_error):
        return MeanField(phi, w, b).chi, math.nan
    low, high = (MeanField(phi, max(w + s * w_error, w / 2), b).chi for s in (-1, 1))
    under, over = (MeanField(phi, w, max(b + s * b_error, 0.0)).chi for s in (-1, 1))
    return MeanField(phi, w, b).chi, math.hypot(high - low, over - under) / 2
