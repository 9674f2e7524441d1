"""``signal_propagation``: lengths, correlations and gradients by layer, of real networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback._rng import make_generator
from pullback.functional.batch import Batch, check_batch, tensors
from pullback.functional.model_view import evaluate
from pullback.functional.undisturbed import undisturbed
from pullback.measure.networks.drawn import DATA, Redraw, over_networks
from pullback.measure.networks.layer_outputs import LayerOutput, caught, check_finite, layer_names
from pullback.measure.networks.profile import Profile, over_units
from pullback.measure.networks.spec import NetworkSpec


@dataclass(frozen=True)
class SignalPropagation(Shown):
    """Signals of L layers, input first. A layer is a call of a module with a matrix; its outputs are pre-activations h.

    Attributes:
        q: mean square of h over units, positions and inputs, (L,).
        c: correlation of two inputs, sum h h' / (|h| |h'|) over units and positions, mean over all pairs, (L,); nan
            where some h is zero.
        gradients: mean square of dE/dh^l divided by that of dE/dh^L, for E = u . h^L with Gaussian u, (L,).
        layers: names.
        num_seeds: networks measured. With one, standard errors are over units: they hold for a random layer behind the
            layers that came before, whose own deviations they do not contain.
    """

    q: Profile
    c: Profile
    gradients: Profile
    layers: tuple[str, ...]
    num_seeds: int


def signal_propagation(
    model_or_spec: nn.Module | NetworkSpec,
    x: Batch | None = None,
    *,
    q0: float = 1.0,
    c0: float = 0.5,
    seeds: int | None = None,
    seed: int = 0,
    redraw: Redraw | None = None,
    dtype: torch.dtype = torch.float64,
) -> SignalPropagation:
    """Lengths, correlations and gradients in every layer of a random network, or of a model as it is.

    The predicted counterpart is ``theory.signal_profile``. A model stays in the mode it is in; a specification with
    dropout or batch norm is measured in train mode. Nothing of the model or the global random state changes.

    Args:
        model_or_spec: a specification, of which ``seeds`` networks are drawn; or a module, measured once as it is.
        x: inputs (N, ...), N >= 2. None (specifications alone): two inputs of mean square ``q0`` and
            correlation ``c0``, exactly, in directions drawn anew for every network.
        q0: mean square of the inputs.
        c0: their correlation.
        seeds: networks to draw; None for 20 of a specification or with ``redraw``.
        seed: the networks are those of seeds ``seed``, ``seed + 1``, ...
        redraw: called with a copy of the model and a seed, to draw its weights anew in place.
        dtype: of networks made of a specification.

    Raises:
        InputError: fewer than two inputs; ``x`` missing where it is needed; ``seeds`` for a module without ``redraw``;
            signals that overflow; a model without layers; c0 outside [-1, 1].
        UnsupportedError: a layer whose outputs do not have the samples first.

    Cost: a forward and a backward pass per network, and N^2 products per layer, with memory for 32 N^2 of them.

    References: Poole et al. (2016), arXiv:1606.05340; Schoenholz et al. (2017), arXiv:1611.01232.

    Example:
        >>> from pullback.theory import signal_profile
        >>> spec = NetworkSpec("tanh", 1.3, 0.3, depth=3, width=300)
        >>> found, known = signal_propagation(spec), signal_profile(spec.theory(), 3)
        >>> bool(((found.q.value - torch.from_numpy(known.q)).abs() < 3 * found.q.stderr).all())
        True
    """
    where = "signal_propagation"
    _check_inputs(model_or_spec, x, q0, c0, where)

    def one(model: nn.Module, number: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
        generator = make_generator(number + DATA)
        if not isinstance(model_or_spec, NetworkSpec):
            return _one_network(model, x, generator, where)
        inputs = (_pair(model_or_spec, q0, c0, generator) if x is None else x).to(dtype)
        return _one_network(model.to(inputs.device), inputs, generator, where)

    profiles, layers, count = over_networks(one, model_or_spec, seeds, seed, redraw, dtype, where)
    q, c, gradients = profiles
    return SignalPropagation(q, c, gradients, layers, count)


def _check_inputs(model_or_spec: nn.Module | NetworkSpec, x: Batch | None, q0: float, c0: float, where: str) -> None:
    """Refuse inputs that do not fit, and pairs that cannot be made."""
    spec = model_or_spec if isinstance(model_or_spec, NetworkSpec) else None
    if x is not None:
        if check_batch(where, x) < 2:
            raise input_error(where, "two or more inputs in `x`", "1", "Pass inputs whose correlation can be measured")
        if spec and not (isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == spec.input_width):
            got = f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise input_error(where, f"`x` (N, {spec.input_width})", got, "Pass inputs as wide as the specification's")
        return
    if spec is None:
        raise input_error(where, "`x` for a module", "None", "Pass inputs (N, …)")
    if spec.batch_norm:
        raise input_error(where, "`x`, the batch to normalise over", "None", "Pass inputs (N, width)")
    if spec.input_width < 2:
        raise input_error(where, "two or more input units for a pair", "1", "Pass `x`")
    check_positive(where, "q0", q0)
    if not -1 <= c0 <= 1:
        raise input_error(where, "a correlation `c0` from -1 to 1", repr(c0), "Pass a correlation")


def _pair(spec: NetworkSpec, q0: float, c0: float, generator: torch.Generator) -> Tensor:
    """Two inputs of mean square q0 and correlation c0 in random directions, (2, inputs)."""
    n = spec.input_width
    drawn = torch.randn(n, 2, generator=generator, dtype=torch.float64, device=generator.device)
    first, second = torch.linalg.qr(drawn).Q.T  # orthonormal
    other = c0 * first + (1 - c0 * c0) ** 0.5 * second
    return (n * q0) ** 0.5 * torch.stack([first, other])


def _one_network(
    model: nn.Module, x: Batch, generator: torch.Generator, where: str
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names of the layers; q, c and gradients (3, L) in float64; their standard errors over units."""
    count = len(tensors(x)[0])
    with undisturbed(model), torch.enable_grad(), caught(model, count, where) as found:
        torch.manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )  # of masks; put back by `undisturbed`
        evaluate(model, x)
        layers = list(found)  # a checkpoint calls its layers again in the backward pass
        names, outputs = layer_names(layers, where), [layer.output for layer in layers]
        check_finite(names, outputs, where)
        last = outputs[-1]
        u = torch.randn(last.shape, generator=generator, dtype=torch.float64, device=generator.device)
        u = (u / u.square().mean().sqrt()).to(last)
        gradients = torch.autograd.grad(last, outputs, u, allow_unused=True, materialize_grads=True)
    measured = [_one_layer(layer, gradient) for layer, gradient in zip(layers, gradients, strict=True)]
    values, errors = (torch.stack([layer[k] for layer in measured], 1).cpu() for k in (0, 1))
    return names, values, errors


def _one_layer(layer: LayerOutput, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(q, c, mean square gradient) of a layer, (3,), and their standard errors."""
    h = layer.by_unit(layer.output.detach()).double().movedim(1, 0)  # (units, N, positions)
    squares = layer.by_unit(gradient).double().square().mean((0, 2))  # (units,)
    n, positions = h.shape[1:]

    def total(units: Tensor) -> Tensor:  # (G, N, N), sums over units of h h', mean over positions
        return torch.einsum("gunp,gump->gnm", units, units) / positions

    def statistic(gram: Tensor) -> Tensor:
        lengths = gram.diagonal(dim1=1, dim2=2)
        sizes = lengths.sqrt()
        cosines = (gram / (sizes[:, :, None] * sizes[:, None])).clamp(-1, 1)  # rounding leaves 1 + 1e-16
        apart = cosines.tril(-1).sum((1, 2)) / (n * (n - 1) / 2)
        return torch.stack([lengths.mean(1), apart], 1)

    signals, errors = over_units(statistic, total, h)
    slope, error = over_units(lambda means: means, lambda units: units.sum(1), squares[:, None])
    return torch.cat([signals, slope]), torch.cat([errors, error])
