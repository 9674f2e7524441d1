"""Samples that depend on each other are found before any product is made.

By definition a sample's values and their gradients are those of the batch that holds it alone. Three samples are
compared with themselves alone: the first, the last, and the one that looks most as if it depended on another.
That one is found from two backward passes over all of them: where samples are on their own, the derivative of
sum_i w_i v_i in the inputs of sample i is w_i times that of sum_i v_i, whatever the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pullback._checks import unsupported
from pullback._rng import make_generator
from pullback.functional.agreement import Tensors, disagreement, first_above, loosest, norms, row_norms, tolerance
from pullback.functional.batch import Batch, filled, take, tensors, without_inference
from pullback.functional.losses import check_finite
from pullback.functional.target_checks import logits_of
from pullback.operators.most_dependent import Lookups, most_dependent

Evaluate = Callable[..., dict[str, Tensor]]  # (x, y, parameters or None) -> what a sample's values are, (N, ...) each


def check_own_samples(
    evaluate: Evaluate, parameters: Tensors, every: Tensors, x: Batch, y: Batch, count: int, where: str
) -> None:
    """Refuse a model or a loss in which a sample's values or gradients depend on which others are in the batch.

    Args:
        evaluate: values by name ("output", "loss"), differentiable, of a batch; of the model or at other parameters.
        parameters: those of the model that gradients are compared in.
        every: all those of the model, by which rounding is measured.
        x: inputs, (N, ...).
        y: targets, (N, ...), or None.
        count: N.
        where: the caller.

    Cost: a forward pass, two backward passes to the inputs and one to the parameters; three samples alone.
    """
    if count == 1:
        return
    with torch.enable_grad():
        values, leaves, lookups = _with_graph(evaluate, x, y, count)
        of_samples = lambda *given: {name: v for name, v in evaluate(*given).items() if name in values}
        dtype = loosest([*lookups.dtypes, *(value.dtype for value in values.values())])
        between = most_dependent(_scalars(values, values), [*leaves, *lookups.found], dtype)
        chosen = list(dict.fromkeys((0, between, count - 1)))
        alone = [(take(x, [i]), take(y, [i])) for i in chosen]
        for i, (one_x, one_y) in zip(chosen, alone, strict=True):
            own = {name: value.detach() for name, value in of_samples(one_x, one_y).items()}
            errors = {name: norms([values[name][i : i + 1] - own[name]])[0] for name in own}
            again = lambda at, one_x=one_x, one_y=one_y: of_samples(one_x, one_y, at)
            if (found := disagreement(errors, own, again, every, dtype)) is not None:
                name, error, size = found
                raise mixed_samples(where, name, f"sample {i}", error, size)
        looked_at = dict(zip(chosen, alone, strict=True))
        _check_gradients(of_samples, parameters, every, (values, leaves, dtype), looked_at, where)


def _with_graph(evaluate: Evaluate, x: Batch, y: Batch, count: int) -> tuple[dict[str, Tensor], list[Tensor], Lookups]:
    """Values, the real inputs they can be differentiated in, and the look-ups of the others."""
    copy, leaves = with_gradients(x)
    try:
        with Lookups(tensors(copy), count) as lookups:
            return evaluate(copy, y), leaves, lookups
    except RuntimeError:
        if not leaves:
            raise
    # a model may write to its input by ``out=``, which autograd has no derivative for: parameters alone are left
    with Lookups(tensors(x), count) as lookups:
        return evaluate(x, y), [], lookups


def _check_gradients(
    evaluate: Evaluate,
    parameters: Tensors,
    every: Tensors,
    batch: tuple[dict[str, Tensor], list[Tensor], torch.dtype],
    alone: dict[int, tuple[Batch, Batch]],
    where: str,
) -> None:
    """Compare some samples' gradients in their batch, in parameters and inputs, with those of the samples alone.

    Args:
        evaluate: as for ``check_own_samples``.
        parameters: as for ``check_own_samples``.
        every: likewise.
        batch: values of the whole batch with their graph, its real inputs, and what was computed in, at its loosest.
        alone: sample -> the batch that holds it alone.
        where: the caller.
    """
    values, leaves, dtype = batch
    chosen = list(alone)
    inputs = {f"input {k}" if k else "input": leaf for k, leaf in enumerate(leaves)}

    def of_one(i: int, at: Tensors | None = None) -> dict[str, Tensor]:
        x, own = with_gradients(alone[i][0]) if leaves else (alone[i][0], [])
        total = _scalars(evaluate(x, alone[i][1], at), values).sum()
        return _gradient(total, {**(at or parameters), **dict(zip(inputs, own, strict=True))})

    # samples of all sizes count alike, so that a small gradient that is wrong shows beside large ones
    each = [of_one(i) for i in chosen]
    sizes = torch.stack([norms(g.values()).norm() for g in each])
    factors = 1 / torch.where(sizes > 0, sizes, sizes.max())
    if not torch.isfinite(factors).all():
        return  # no gradient at all, or none that a number can hold

    def combined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        variables = {**parameters, **every, **inputs}
        total: dict[str, Tensor] = {}
        for i, factor, part in zip(chosen, factors.tolist(), parts, strict=True):
            for name in part.keys() - total.keys():
                total[name] = torch.zeros_like(variables[name], dtype=torch.float64)
            for name, g in part.items():
                (total[name][i : i + 1] if name in inputs else total[name]).add_(g, alpha=factor)
        return total

    own = combined(each)
    whole = _scalars(values, values)
    in_batch = _gradient((factors.to(whole) * whole[chosen]).sum(), {**parameters, **inputs})
    again = lambda at: combined(of_one(i, at) for i in chosen)
    for names in (parameters, inputs):
        errors = {name: norms([in_batch[name].double() - own[name]])[0] for name in names}
        if errors and (differs := disagreement(errors, own, again, every, dtype, 0.1)) is not None:
            name, error, size = differs
            listed = "samples " + ", ".join(map(str, chosen[:-1])) + f" and {chosen[-1]}"
            raise mixed_samples(where, f"gradient in `{name}`", listed, error, size)


def _gradient(total: Tensor, variables: Tensors) -> dict[str, Tensor]:
    """Gradients of a number, whose graph is kept, by name."""
    if not total.requires_grad:
        return {name: torch.zeros_like(v) for name, v in variables.items()}
    slopes = torch.autograd.grad(total, list(variables.values()), allow_unused=True, retain_graph=True)
    pairs = zip(variables.items(), slopes, strict=True)
    return {n: torch.zeros_like(v) if g is None else g.to_dense() for (n, v), g in pairs}


def check_rows(rows: Tensor, own: Tensor, what: str, where: str) -> None:
    """Refuse rows (N, ...) of a batch that are not ``own``, those of every sample alone.

    A tenth of the largest row's tolerance is allowed everywhere: a row may be zero but for rounding.
    """
    for values in (own, rows):
        check_finite(values, where, what)
    errors, sizes = row_norms(rows - own), row_norms(own)
    bounds = tolerance(loosest([rows.dtype])) * (sizes + 0.1 * sizes.max())
    if (i := first_above(errors, bounds)) is not None:
        raise mixed_samples(where, what, f"sample {i}", float(errors[i]), float(sizes[i]))


def mixed_samples(where: str, what: str, which: str, error: float, size: float) -> Exception:
    """The error for samples whose values or gradients depend on which others are in the batch."""
    return unsupported(
        where,
        "a model and loss that treat every sample on its own",
        f"another {what} for {which} alone than in the batch, by {error:.2e} where its size is {size:.2e}",
        "Call model.eval(), pass batch_first=True to layers that take (T, N, ...) otherwise, or rewrite what mixes "
        "samples (statistics over the batch, sums along it)",
    )


def output_values(outputs: Any, count: int) -> dict[str, Tensor]:
    """The floating numbers in each tensor a model returned, by sample, (N, C); masked ones (-inf) count as zero.

    Those without an axis of samples are left out. A batch of one cannot tell (the state of one recurrent layer).
    """
    leaves = [t for t in tree_flatten(logits_of(outputs))[0] if isinstance(t, Tensor) and t.is_floating_point()]
    names = ["output", *(f"output {place}" for place in range(2, len(leaves) + 1))]
    flat = {n: t.reshape(count, -1) for n, t in zip(names, leaves, strict=False) if t.dim() and len(t) == count}
    return {name: torch.where(torch.isfinite(t), t, 0.0) for name, t in flat.items()}


def with_gradients(x: Batch) -> tuple[Batch, list[Tensor]]:
    """The batch with differentiable floating tensors, and those."""
    x = without_inference(x)
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in tensors(x)]
    return filled(x, leaves), [leaf for leaf in leaves if leaf.requires_grad]


def _scalars(values: dict[str, Tensor], scale: dict[str, Tensor]) -> Tensor:
    """One number a sample, (N,): its values with fixed signs, each kind of them by its largest size in the batch."""
    total = []
    for name, value in values.items():
        flat, size = value.reshape(len(value), -1), row_norms(scale[name]).max()
        signs = torch.randint(2, flat.shape[1:], generator=make_generator(flat.shape[1]), device="cpu") * 2 - 1
        total.append(flat.double() @ signs.to(flat.device, torch.float64) / torch.where(size > 0, size, 1.0))
    return torch.stack(total).sum(0)
