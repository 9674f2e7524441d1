"""Parts and parameters of a module, as torch lists them."""

import pytest
from torch import nn

from pullback.functional.walk import parameters_of, parts_of

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
