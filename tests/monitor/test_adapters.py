"""The callbacks' packages are loaded when a callback is asked for, and not before."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import pullback as pb
from pullback.monitor.adapters.metrics import held_out
from tests.command import HANGS

PACKAGES = ("transformers", "accelerate", "lightning", "pytorch_lightning", "tensorboard", "wandb")
CODE = f"""
import sys
import pullback
import pullback.monitor as monitor
def loaded():
    return [name for name in {PACKAGES} if name in sys.modules]
assert loaded() == [], loaded()
assert {{"LightningCallback", "TransformersCallback"}} <= set(dir(monitor)) == set(monitor.__all__)
"""


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE + code], capture_output=True, text=True, check=True, timeout=HANGS
    ).stdout


@pytest.mark.slow
def test_the_monitor_alone_loads_none_of_them() -> None:
    assert run("print('loaded none')") == "loaded none\n"


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("transformers"), reason="needs transformers")
def test_one_callback_loads_its_own_package() -> None:
    loaded = run("monitor.TransformersCallback('run'); print(*loaded())").split()
    assert "transformers" in loaded
    assert not {"lightning", "pytorch_lightning", "tensorboard", "wandb"} & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra", "package"),
    [
        ("LightningCallback", "lightning", "lightning or pytorch_lightning"),
        ("TransformersCallback", "hf", "transformers"),
    ],
)
def test_without_the_package(name: str, extra: str, package: str) -> None:
    """One sentence with the extra to install, when the callback is asked for."""
    code = f"""
for name in {PACKAGES}:
    sys.modules[name] = None
try:
    monitor.{name}
except pullback.InputError as error:
    print(error)
"""
    expected = f"pullback.monitor[{extra}]: expected the package {package}, got no such package. "
    assert run(code).strip() == expected + f"pip install 'pullback[{extra}]'."


def test_names_of_held_out_metrics() -> None:
    """Loss and accuracy whatever they are called; a second one, and all else, under its own name; nothing timed."""
    for name in ("val_loss", "eval_loss", "valid/loss", "validation loss", "test_loss", "loss", "Val_Loss"):
        assert held_out({name: 1.0}) == {"loss": 1.0}, name
    for name in ("val_acc", "eval_accuracy", "val/acc", "accuracy", "acc"):
        assert held_out({name: 1.0}) == {"accuracy": 1.0}, name
    others = {"val_f1": 1.0, "train_loss": 2.0, "eval_a_loss": 3.0, "evaluation": 4.0, "loss_scale": 5.0}
    assert held_out(others) == others
    assert held_out({"val_loss": 1.0, "test_loss": 2.0}) == {"loss": 1.0, "test_loss": 2.0}
    times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch", "eval_jit_compilation_time")
    assert held_out(dict.fromkeys(times, 1.0)) == {}


def test_names_that_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'pullback.monitor' has no attribute 'nothing'"):
        pb.monitor.nothing  # noqa: B018
