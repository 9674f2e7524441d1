"""Linear layers: ``y = x W^T + b`` over any number of positions, ``addmm`` (Hugging Face ``Conv1D``) and ``matmul``.

The weight may be a parameter, its transpose, or consecutive rows of one (packed projections of attention).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.outer import OuterFactor
from pullback.gradients.rules.registry import Arguments, Call, Rule, Source, add_rule


def _linear(call: Call) -> list[Factor]:
    inputs, gradient = call.samples(call.arguments["input"]), call.gradient
    return _factors(inputs, gradient, call.sources.get("weight"), call.sources.get("bias"), transposed=False)


def _addmm(call: Call) -> list[Factor]:
    inputs, gradient = call.samples(call.arguments["mat1"]), call.gradient
    return _factors(inputs, gradient, call.sources.get("mat2"), call.sources.get("input"), transposed=True)


def _matmul(call: Call) -> list[Factor]:
    if "other" in call.sources:  # x @ W
        inputs = call.samples(call.arguments["input"])
        return _factors(inputs, call.gradient, call.sources["other"], None, transposed=True)
    inputs = call.samples(call.arguments["other"])  # W @ x: the features of x are the positions
    return _factors(inputs.mT, call.gradient.mT, call.sources["input"], None, transposed=False)


def _factors(
    inputs: Tensor, gradient: Tensor, weight: Source | None, bias: Source | None, *, transposed: bool
) -> list[Factor]:
    """Factors of weight and bias; usually one for both.

    Args:
        inputs: (N, ..., d).
        gradient: (N, C, ..., p).
        weight: what the weight is; None if it is not asked for.
        bias: likewise.
        transposed: the layer multiplies with (d, p), not (p, d).
    """
    inputs, gradient = full_precision(inputs), full_precision(gradient)
    d = gradient.reshape(*gradient.shape[:2], -1, 1, gradient.shape[-1])  # (N, C, T, 1, p)
    if weight is None:
        assert bias is not None
        return [DenseFactor({bias.name: _spread(bias, d.sum(2).flatten(2))})]
    a = inputs.reshape(len(inputs), -1, 1, inputs.shape[-1])  # (N, T, 1, d)
    shape, flipped = weight.shape, transposed != weight.transposed
    alone = bias is not None and (bias.rows != weight.rows or (flipped and bias.rows is not None))
    # rows of the parameter are inputs of the layer if it is flipped, else outputs
    left, right = (_spread(weight, a), d) if flipped else (a, _spread(weight, d))
    both = OuterFactor(left, right, weight.name, None if alone or bias is None else bias.name, shape, flipped)
    both = replace(both, unit=_is_unit(both.gradients))
    if bias is None or not alone:
        return [both]
    return [both, DenseFactor({bias.name: _spread(bias, d.sum(2).flatten(2))})]


def _spread(source: Source, values: Tensor) -> Tensor:
    """Values (..., used rows) of a parameter of which only a stretch of rows was used, with zeros for the others."""
    return values if source.rows is None else F.pad(values, (source.rows[0], source.shape[0] - source.rows[1]))


def _probe(argument: str, source: Source, arguments: Arguments, gradient: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``<dL/dW, u v^T> = sum (x v) (D u)``, and ``sum D u`` for a bias."""
    if source.rows is not None:
        u = u[slice(*source.rows)]
    if argument == "bias" or (argument == "input" and "mat1" in arguments):
        return (full_precision(gradient).flatten(0, -2) @ u.to(full_precision(gradient))).sum(dtype=torch.float64)
    data = next(arguments[k] for k in ("mat1", "other", "input") if k in arguments and k != argument)
    if argument == "input":  # W @ x
        data, gradient = data.mT, gradient.mT
    into, out = (v, u) if (argument in ("weight", "input")) != source.transposed else (u, v)
    x, d = full_precision(data), full_precision(gradient)
    return ((x.flatten(0, -2) @ into.to(x)) * (d.flatten(0, -2) @ out.to(d))).sum(dtype=torch.float64)


def _is_unit(d: Tensor) -> bool:
    """Whether D is the identity: then the outputs asked for are those of this layer."""
    _, C, T, _, p = d.shape
    if C < 2 or p != C or T != 1 or d.device.type == "meta":
        return False
    return torch.equal(d[:, :, 0, 0], torch.eye(C, dtype=d.dtype, device=d.device).expand(len(d), C, C))


def _batched_linear(arguments: Arguments) -> bool:
    """A matrix as the weight, and an axis for the samples beside the features."""
    return arguments["input"].dim() >= 2 and arguments["weight"].dim() == 2


def _plain_addmm(arguments: Arguments) -> bool:
    """``bias + x @ W`` with the bias one row and no scalings."""
    return arguments["input"].dim() == 1 and arguments.get("beta", 1) == 1 and arguments.get("alpha", 1) == 1


def _matrix(arguments: Arguments) -> bool:
    """One operand is a matrix, the other at least one."""
    left, right = arguments.get("input"), arguments.get("other")
    return isinstance(left, Tensor) and isinstance(right, Tensor) and min(left.dim(), right.dim()) >= 2


def _one_matrix(arguments: Arguments) -> bool:
    return _matrix(arguments) and min(arguments["input"].dim(), arguments["other"].dim()) == 2


add_rule(
    F.linear,
    Rule(
        "linear",
        ("input", "weight", "bias"),
        ("weight", "bias"),
        "input",
        _linear,
        _batched_linear,
        views=True,
        probe=_probe,
    ),
)
for _function in (torch.addmm, torch.Tensor.addmm):
    add_rule(
        _function,
        Rule(
            "linear",
            ("input", "mat1", "mat2"),
            ("input", "mat2"),
            "mat1",
            _addmm,
            _plain_addmm,
            views=True,
            positional=3,
            probe=_probe,
        ),
    )
for _product in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm):
    add_rule(
        _product,
        Rule(
            "linear",
            ("input", "other"),
            ("input", "other"),
            None,
            _matmul,
            _one_matrix,
            views=True,
            positional=2,
            matrices=True,
            probe=_probe,
        ),
    )
