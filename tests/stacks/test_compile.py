"""Compiled models: their parameters under their own names, evaluated by the eager code, nothing compiled anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.functional.unwrap import eager, unwrap
from pullback.monitor import Monitor
from pullback.runs import load_run
from tests.compare import assert_same
from tests.stacks.plain import LAYERS, LOSS, Plain, data, plain, unchanged

# the compiler itself looks at the gradients of inputs that are no leaves
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Backend:
    """Runs graphs as they are, and counts how many it was given and how often they ran."""

    def __init__(self) -> None:
        self.compiled, self.ran = 0, 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph(*args)

        return run


def whole(backend: Any) -> nn.Module:
    """The wrapper ``torch.compile`` returns."""
    return torch.compile(plain(), backend=backend)


def in_place(backend: Any) -> nn.Module:
    model = plain()
    model.compile(backend=backend)
    return model


def submodule(backend: Any) -> nn.Module:
    model = plain()
    model.middle.compile(backend=backend)
    return model


def method(backend: Any) -> nn.Module:
    """A compiled function among the model's own."""
    model = plain()
    model.body = torch.compile(model.body, backend=backend)
    return model


WAYS = (whole, in_place, submodule, method)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_equals_the_kernel_of_the_eager_model(way: Callable[[Any], nn.Module]) -> None:
    torch.compiler.reset()
    backend, (x, y) = Backend(), data()
    model, expected = way(backend), pb.backward_kernel(plain(), LOSS, x, y)
    for _ in range(2):  # before and after the model was compiled
        counts = backend.compiled, backend.ran
        with unchanged(model):
            kernel = pb.backward_kernel(model, LOSS, x, y)
        assert (backend.compiled, backend.ran) == counts, "compiled code took part"
        assert torch.equal(kernel.total, expected.total)
        assert list(kernel.layers) == list(expected.layers) == LAYERS
        assert list(kernel.parameters) == list(expected.parameters)
        model(x)
        assert backend.ran > counts[1]  # compiled code still runs for its owner
    assert_same(reference.total_kernel(model, LOSS, x, y), expected.total)


@pytest.mark.slow
def test_compiled_and_differentiated_ahead_of_time() -> None:
    """A backend that traces the backward pass; a compiled loss."""
    torch.compiler.reset()
    x, y = data()
    model = torch.compile(plain(), backend="aot_eager")
    loss_fn = torch.compile(lambda z, t: (z - t).square().sum((1, 2)), backend="aot_eager")
    loss_fn(model(x), y).sum().backward()
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, reference.total_kernel(plain(), LOSS, x, y))
    loss_fn(model(x), y).sum().backward()


def test_a_wrapped_submodule_keeps_the_name_the_model_gives_it() -> None:
    """``torch.compile(layer)`` as a part of a model renames its parameters; they are reported so."""
    model, (x, y) = plain(), data()
    model.middle = torch.compile(model.middle, backend="eager")
    kernel = pb.backward_kernel(model, LOSS, x, y)
    assert list(kernel.parameters) == [name for name, _ in model.named_parameters()]
    assert "middle._orig_mod.weight" in kernel.parameters
    assert_same(kernel.total, reference.total_kernel(plain(), LOSS, x, y))


def test_two_models_in_different_wrappers() -> None:
    """Rows from one set of weights, columns from another: the wrappers do not matter."""
    x, y = data()
    torch.manual_seed(4)
    other = Plain().double().eval()
    expected = pb.backward_kernel(plain(), LOSS, x, y, model2=other)
    kernel = pb.backward_kernel(
        torch.compile(plain(), backend="eager"),
        LOSS,
        x,
        y,
        model2=nn.DataParallel(torch.compile(other, backend="eager")),
    )
    assert torch.equal(kernel.total, expected.total)
    assert list(kernel.layers) == LAYERS


def test_a_monitor_sees_the_same_in_a_compiled_model(tmp_path: Path) -> None:
    """Every probe measures what it measures in the eager model, under the same names."""
    runs = []
    for kind in ("eager", "compiled"):
        model, (x, y) = plain(), data()
        if kind == "compiled":
            model = torch.compile(model, backend="aot_eager")
        with Monitor(model, LOSS, tmp_path / kind, every=1, probes="full", budget=None) as monitor:
            loss = LOSS(model(x), y)
            monitor.step(x, y, loss=loss)
        runs.append({r.probe: r for r in load_run(tmp_path / kind).records if r.probe != "cost"})
    eager, compiled = runs
    assert {"kernel", "flow", "gradients", "loss", "sharpness"} <= set(eager)
    assert not [r.error for r in compiled.values() if r.error]
    assert {probe: r.values.keys() for probe, r in compiled.items()} == {p: r.values.keys() for p, r in eager.items()}
    for probe in ("kernel", "flow", "gradients", "loss"):
        for metric in ("M1", "M2", "trace_share", "gradient_norm", "rms_gradient_norm", "loss"):
            if metric in eager[probe].values:
                assert compiled[probe].values[metric] == pytest.approx(eager[probe].values[metric], rel=1e-9)


def test_wrappers_are_looked_through() -> None:
    model = Plain()
    assert unwrap(model) is model
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert unwrap(nn.DataParallel(torch.compile(nn.DataParallel(model), backend="eager"))) is model


def test_data_parallel() -> None:
    x, y = data()
    kernel = pb.backward_kernel(nn.DataParallel(plain()), LOSS, x, y)
    assert list(kernel.layers) == LAYERS
    assert_same(kernel.total, reference.total_kernel(plain(), LOSS, x, y))


def test_the_compiler_is_as_before() -> None:
    """After an error too, compiled code runs compiled again."""
    torch.compiler.reset()
    backend = Backend()
    function = torch.compile(lambda t: t + 1, backend=backend)

    def fail() -> None:
        with eager():
            function(torch.zeros(2))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert backend.compiled == 0
    function(torch.zeros(2))
    assert (backend.compiled, backend.ran) == (1, 1)
