"""One forward pass and a backward pass per output that record, for every use of a parameter, what it saw.

The forward pass runs under a ``Recorder``. After it, the gradient of each of the C values of the readout is taken
in the outputs of the recorded calls. In one further pass (the same one, if C = 1) a fixed combination of the values
is differentiated in the aliases and in the parameters themselves: a parameter that still has a gradient of its own
was used somewhere no call was recorded, which is how ``captured_rows`` proves that nothing was missed; the aliases'
gradients are the ordinary gradient, which checks the recorded factors by another way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pullback._checks import unsupported
from pullback.functional import ModelView, num_samples
from pullback.functional.batch import Batch, copied
from pullback.functional.model_view import called
from pullback.functional.plain_calls import own_calls
from pullback.functional.readout import Readout, combination
from pullback.functional.saved_tensors import autograd_in_words, noted_hooks
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import weighted_pass
from pullback.gradients.capture.recorder import Recorder, SelfDifferentiating
from pullback.gradients.capture.user_layers import user_layers
from pullback.gradients.capture.uses import Capture, Use
from pullback.gradients.rules import Source


def capture(
    view: ModelView,
    readout: Readout,
    x: Batch,
    y: Batch,
    where: str,
    *,
    like: Capture | None = None,
    weighted: bool = False,
) -> Capture:
    """Run the model and the readout forwards, then backwards once per output, recording every use of a parameter.

    Args:
        view: the parameters asked for.
        readout: the values whose gradients are asked for.
        x: inputs, (N, ...).
        y: targets, (N, ...), or None.
        where: the caller, for error messages.
        like: an earlier capture of more samples, whose structure this one is to show; no gradients are then taken.
        weighted: make one more backward pass, which shows whose gradients depend on other samples.
    """
    count = num_samples(x)
    with torch.enable_grad():
        recorder, outputs = _recorded(view, x, count, where, like)
        values = readout(outputs, y, where)
        if like is None and not values.requires_grad:
            raise unsupported(
                where,
                "a loss or outputs that depend on the parameters",
                "none that do",
                "Check for detach(), no_grad(), or checkpointing with use_reentrant=True",
            )
    detached = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, outputs)
    with torch.enable_grad(), without_autocast(), autograd_in_words(where):
        projections = weighted_pass(recorder.uses, values) if weighted else {}
        gradients, ordinary, escaped = ([], {}, set()) if like else _differentiate(view, recorder, values)
        with own_calls():
            probes = _probed(recorder.uses, gradients, values)
    return Capture(
        count,
        recorder.uses,
        gradients,
        ordinary,
        probes,
        recorder.derived,
        recorder.constants,
        frozenset(escaped),
        values.detach(),
        detached,
        frozenset(recorder.dtypes),
        projections,
    )


def _recorded(view: ModelView, x: Batch, count: int, where: str, like: Capture | None) -> tuple[Recorder, Any]:
    """The forward pass; of a model that differentiates itself nothing is recorded, and all goes to the fallback."""
    given = copied(x)  # recorded in place of the caller's, which may be written to later
    recorder = Recorder(view, given, count, where, like.constants if like else None)
    try:
        with noted_hooks(), own_calls(), recorder, user_layers(recorder, view.model):  # it makes plain calls itself
            outputs = called(view.model, given)
    except SelfDifferentiating:
        with (blind := Recorder(view, given, count, where, blind=True)):
            return blind, called(view.model, copied(x))
    with own_calls():
        recorder.settle()
    return recorder, outputs


def _differentiate(
    view: ModelView, recorder: Recorder, values: Tensor
) -> tuple[list[list[Tensor | None]], dict[str, Tensor], set[str]]:
    """Gradients of every use, the ordinary gradient of the combination, and parameters used elsewhere too."""
    C = values.shape[1]
    edges: Any = [use.edge for use in recorder.uses]
    aliases, own = [alias for _, alias in recorder.aliases], list(view.parameters.values())
    if C == 1:
        found: Any = torch.autograd.grad(values.sum(), [*edges, *aliases, *own], allow_unused=True)
        gradients = [[gradient] for gradient in found[: len(edges)]]
    else:
        gradients = _by_output(values, edges)
        combined = (values * combination(C, values)).sum()
        found = [*edges, *torch.autograd.grad(combined, [*aliases, *own], allow_unused=True)]
    of_aliases, of_own = found[len(edges) : len(edges) + len(aliases)], found[len(edges) + len(aliases) :]
    ordinary = _ordinary(view, recorder, of_aliases, of_own)
    escaped = {name for name, gradient in zip(view.parameters, of_own, strict=True) if gradient is not None}
    lost = [source for use in recorder.uses if use.overwritten for source in use.sources.values()]
    return gradients, ordinary, escaped.union(*(recorder.behind(source) for source in lost))


def _by_output(values: Tensor, edges: list[Any]) -> list[list[Tensor | None]]:
    """Gradients of every output in ``edges``.

    Those of one edge are views ``[:, c]`` of one tensor, (axis of the samples, C, ...), as factors want them.
    """
    C = values.shape[1]
    places: list[Tensor | None] = [None] * len(edges)
    for c in range(C) if edges else ():
        gradients = torch.autograd.grad(values[:, c].sum(), edges, retain_graph=True, allow_unused=True)
        for k, gradient in enumerate(gradients):
            if gradient is not None:
                place = places[k]
                if place is None:
                    place = places[k] = gradient.new_zeros(len(gradient), C, *gradient.shape[1:])
                place[:, c] = gradient
    return [[None] * C if p is None else list(p.unbind(1)) for p in places]


def direction(shape: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
    """Fixed signs u (first axis) and v (all others, flat) for a parameter of this shape.

    An error E in its gradient shows in ``<E, u v^T>`` as about |E|, whatever its form.
    """
    return _signs(shape, like.dtype, like.device)


@lru_cache(maxsize=256)
def _signs(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Drawn once for a shape: a monitor asks again at every measurement."""
    make = torch.Generator().manual_seed(shape.numel())
    sizes = shape[0], shape[1:].numel()
    u, v = (torch.randint(2, (size,), generator=make, device="cpu") * 2 - 1 for size in sizes)
    u, v = u.to(device, dtype), v.to(device, dtype)
    return u, v if len(shape) > 1 else v.abs()


