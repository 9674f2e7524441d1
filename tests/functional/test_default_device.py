"""A default device is one for tensors of the user's: what the package makes says where it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.entry_points import EVERYWHERE
from tests.functional.test_inputs import data, net, results

QUICK = ("backward_kernel", "sketch_kernel", "kernel_to_store", "Hessian", "curvature_spectrum", "self_influence")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERYWHERE]
)
def test_every_call_is_the_same_under_another_default_device(name: str) -> None:
    """The meta device stands for any other one: what is made there has no numbers."""
    _, x, _, y = data()
    loss_fn = nn.CrossEntropyLoss()
    expected, model = results(EVERYWHERE[name], net(nn.Identity()), loss_fn, x, y), net(nn.Identity())
    with torch.device("meta"):
        found = results(EVERYWHERE[name], model, loss_fn, x, y)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
