"""Arguments that were taken for something else, or passed over without a word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pullback as pb


def _model(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def _data() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 4, dtype=torch.float64), torch.arange(4) % 3


CALLS = {
    "backward_kernel": lambda **k: pb.backward_kernel(_model(), nn.CrossEntropyLoss(), *_data(), **k),
    "tangent_kernel": lambda **k: pb.tangent_kernel(_model(), _data()[0], **k),
    "GradientMatrix": lambda **k: pb.GradientMatrix(_model(), nn.CrossEntropyLoss(), *_data(), **k),
    "check_gradients": lambda **k: pb.check_gradients(_model(), nn.CrossEntropyLoss(), *_data(), **k),
    "plan_kernel": lambda **k: pb.plan_kernel(_model(), nn.CrossEntropyLoss(), *_data(), **k),
}


@pytest.mark.parametrize("call", CALLS)
def test_params_is_a_list_of_names(call: str) -> None:
    """A lone text was read letter by letter, an empty list blamed the model."""
    for params, got in (("0.weight", "'0.weight'"), ([], "none")):
        with pytest.raises(pb.InputError, match=f"{call}: expected `params` to be a list of names, got {got}. Pass a"):
            CALLS[call](params=params)
    text = "among 0.weight, 0.bias, 2.weight, 2.bias, 0, 2, got 'nope'"
    with pytest.raises(pb.InputError, match=text):
        CALLS[call](params=["nope"])


@pytest.mark.parametrize("call", ["backward_kernel", "tangent_kernel", "plan_kernel"])
def test_forms_of_layers_that_do_not_exist(call: str) -> None:
    with pytest.raises(pb.InputError, match="layers and parameters in `forms` among .*, got 'zero'"):
        CALLS[call](forms={"0": "ghost", "zero": "ghost"})


@pytest.mark.parametrize("call", ["backward_kernel", "tangent_kernel"])
def test_a_second_model_of_another_shape(call: str) -> None:
    text = r"parameters of `model`, `2.weight` of shape \(3, 5\), got \(4, 5\). Pass a copy of the model"
    with pytest.raises(pb.InputError, match=text):
        CALLS[call](model2=_model(4))
    frozen = _model()
    frozen[0].bias.requires_grad_(False)
    with pytest.raises(pb.InputError, match=r"`0.bias` of shape \(5,\), got none"):
        CALLS[call](model2=frozen)


class Complex(nn.Module):
    """A complex weight beside real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(torch.complex128) @ self.weight).abs())


def test_complex_parameters_are_refused() -> None:
    model, (x, y), loss = Complex().double(), _data(), nn.CrossEntropyLoss()
    model.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
    with pytest.raises(pb.UnsupportedError, match="real parameters, got torch.complex128 in `weight`. Keep its real"):
        pb.backward_kernel(model, loss, x, y)
    found = pb.backward_kernel(model, loss, x, y, params=["head"]).total
    model.weight.requires_grad_(False)
    assert torch.allclose(found, pb.reference.total_kernel(model, loss, x, y))