def _probed(uses: list[Use], gradients: list[list[Tensor | None]], values: Tensor) -> dict[str, Tensor]:
    """Per parameter ``<gradient, u v^T>`` of the combination, over the uses whose ordinary gradient was not formed."""
    probes: dict[str, Tensor] = {}
    signs = combination(values.shape[1], torch.empty(0, device="cpu")).tolist()  # the values may be on the meta device
    for use, each in zip(uses, gradients, strict=False):
        combined = [g if sign == 1 else -g for g, sign in zip(each, signs, strict=True) if g is not None]
        for argument in use.probed if combined else ():
            source = use.sources[argument]
            u, v = direction(source.shape, use.arguments[argument])
            assert use.rule.probe is not None
            value = use.rule.probe(argument, source, use.arguments, sum(combined[1:], start=combined[0]), u, v)
            probes[source.name] = probes[source.name] + value if source.name in probes else value
    return probes


def _ordinary(
    view: ModelView, recorder: Recorder, of_aliases: tuple[Tensor | None, ...], of_own: tuple[Tensor | None, ...]
) -> dict[str, Tensor]:
    """Gradients of aliases, of derived tensors and of the parameters themselves, added up by parameter."""
    ordinary: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor | None) -> None:
        if gradient is not None:
            gradient = gradient.to_dense()  # those of tables may be sparse
            ordinary[name] = ordinary[name] + gradient if name in ordinary else gradient

    behind: dict[int, Tensor] = {}
    for (source, _), gradient in zip(recorder.aliases, of_aliases, strict=True):
        if gradient is None:
            continue
        if source.name in view.parameters:
            add(source.name, _of_parameter(source, gradient))
        else:
            place = int(source.name[1:])
            behind[place] = behind[place] + gradient if place in behind else gradient
    if behind:
        derived = [recorder.derived[place].value for place in behind]
        parameters = list(view.parameters.values())
        gradients = torch.autograd.grad(
            derived, parameters, list(behind.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(view.parameters, gradients, strict=True):
            add(name, gradient)
    for name, gradient in zip(view.parameters, of_own, strict=True):
        add(name, gradient)
    return ordinary


def _of_parameter(source: Source, gradient: Tensor) -> Tensor:
    """Gradient of a view of a parameter as one of the parameter."""
    if source.transposed:
        return gradient.mT
    if source.rows is None:
        return gradient
    whole = gradient.new_zeros(source.shape)
    whole[slice(*source.rows)] = gradient
    return whole
