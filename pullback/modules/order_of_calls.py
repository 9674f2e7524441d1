"""The order of calls in a model: of one forward pass on an example, or of its code alone."""

from __future__ import annotations

import torch
from torch import nn

from pullback._checks import input_error
from pullback.functional.batch import Batch
from pullback.functional.undisturbed import undisturbed
from pullback.modules.composed_activations import of_module
from pullback.modules.example_inputs import example_of
from pullback.modules.order import Order
from pullback.modules.order_of_code import order_of_code
from pullback.modules.order_of_pass import order_of_pass


def order_of(model: nn.Module, x: Batch | None, where: str) -> Order:
    """The order of calls of a forward pass on ``x``, or without one as far as the code alone shows it.

    Nothing of the model changes. Without ``x`` a copy that shares its parameters is run on symbols by ``torch.fx``,
    which cannot follow code that decides by values or shapes; models of Hugging Face are given the smallest input that
    their configuration allows, and torch's transformers among other layers a few zeros.

    Raises:
        InputError: without ``x``, such a model.
    """
    with undisturbed(model, training=False), torch.no_grad():
        units = {name: found for name, m in model.named_modules() if (found := of_module(m)) is not None}
        if x is not None:
            return order_of_pass(model, x, units)
        try:
            made = example_of(model)
            return order_of_code(model, units) if made is None else order_of_pass(model, made, units)
        except Exception as error:  # any code of a user's
            words = str(error).strip().split("\n")[0].rstrip(".") or "no message"
            got = f"{type(error).__name__} ({words})"
            raise input_error(
                where, "a model whose order of calls its code alone shows", got, "Pass an example of its inputs as x="
            ) from error
