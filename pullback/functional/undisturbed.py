"""Evaluate a model without leaving a trace: modes, buffers and random state are put back, also after an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pullback.functional.plain_calls import own_calls, plain_calls
from pullback.functional.stand_in import stand_in
from pullback.functional.unwrap import eager, without_parameter_hooks
from pullback.functional.walk import parts_of


@contextmanager
def undisturbed(model: nn.Module, *, training: bool | None = None, derivatives: bool = True) -> Iterator[None]:
    """Restore train/eval modes, buffers, tensors kept in attributes and the global random state when the block ends.

    Gradients can be taken in the block also where the caller has forbidden them by ``torch.inference_mode``. Buffers
    and frozen parameters that were made there, which no graph can hold, are replaced by copies for as long.

    Args:
        model: the model whose state is kept. Weights and ``.grad`` are not saved, as nothing in this package writes
            to them, but for tables with a ``max_norm``, whose rows every look-up rescales.
        training: the mode every submodule is put in for the block; None leaves the modes alone.
        derivatives: whether they are taken; without, calls stay as they are, and torch keeps the fast paths of its
            transformer layers.

    Cost: one copy of the buffers (running statistics, masks).
    """
    modes = {module: module.training for module in parts_of(model)}
    made = _made_in_inference(model, modes)
    homes = [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    empty = [(module, name) for module in modes for name, buffer in module._buffers.items() if buffer is None]
    tables = [
        (module.weight, module.weight._version, module.weight.detach().clone())
        for module in modes
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    ]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(eager())
        stack.enter_context(without_parameter_hooks(model))
        stack.enter_context(stand_in(model, {name: tensor.clone() for name, tensor in made.items()}))
        if derivatives:
            stack.enter_context(plain_calls())
        try:
            if training is not None and any(mode != training for mode in modes.values()):
                model.train(training)
            yield
        finally:
            torch.clear_autocast_cache()  # torch 2.6 hands weights that were cast without a graph to passes with one
            for module, mode in modes.items():
                if module.training != mode:
                    module.training = mode
            for module, name in empty:
                module._buffers[name] = None
            for module, name, buffer, version, copy in homes:
                module._buffers[name] = buffer
                if buffer.device.type == "meta":  # nothing to put back
                    continue
                # batch norm writes its running statistics without raising the version
                if buffer._version != version or not torch.equal(buffer, copy):
                    with torch.no_grad():
                        buffer.copy_(copy)
            for weight, version, copy in tables:
                if weight._version != version:
                    with torch.no_grad():
                        weight.copy_(copy)


def _made_in_inference(model: nn.Module, parts: Iterable[nn.Module]) -> dict[str, Tensor]:
    """By name, parameters and buffers that were made in ``torch.inference_mode``."""
    tensors = [t for part in parts for held in (part._parameters, part._buffers) if held for t in held.values()]
    with own_calls():  # torch's modes are asked about every look at a tensor
        if not any(t is not None and t.is_inference() for t in tensors):
            return {}
    return {n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_inference()}
