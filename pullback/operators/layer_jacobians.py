"""``layer_jacobians``: the matrices between consecutive layers of a chain, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional import check_batch, undisturbed
from pullback.functional.batch import copied
from pullback.functional.differentiable import differentiable
from pullback.functional.model_view import check_module
from pullback.functional.refused import refuse_random_and_coupled
from pullback.operators.own_samples import check_rows


def layer_jacobians(model: nn.Module, x: Tensor, *, legacy_shape: bool = False) -> list[Tensor]:
    """Derivative of every layer's output in that layer's input, one (B, out, in) tensor a layer.

    A layer is one entry of ``model.layer_maps()`` (``modules.MLP`` has it: weights, normalisation, activation and
    skip together), or one child of an ``nn.Sequential`` that has parameters together with the children without
    parameters after it. For ReLU networks the matrix is D W, and the rows of inactive units are zero. Multiplied
    from the last to the first they give the Jacobian of the whole network.

    Args:
        model: in eval mode; a network whose samples do not depend on each other.
        x: inputs (B, ...).
        legacy_shape: (out, 1, in) for a batch of one, as scripts built on ``torch.autograd.functional.jacobian``
            print it.

    Raises:
        InputError: the model is no chain of layers; ``legacy_shape`` with more than one sample.
        UnsupportedError: a layer whose outputs for a sample depend on the other samples.

    Cost: per layer and sample as many backward passes through that layer as it has outputs, batched.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [tuple(J.shape) for J in layer_jacobians(model, torch.randn(5, 3))]
        [(5, 4, 3), (5, 2, 4)]
    """
    where = "layer_jacobians"
    check_module(model, where)
    count, chain = check_batch(where, x), chain_of(model, where)
    if not isinstance(x, Tensor):
        raise input_error(where, "`x` as one tensor (N, ...)", type(x).__name__, "Pass what the first layer takes")
    if not x.is_floating_point():
        raise input_error(
            where, "`x` of real numbers", str(x.dtype), "Convert it, or pass what an embedding makes of it"
        )
    if legacy_shape and count != 1:
        raise input_error(where, "one sample for `legacy_shape`", f"{count}", "Pass x[:1]")
    jacobians = []
    with undisturbed(model, training=False), differentiable():
        refuse_random_and_coupled(model, where)
        h = copied(x)
        for place, layer in enumerate(chain):

            def of_one(sample: Tensor, layer: nn.Module = layer) -> tuple[Tensor, Tensor]:
                output = layer(sample.unsqueeze(0).clone()).reshape(-1)
                return output, output

            try:
                matrix, own = torch.func.vmap(torch.func.jacrev(of_one, has_aux=True))(h)
            except RuntimeError:  # no batching rule (hooks on gradients, functions of a user's own)
                matrix, own = _by_loop(layer, h)
            jacobians.append(matrix.detach().flatten(2))
            h = layer(h).detach()  # the layer may write to it
            check_rows(h.reshape(count, -1), own.detach(), f"output of layer {place}", where)
    return [j.transpose(0, 1) for j in jacobians] if legacy_shape else jacobians


def _by_loop(layer: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives (B, out, *in) and outputs (B, out) of single samples, one pass back for each number."""
    matrices, outputs = [], []
    with torch.enable_grad():
        for sample in h:
            leaf = sample.detach().clone().requires_grad_()
            output = layer(leaf.clone().unsqueeze(0)).reshape(-1)
            outputs.append(output)
            if not output.requires_grad:
                matrices.append(output.new_zeros(len(output), *leaf.shape))
                continue
            rows = [torch.autograd.grad(v, leaf, retain_graph=True, materialize_grads=True)[0] for v in output]
            matrices.append(torch.stack(rows))
    return torch.stack(matrices), torch.stack(outputs)


def chain_of(model: nn.Module, where: str) -> list[nn.Module]:
    """The model as a chain of maps, ``where`` naming the caller in errors."""
    maps = getattr(model, "layer_maps", None)
    if callable(maps):
        return list(maps())
    if not isinstance(model, nn.Sequential):
        raise input_error(
            where,
            "an nn.Sequential, or a model with a `layer_maps()` method",
            type(model).__name__,
            "Give the model a `layer_maps()` that lists the modules from layer to layer",
        )
    groups: list[list[nn.Module]] = []
    for child in model:
        if not groups or any(True for _ in child.parameters()):
            groups.append([])
        groups[-1].append(child)
    if len(groups) > 1 and not any(True for module in groups[0] for _ in module.parameters()):
        groups[:2] = [groups[0] + groups[1]]  # a leading flatten belongs to the first layer
    return [nn.Sequential(*group) for group in groups]
