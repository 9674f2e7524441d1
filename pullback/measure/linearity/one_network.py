"""How nearly one network is linear in its weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pullback._memory import check_fits, physical_bytes
from pullback._results import Estimate
from pullback._statistics import rounding
from pullback.functional import ModelView, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.differentiable import differentiable
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.target_checks import logits_of
from pullback.kernels import tangent_kernel
from pullback.measure.linearity.bound import hessian_bound, layer_norms, q_221
from pullback.measure.linearity.kinks import refuse_kinks
from pullback.measure.linearity.result import Linearity
from pullback.measure.linearity.tensor_norms import NormBounds
from pullback.measure.linearity.visible_changes import visible_changes
from pullback.measure.networks.chain import Signals, outputs_of, signals_of
from pullback.modules import WideNetwork
from pullback.operators import Hessian, Jacobian
from pullback.spectral import eigenvalues
from pullback.theory import wide_network_kernels

WHERE = "linearity"
PRODUCTS = 300  # for one Hessian, unless the caller says how many
BASIS = 46, 12  # vectors held by the search for an eigenvalue, and the fewest it works well with
BESIDE = 6  # copies of the weights that a product and its graph take


def of_model(model: nn.Module, x: Batch, tol: float, max_matvecs: int | None, memory_limit: int | None) -> Linearity:
    """Checks, signals, Hessians, kernel, and what the signals allow the Hessians to be."""
    refuse_random_and_coupled(ModelView.of(model, where=WHERE).model, WHERE)
    J = Jacobian(model, x)  # which checks model and data
    count, num_outputs = J.num_samples, J.num_outputs
    held = vectors_held(model, memory_limit)
    with undisturbed(model), torch.enable_grad():
        refuse_kinks(outputs_of(model, x), WHERE)
        with differentiable():
            signals = signals_of(model, x, count, WHERE)
    limit = PRODUCTS if max_matvecs is None else max_matvecs
    alone = [take(x, slice(i, i + 1)) for i in range(count)]
    found = [
        [_top(*_smallest(model, signals, i, c), alone[i], tol, limit, held) for c in range(num_outputs)]
        for i in range(count)
    ]
    norm, residual = (torch.tensor([[one[k] for one in row] for row in found], dtype=torch.float64) for k in (0, 1))
    matrix = tangent_kernel(model, x, contract="full").total.double().permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    top, trace = float(torch.linalg.eigvalsh(matrix)[-1]), float(matrix.trace())
    eps = rounding(1.0, next(iter(ModelView.of(model, where=WHERE).parameters.values())).dtype)
    largest, lengths = signals.maximum.double(), signals.length.double()
    with undisturbed(model):
        families, bound, tensors = _theorem(signals, largest, lengths, num_outputs)
    q_inf, q_2 = (_largest(values, norm) for values in (largest, lengths[: signals.hidden]))
    return Linearity(
        hessian_norm=Estimate(norm, residual, sum(one[2] for row in found for one in row)),
        converged=residual <= tol * norm + eps * float(norm.max()),
        q_inf=Estimate(q_inf, eps * q_inf, num_outputs),
        q_2=Estimate(q_2, eps * q_2, num_outputs),
        q_221=families,
        bound=bound,
        kernel_norm=Estimate(top, eps * abs(top), num_outputs),
        kernel_trace=Estimate(trace, eps * abs(trace), num_outputs),
        kernel_diagonal=matrix.diagonal().view(count, num_outputs),
        diagonal_limit=_limit(model, x),
        layers=signals.layers,
        layer_inf=largest,
        layer_2=lengths,
        hidden=signals.hidden,
        tensor_221=tensors,
    )


def _largest(values: Tensor, like: Tensor) -> Tensor:
    """Over layers; nan where there are none."""
    return values.amax(0) if len(values) else torch.full_like(like, torch.nan)


def _theorem(
    signals: Signals, largest: Tensor, lengths: Tensor, num_outputs: int
) -> tuple[NormBounds | None, Tensor | None, Tensor | None]:
    """Q_221 (N, C), the bound (N, C), and norms of d2 a / da2 (M, N); None where the model is no chain."""
    if not signals.maps:
        return None, None, None
    families, bound, tensors = [], [], []
    for i in range(len(signals.maps[0][1])):
        norms = layer_norms(signals, i, num_outputs)
        tensors.append([max(float(part.second_inputs.lower) for part in each) for each in norms])
        for c in range(num_outputs):
            chain = [*(each[0] for each in norms[:-1]), norms[-1][c]]
            families.append(q_221(chain))
            bound.append(hessian_bound(chain, largest[:, i, c].tolist(), lengths[:, i, c].tolist()))
    lower, upper, allowed = (
        torch.tensor(values, dtype=torch.float64).view(-1, num_outputs)
        for values in ([q.lower for q in families], [q.upper for q in families], bound)
    )
    return NormBounds(lower, upper), allowed, torch.tensor(tensors, dtype=torch.float64).T


def _smallest(model: nn.Module, signals: Signals, sample: int, output: int) -> tuple[nn.Module, int]:
    """Of the model and the module of its weights' changes that matter for one output the one of fewer parameters."""
    few = visible_changes(signals.maps, sample, output) if signals.maps else None
    sizes = [sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (model, few or model)]
    return (few, output) if few is not None and sizes[1] < sizes[0] else (model, output)


def _top(model: nn.Module, output: int, x: Batch, tol: float, limit: int, held: int) -> tuple[float, float, int]:
    """Spectral norm of one output's Hessian at one input, its residual and the products it took."""

    def value(outputs: object, _: Tensor) -> Tensor:
        found = logits_of(outputs)
        assert isinstance(found, Tensor)
        return found.reshape(len(found), -1)[:, output]

    H = Hessian(model, value, (x, torch.zeros(1)))
    most = min(held, max(4, limit))
    pairs = eigenvalues(H, 1, "both", tol=tol, max_matvecs=max(2, limit), max_basis=min(H.shape[0], most))
    best = int(pairs.values.abs().argmax())
    return float(pairs.values[best].abs()), float(pairs.residuals[best]), pairs.num_matvecs


def vectors_held(model: nn.Module, limit: int | None) -> int:
    """How many vectors the search for an eigenvalue may hold; refuse weights too many for the fewest."""
    view = ModelView.of(model, where="linearity")
    size = view.num_params * max(p.element_size() for p in view.parameters.values())
    most, fewest = BASIS
    what = f"{fewest + BESIDE} vectors of {view.num_params:,} weights"
    check_fits("linearity", what, (fewest + BESIDE) * size, limit, "Use narrower networks, or float32")
    return min(most, int((physical_bytes() if limit is None else limit) // size) - BESIDE)


def _limit(model: nn.Module, x: Batch) -> Tensor | None:
    """K(x, x) of an infinitely wide ``WideNetwork`` with a linear output and no bottleneck."""
    if (
        not isinstance(model, WideNetwork)
        or not isinstance(x, Tensor)
        or not isinstance(model.output, nn.Identity)
        or model.bottleneck is not None
    ):
        return None
    rows = np.asarray(x.detach().flatten(1).double().cpu())
    each = [
        wide_network_kernels(model.activation, len(model.widths), row[None], train_output=model.train_output)[1]
        for row in rows
    ]
    outputs = model.readout.weight.shape[0]
    return torch.tensor(np.array(each)[:, 0, :]).expand(-1, outputs).clone()
