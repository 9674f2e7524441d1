"""Parts and parameters of a module, as torch lists them."""

import pytest
from torch import nn

from pullback.functional.walk import named_parameters_of, parameters_of, parts_of, tensors_of, types_of

shared = nn.Linear(2, 2)
tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
tied[1].weight = tied[0].weight
empty = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
empty.add_module("none", None)
MODELS = {
    "one": nn.Linear(2, 2),
    "nested": nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ModuleDict({"a": nn.GRU(2, 3, 2)})),
    "shared twice": nn.Sequential(shared, nn.Sequential(shared, nn.Tanh()), nn.BatchNorm1d(2)),
    "tied": tied,
    "without a part": empty,
    "transformer": nn.TransformerEncoderLayer(4, 2, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_torch_lists_them(name: str) -> None:
    model = MODELS[name]
    assert [id(part) for part in parts_of(model)] == [id(part) for part in model.modules()]
    assert [id(p) for p in parameters_of(model)] == [id(p) for p in model.parameters()]
    named = [(name, id(p)) for name, p in model.named_parameters()]
    assert [(name, id(p)) for name, p in named_parameters_of(model).items()] == named
    tensors = [*model.parameters(), *model.buffers()]
    assert [id(t) for t in tensors_of(model)] == [id(t) for t in tensors]
    assert types_of(model) - {type(None)} == {type(t) for t in tensors}


def test_a_type_of_a_part_deep_inside_is_seen() -> None:
    lazy = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))
    assert nn.UninitializedParameter in types_of(lazy)
