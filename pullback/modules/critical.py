"""``initialise``: weights at the edge between vanishing and exploding gradients, for any tree of modules."""

from __future__ import annotations

from collections.abc import Callable

from scipy.optimize import brentq
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback._rng import make_generator
from pullback.modules.activations import Elementwise
from pullback.modules.initialise import draw_weights
from pullback.theory import MeanField, critical_sigma_w, starting_point
from pullback.theory.activations import activation_of

# modules of torch.nn that are elementwise, and the theory's name for them; others are differentiated by autograd
KNOWN: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.SiLU: "silu"}
ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
    Elementwise,
)  # fmt: skip
CHI = {"critical": 1.0, "ordered": 0.8, "chaotic": 1.25}
Linearity = nn.Linear | nn.modules.conv._ConvNd


def initialise(
    model: nn.Module,
    phase: str = "critical",
    weights: str = "gaussian",
    *,
    activation: str | Callable[[Tensor], Tensor] | None = None,
    sigma_b: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """Draw the weights of every linear and convolutional layer anew, in place, so that gradients keep their size.

    Weights have variance sigma_w^2 / fan_in with sigma_w on the critical line of the activation that follows the
    layer: the next elementwise module of ``torch.nn`` in the order of ``model.modules()``. Layers that none follows
    (the outputs) get sigma_w = 1.

    GELU and SiLU are critical only with biases: lengths leave their critical point where sigma_b is below 0.42 and
    0.75. Without a ``sigma_b`` they get (sigma_w, sigma_b) = (1.399, 0.572) and (1.402, 1.020). Fifty layers then
    change mean squared gradients by less than a factor of two, where torch's own start loses 52 decades.

    Args:
        model: any module.
        phase: "critical" (chi_1 = 1); "ordered" (0.8) or "chaotic" (1.25), to see what goes wrong there.
        weights: "gaussian", or "orthogonal": sigma_w times orthonormal rows or columns, which keeps not only the mean
            of the singular values but all of them where the activation is nearly linear.
        activation: of all layers but the last, where it is not a module that can be found (a call of
            ``torch.tanh``): a name of ``theory.MeanField`` or an elementwise function.
        sigma_b: standard deviation of the biases of all layers. None leaves it to ``theory.starting_point``: 0 for
            ReLU, tanh and their like and for the outputs.
        seed: of the draw, from a generator of its own.

    Returns:
        The model.

    Raises:
        InputError: an unknown option, no layer with weights, no activation found, or one without a critical point, at
            this ``sigma_b`` or at all.

    References: Poole et al. (2016), arXiv:1606.05340; Schoenholz et al. (2017), arXiv:1611.01232.

    Example:
        >>> model = initialise(nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)))
        >>> abs(model[0].weight.var().item() * 1000 - 2) < 0.04
        True
    """
    where = "initialise"
    check_option(where, "phase", phase, tuple(CHI))
    check_option(where, "weights", weights, ("gaussian", "orthogonal"))
    known: dict[str, tuple[float, float]] = {}
    scales = []
    for layer, follows in followed_by(model, activation, where):  # all found before anything is drawn
        if follows is not None and repr(follows) not in known:
            known[repr(follows)] = _sigmas(follows, sigma_b, CHI[phase])
        scales.append((layer, (1.0, sigma_b or 0.0) if follows is None else known[repr(follows)]))
    generator = make_generator(seed)
    for layer, (spread, bias) in scales:
        draw_weights(layer, spread, bias, generator, orthogonal=weights == "orthogonal")
    return model


def _sigmas(activation: str | Callable[[Tensor], Tensor], sigma_b: float | None, chi: float) -> tuple[float, float]:
    """The sigma_w at which chi_1 has this value, and sigma_b."""
    phi = activation_of(activation, "initialise")
    if sigma_b is None:
        point = starting_point(phi)
        critical, bias = point.sigma_w, point.sigma_b
    else:
        critical, bias = critical_sigma_w(phi, sigma_b), sigma_b
    if chi == 1:
        return critical, bias
    found = float(brentq(lambda w: MeanField(phi, w, bias).chi - chi, critical / 3, critical * 3, xtol=1e-10))
    reached = MeanField(phi, found, bias).chi
    if abs(reached - chi) > 1e-6:  # chi_1 jumps there: no sigma_w has the value
        got = f"{reached:.3g} for {phi.name} with sigma_b={bias:.3g}"
        raise input_error(
            "initialise", f"a phase with chi_1 = {chi:g}", got, 'Use phase="critical" or a larger sigma_b'
        )
    return found, bias


def followed_by(
    model: nn.Module, activation: str | Callable[[Tensor], Tensor] | None, where: str
) -> list[tuple[nn.Module, str | Callable[[Tensor], Tensor] | None]]:
    """Layers with weights, each with what follows it; None for the last ones."""
    if not any(isinstance(m, Linearity) for m in model.modules()):
        raise input_error(where, "a model with linear or convolutional layers", "none", "Pass another model")
    found: list[tuple[nn.Module, str | Callable[[Tensor], Tensor] | None]] = []
    waiting: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, Linearity):
            waiting.append(module)
        elif isinstance(module, ELEMENTWISE) and activation is None:
            found += [(layer, _name_of(module)) for layer in waiting]
            waiting = []
    if activation is not None:
        return [*((layer, activation) for layer in waiting[:-1]), (waiting[-1], None)]
    if not found:
        raise input_error(where, "activations that are modules", "none", "Pass activation= with their name")
    return found + [(layer, None) for layer in waiting]


def _name_of(module: nn.Module) -> str | Callable[[Tensor], Tensor]:
    return "gelu" if isinstance(module, nn.GELU) and module.approximate == "none" else KNOWN.get(type(module), module)
