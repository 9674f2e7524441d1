"""``curve_metrics``: how real networks stretch and bend a closed curve, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_count, input_error
from pullback._results import Shown
from pullback._rng import make_generator
from pullback.functional.differentiable import differentiable, forward_derivatives
from pullback.functional.model_view import evaluate
from pullback.functional.undisturbed import undisturbed
from pullback.measure.networks.drawn import DATA, Redraw, check_network, over_networks
from pullback.measure.networks.layer_outputs import caught, check_finite, layer_names
from pullback.measure.networks.profile import Profile, over_units
from pullback.measure.networks.spec import NetworkSpec
from pullback.modules import activation_module
from pullback.modules.order_of_calls import order_of
from pullback.operators.products import func
from pullback.theory.expectations.activations import activation_of

Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CurveProfiles(Shown):
    """Geometry of a closed curve's image h(theta) in L layers, means over theta; v = dh/dtheta, a = d^2 h/dtheta^2.

    Attributes:
        euclidean: g^E / n = |v|^2 / n, squared speed per unit, n units and positions in the layer.
        curvature: n kappa^2, with kappa^2 = (|v|^2 |a|^2 - (v . a)^2) / |v|^6; nan where the image stands still.
        gauss: g^G = kappa^2 g^E, squared speed of the unit tangent v / |v|.
        euclidean_length: of the image, per sqrt(n).
        gauss_length: of the unit tangent's path.
        layers: names.
        num_seeds: networks measured; with one, standard errors are over units, as in ``SignalPropagation``.
    """

    euclidean: Profile
    curvature: Profile
    gauss: Profile
    euclidean_length: Profile
    gauss_length: Profile
    layers: tuple[str, ...]
    num_seeds: int


def curve_metrics(
    model_or_spec: nn.Module | NetworkSpec,
    curve: Curve | None = None,
    *,
    points: int = 64,
    seeds: int | None = None,
    seed: int = 0,
    redraw: Redraw | None = None,
    dtype: torch.dtype = torch.float64,
) -> CurveProfiles:
    """Metrics and curvature of a closed curve's image in every layer, by two derivatives along the curve.

    Derivatives are exact: forward mode, twice. A model is measured in eval mode, in which its outputs for one input do
    not depend on others; nothing of it changes.

    Args:
        model_or_spec: a specification, of which ``seeds`` networks are drawn; or a module, measured once as it is.
        curve: from theta (M,) to inputs (M, ...), of period 2 pi, in torch. None (specifications alone): the circle
            of squared radius N q* of ``theory.curve_metrics``, taken as the pre-activations before the first layer, in
            a plane drawn anew for every network. Entry l of the theory is then entry l - 1 here.
        points: M, values of theta at equal steps.
        seeds: networks to draw; None for 20 of a specification or with ``redraw``.
        seed: the networks are those of seeds ``seed``, ``seed + 1``, ...
        redraw: called with a copy of the model and a seed, to draw its weights anew in place.
        dtype: of networks made of a specification.

    Raises:
        InputError: an activation with kinks, at which the curvature is infinite (in a module, as far as calls of
            activations show it); dropout or batch norm in a specification; no ``curve`` for a module; fewer than 3
            points.
        UnsupportedError: a layer whose outputs do not have the samples first, or without a forward derivative.

    Cost: about 9 forward passes of ``points`` inputs per network.

    References: Poole et al. (2016), arXiv:1606.05340, eq. 8 to 13.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False).double()
        >>> _ = layer.weight.data.copy_(3 * torch.eye(2))
        >>> found = curve_metrics(layer, lambda t: torch.stack([t.cos(), t.sin()], 1))  # a circle of radius 3
        >>> values = torch.cat([found.euclidean.value, found.curvature.value, found.gauss.value])
        >>> torch.allclose(values, torch.tensor([9 / 2, 2 / 9, 1.0], dtype=torch.float64))
        True
    """
    where = "curve_metrics"
    check_count(where, "points", points, 3)
    check_network(model_or_spec, where)
    if isinstance(model_or_spec, NetworkSpec):
        if model_or_spec.needs_training_mode:
            raise input_error(where, "layers without dropout and batch norm", "one of them", "Leave it out")
        _check_smooth([model_or_spec.activation], where)
    if curve is None and not isinstance(model_or_spec, NetworkSpec):
        raise input_error(where, "a `curve` for a module", "None", "Pass a function from theta (M,) to inputs (M, …)")

    def one(model: nn.Module, number: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
        path = curve
        if path is None:
            assert isinstance(model_or_spec, NetworkSpec)
            path = _circle(model_or_spec, make_generator(number + DATA), dtype)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, dtype=dtype))
        theta = torch.arange(points, dtype=like.dtype, device=like.device) * (2 * math.pi / points)
        return _one_network(model, path, theta, where)

    metrics, layers, count = over_networks(one, model_or_spec, seeds, seed, redraw, dtype, where)
    euclidean, curvature, gauss, length, turn = metrics
    return CurveProfiles(euclidean, curvature, gauss, length, turn, layers, count)


def _check_smooth(activations: Iterable[str | Callable[..., object]], where: str) -> None:
    """Refuse kinks: at them the curvature is infinite."""
    for activation in activations:
        phi = activation_of(activation, where)
        if not phi.smooth:
            raise input_error(where, "a smooth activation", f"{phi.name}, whose slope jumps", "Use tanh, erf or gelu")


def _circle(spec: NetworkSpec, generator: torch.Generator, dtype: torch.dtype) -> Curve:
    """The circle of squared radius N q* in a random plane, behind the activation."""
    n, q = spec.input_width, spec.theory().q_star
    if not 0 < q < math.inf:
        raise input_error("curve_metrics", "a finite length q* above zero", repr(q), "Pass `curve`")
    drawn = torch.randn(n, 2, generator=generator, dtype=torch.float64, device=generator.device)
    plane = (torch.linalg.qr(drawn).Q * (n * q) ** 0.5).to(dtype)  # (N, 2)
    phi = activation_module(spec.activation)
    return lambda theta: phi(torch.stack([theta.cos(), theta.sin()], 1) @ plane.T)


def _one_network(model: nn.Module, curve: Curve, theta: Tensor, where: str) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names of the layers; the five quantities (5, L); their standard errors over units."""
    names: tuple[str, ...] = ()

    def outputs(at: Tensor) -> tuple[Tensor, ...]:
        nonlocal names
        x = curve(at)
        if not isinstance(x, Tensor) or x.dim() < 2 or len(x) != len(at):
            got = f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise input_error(where, f"a curve from theta (M,) to inputs (M, …), M = {len(at)}", got, "Stack on axis 1")
        with caught(model, len(at), where, in_graph=False) as found:
            evaluate(model, x)
        names = layer_names(found, where)
        return tuple(layer.by_unit(layer.output) for layer in found)

    def velocity(at: Tensor) -> tuple[Tensor, ...]:
        return func.jvp(outputs, (at,), (torch.ones_like(at),))[1]

    remedy = "Replace that operation by plain ones"
    plain = differentiable(every_order=True)
    with undisturbed(model, training=False), torch.no_grad(), plain, forward_derivatives(where, remedy):
        slopes, bends = func.jvp(velocity, (theta,), (torch.ones_like(theta),))
    _check_smooth(order_of(model, curve(theta[:2]), where).activations.values(), where)
    check_finite(names, bends, where)
    measured = [_one_layer(v, a) for v, a in zip(slopes, bends, strict=True)]
    value, error = (torch.stack([layer[k] for layer in measured], 1).cpu() for k in (0, 1))
    return names, value, error


def _one_layer(v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The five quantities of velocities and accelerations (M, units, positions), and their standard errors."""
    v, a = v.double(), a.double()
    products = torch.stack([v * v, a * a, v * a]).mean(3).permute(2, 0, 1)  # (units, 3, M)

    def statistic(means: Tensor) -> Tensor:
        vv, aa, va = means.unbind(1)  # (G, M) each
        gauss = (vv * aa - va * va) / vv**2
        each = torch.stack([vv, gauss / vv, gauss, 2 * math.pi * vv.sqrt(), 2 * math.pi * gauss.clamp(min=0).sqrt()], 1)
        return each.mean(2)

    return over_units(statistic, lambda units: units.sum(1), products)
