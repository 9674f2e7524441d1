"""Named parameters: once where tied, not at all where frozen. S0-01."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.functional import ModelView, num_samples, take, undisturbed
from tests.cases import CASES, build


def test_round_trip_is_exact_and_the_note_s_network_has_460682_parameters() -> None:
    """S0-01."""
    model = pb.modules.MLP([3072, 128, 128, 128, 128, 128, 10])
    view = ModelView.of(model)
    assert view.num_params == 460_682
    flat = view.flatten(view.parameters)
    assert flat.shape == (460_682,)
    assert all(torch.equal(view.unflatten(flat)[name], p) for name, p in view.parameters.items())


def test_tied_parameters_count_once() -> None:
    model, *_ = build(next(c for c in CASES if c.name == "tied"), 2)
    view = ModelView.of(model)
    assert view.tied == {"head.weight": "embed.weight"}
    assert list(view.parameters) == ["again.weight", "again.bias", "embed.weight"]
    assert view.num_params == 5 * 5 + 5 + 7 * 5


def test_names_select_parameters_modules_and_tied_ones() -> None:
    model, *_ = build(next(c for c in CASES if c.name == "tied"), 2)
    assert list(ModelView.of(model, ["head"]).parameters) == ["embed.weight"]
    assert list(ModelView.of(model, ["again.bias"]).parameters) == ["again.bias"]
    model[0] if isinstance(model, nn.Sequential) else None
    frozen, *_ = build(next(c for c in CASES if c.name == "frozen"), 2)
    assert ModelView.of(frozen).frozen == ("2.weight", "4.bias")
    with pytest.raises(pb.InputError, match=r"trainable parameters, got frozen 2\.weight"):
        ModelView.of(frozen, ["2.weight"])


def test_inputs_of_every_kind() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, a: Tensor, b: Tensor, flag: bool = True) -> Tensor:
            return self.linear(a + b if flag else a)

    view, a, b = ModelView.of(Many()), torch.randn(3, 2), torch.randn(3, 2)
    expected = view.model(a, b)
    assert torch.equal(view((a, b)), expected)
    assert torch.equal(view([a, b]), expected)
    assert torch.equal(view({"b": b, "a": a}), expected)
    assert torch.equal(view({"b": b, "a": a, "flag": False}), view.model.linear(a))
    assert num_samples({"a": a, "flag": True}) == 3
    assert take({"a": a, "flag": True}, [1])["a"].shape == (1, 2)
    assert num_samples(UserDict(a=a)) == 3  # as a tokenizer returns it
    assert torch.equal(take(UserDict(a=a), [1])["a"], a[[1]])
    with pytest.raises(pb.InputError, match="`x` with at least one sample, got no data"):
        num_samples([])


def test_outputs_at_other_parameters() -> None:
    model = nn.Linear(2, 1)
    view = ModelView.of(model)
    other = {name: torch.zeros_like(p) for name, p in view.parameters.items()}
    assert torch.equal(view(torch.randn(4, 2), other), torch.zeros(4, 1))
    assert model.weight.abs().sum() > 0


class Counting(nn.Module):
    """Writes to its buffers, draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.seen = self.seen.clone()
        return self.norm(x) + torch.rand(1)


@pytest.mark.parametrize("fail", [False, True])
def test_undisturbed(fail: bool) -> None:
    model = Counting()
    model.norm.eval()
    home = model.seen
    before: list[Any] = [model.seen.clone(), model.norm.running_mean.clone(), torch.get_rng_state()]
    try:
        with undisturbed(model, training=True):
            assert model.norm.training
            model(torch.randn(4, 2))
            if fail:
                raise KeyError
    except KeyError:
        assert fail
    after = [model.seen, model.norm.running_mean, torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model.seen is home
    assert model.training
    assert not model.norm.training
