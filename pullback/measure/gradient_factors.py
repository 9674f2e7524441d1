"""What each layer multiplies mean squared gradients by, measured on random networks, batch norm included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import check_count, input_error
from pullback._results import Estimate, Shown
from pullback._rng import make_generator
from pullback._statistics import mean_and_stderr
from pullback.functional import undisturbed
from pullback.measure.networks.drawn import DATA, networks
from pullback.measure.networks.profile import Profile
from pullback.measure.networks.settled import settled_inputs
from pullback.measure.networks.spec import NetworkSpec


@dataclass(frozen=True)
class GradientFactors(Shown):
    """Mean square of a gradient in a layer's inputs, divided by that in its outputs.

    Attributes:
        by_layer: (L,), mean over networks; the first layer's holds for the inputs' own lengths and correlations.
        mean: over layers 2 to L, then over networks. At infinite width it is chi_1 / keep_prob, or with batch norm
            ``theory.batch_norm_gradient_factor``.
    """

    by_layer: Profile
    mean: Estimate


def gradient_factors(
    spec: NetworkSpec, batch_size: int = 32, *, seeds: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64
) -> GradientFactors:
    """Growth of gradients layer by layer at initialisation, of networks in train mode over a batch.

    A random gradient in the outputs, with the mean over the batch taken out as a batch norm above would, is taken back
    to the inputs. Inputs are drawn as ``jacobian_spectrum`` draws them.

    Args:
        spec: of at least two layers; with batch norm its statistics are those of the batch.
        batch_size: B; at least 4 with batch norm, below which the expectation is infinite (and at 4 its error is).
        seeds: networks to draw, at least 2.
        seed: the networks are those of seeds ``seed``, ``seed + 1``, ...
        dtype: of the networks.

    Raises:
        InputError: one layer, too small a batch, too few networks.

    Cost: a forward and a backward pass of the batch a network.

    References: Yang et al. (2019), arXiv:1902.08129; docs/theory.md for the factor at finite B.

    Example:
        >>> from pullback.theory import batch_norm_gradient_factor
        >>> spec = NetworkSpec("tanh", 1.0, depth=4, width=300, batch_norm=True)
        >>> found, expected = gradient_factors(spec).mean, batch_norm_gradient_factor("tanh", 32)
        >>> abs(found.value - expected) < 4 * found.stderr < 0.1
        True
    """
    where = "gradient_factors"
    check_count(where, "seeds", seeds, 2)
    check_count(where, "batch_size", batch_size, 4 if spec.batch_norm else 2)
    if spec.depth < 2:
        raise input_error(where, "at least two layers", "one", "Pass a deeper spec")
    rows = []
    for number, model in networks(spec, seeds, seed, None, dtype, where):
        generator = make_generator(number + DATA)
        x = settled_inputs(spec, batch_size, generator, where).to(dtype)
        rows.append(_factors(model, x, generator))
    factors = torch.stack(rows)  # (seeds, L)
    value, stderr = mean_and_stderr(factors[:, 1:].mean(1))
    return GradientFactors(Profile.over_seeds(factors), Estimate(float(value), float(stderr), seeds))


def _factors(model: torch.nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """One network's, (L,)."""
    with undisturbed(model), torch.enable_grad():
        torch.manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )  # of masks; put back by `undisturbed`
        states = [x.requires_grad_()]
        for layer in model.children():
            states.append(layer(states[-1]))
        g = torch.randn(states[-1].shape, generator=generator, dtype=torch.float64, device=generator.device).to(x)
        g = g - g.mean(0)
        gradients = [*torch.autograd.grad(states[-1], states[:-1], g), g]
    sizes = torch.stack([each.double().square().mean() for each in gradients])
    return sizes[:-1] / sizes[1:]
