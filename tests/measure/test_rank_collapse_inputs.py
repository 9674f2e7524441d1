"""Rank collapse: what a model is called with, and how inputs that it cannot take are refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.measure import AttentionSpec, rank_collapse
from pullback.modules import LinformerAttention
from tests.measure.test_rank_collapse_models import assert_alike, encoder
from tests.measure.tokens import D, H, N, T, drawn

pytestmark = pytest.mark.usefixtures("seeded")


class Words(nn.Module):
    """Takes ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.blocks = nn.Embedding(10, D), encoder(1, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.blocks(self.table(input_ids))
        return found


class Raising(nn.Module):
    """Raises itself, or asks Python for what there is not."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error, self.weight = error, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        found: Tensor = {}["missing"]
        return found


@cache
def model_of(kind: str) -> nn.Module:
    made: dict[str, Any] = {
        "encoder": lambda: encoder(1, batch_first=True),
        "words": Words,
        "attention": lambda: nn.MultiheadAttention(D, H, batch_first=True),
        "meta": lambda: nn.MultiheadAttention(D, H, batch_first=True, device="meta"),
        "list": lambda: nn.ModuleList([encoder(1)]),
    }
    found: nn.Module = made[kind]()
    return found


X, IDS = drawn(N, T, D), torch.ones(N, T).long()
NO_TENSORS = (
    "`inputs` as a tensor, or a tuple, list or dict of them, got {}. Convert arrays and numbers with torch.as_tensor"
)
ARGUMENTS = "`inputs` for the model's arguments `input_ids`, `attention_mask`, got {}"
EMPTY = r"`inputs` with a sample of tokens, got \({}\). Pass samples that are not empty"
REFUSED: list[tuple[str, Any, str]] = [
    ("encoder", "words", NO_TENSORS.format("str")),
    ("attention", "words", NO_TENSORS.format("str")),
    ("encoder", 3, NO_TENSORS.format("int")),
    ("encoder", ["a", "b"], NO_TENSORS.format(r"\['a', 'b'\]")),
    ("encoder", (), NO_TENSORS.format(r"\(\)")),
    ("words", {}, NO_TENSORS.format("{}")),
    ("words", {"input_ids": "hello"}, NO_TENSORS.format("{'input_ids': 'hello'}")),
    ("encoder", np.ones((N, T, D)), NO_TENSORS.format("ndarray")),
    (
        "words",
        {"input_ids": np.ones((N, T)), "attention_mask": IDS},
        "`inputs` as a tensor, or .*, got {'input_ids': array.*",
    ),
    ("encoder", torch.utils.data.TensorDataset(X), NO_TENSORS.format("TensorDataset")),
    ("words", {"attention_mask": IDS}, ARGUMENTS.format("missing a required argument: 'input_ids'. Pass a tuple")),
    ("words", {"input_ids": IDS, "more": 1}, ARGUMENTS.format("an unexpected keyword argument 'more'. Pass a tuple")),
    ("words", (IDS, IDS, IDS), ARGUMENTS.format("too many positional arguments. Pass a tuple")),
    ("words", {"ids": IDS}, ARGUMENTS.format("'ids'. Pass them by these names")),
    ("attention", (X, X), "arguments `query`, `key`, .*got missing a required argument: 'value'"),
    ("words", IDS.float(), "token ids, whole numbers, in `inputs`, got float32. Convert them with .long()"),
    ("words", IDS * 10, "token ids from 0 to 9, got 10 to 10. Use the model's own tokenizer"),
    ("words", -IDS, "token ids from 0 to 9, got -1 to -1"),
    ("encoder", X.double(), r"`inputs` of the model's dtype float32, got float64. Convert one of them with .to"),
    ("encoder", X.half(), "`inputs` of the model's dtype float32, got float16"),
    ("encoder", X.long(), "`inputs` of the model's dtype float32, got int64"),
    ("encoder", X[..., 1:], r"`inputs` that the model takes, got \(3, 6, 15\) float32: .*Compare them with what"),
    ("encoder", X[None], r"`inputs` that the model takes, got \(1, 3, 6, 16\) float32: "),
    ("encoder", X[0, 0], r"`inputs` that the model takes, got \(16,\) float32: "),
    ("encoder", X[:0], EMPTY.format("0, 6, 16")),
    ("encoder", X[:, :0], EMPTY.format("3, 0, 16")),
    ("words", IDS[:, :0], EMPTY.format("3, 0")),
    (
        "encoder",
        X.to_sparse(),
        "dense tensors in `inputs`, got a sparse, nested or quantised one. Convert with to_dense",
    ),
    ("encoder", X.to("meta"), "a model and `inputs` of numbers, got shapes alone, on device meta. Move the model and"),
    ("meta", X, "a model and `inputs` of numbers, got shapes alone, on device meta"),
    ("list", X, "a model with a forward method, got ModuleList. Pass one that can be called"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_inputs_that_a_model_cannot_take_are_refused_in_a_sentence(number: int) -> None:
    kind, inputs, said = REFUSED[number]
    with pytest.raises(pb.InputError, match=f"^rank_collapse: expected .*{said}"):
        rank_collapse(model_of(kind), inputs)


SPEC = AttentionSpec(1, width=D, heads=H, tokens=T)
OPTIONS: list[tuple[Any, dict[str, Any], str]] = [
    (X, {"mask": torch.full((N, T), 0.5)}, "a `mask` of True and False, got other entries. Pass True where a token is"),
    (X, {"mask": torch.ones(N, T, device="meta")}, "a `mask` of True and False"),
    (X, {"spectrum": "no"}, "`spectrum` True or False, got 'no'. Pass one of them"),
    (X, {"seed": "a"}, "`seed` at least 0, got 'a'"),
    (X, {"dtype": "float32"}, "`dtype` of floating point, got 'float32'. Pass torch.float32"),
    (X, {"dtype": torch.int64}, "`dtype` of floating point, got torch.int64"),
    (X.to("meta"), {}, "`inputs` of numbers, got shapes alone, on device meta. Move them to the CPU"),
    (X[:0], {}, EMPTY.format("0, 6, 16")),
    (X / 0, {}, "finite numbers in `inputs`, got NaN or infinity"),
]


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_options_that_are_none_are_refused(number: int) -> None:
    inputs, given, said = OPTIONS[number]
    with pytest.raises(pb.InputError, match=f"^rank_collapse: expected {said}"):
        rank_collapse(SPEC, inputs, **given)


@pytest.mark.parametrize("error", [ValueError("on purpose"), KeyError("on purpose"), RuntimeError("on purpose")])
def test_what_a_model_raises_itself_passes_through(error: Exception) -> None:
    """Also for inputs of another dtype, which it may well take; with a note of who called it."""
    with pytest.raises(type(error), match="on purpose") as caught:
        rank_collapse(Raising(error), X.double())
    assert caught.value is error
    (note,) = set(error.__notes__)
    assert note.startswith("Raised by the model in its forward pass, called with (3, 6, 16) float64")
    with pytest.raises(KeyError, match="missing") as missing:
        rank_collapse(Raising(None), X)
    assert len(missing.value.__notes__) == 1


def test_a_tensor_alone_is_queries_keys_and_values(x: Tensor) -> None:
    for model in (nn.MultiheadAttention(D, H, batch_first=True), LinformerAttention(D, H, length=T, k=3)):
        whole = rank_collapse(model, (x, x, x))
        for inputs in (x, (x,), [x]):
            assert_alike(rank_collapse(model, inputs), whole)
