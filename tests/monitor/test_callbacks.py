"""The callbacks of other packages' trainers, called by hand: neither the packages nor their trainers are needed.

That the real trainers call them so is in ``tests/stacks``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb

CE = nn.CrossEntropyLoss()


def adapter(name: str, stub: str, base: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file of a callback, loaded beside the real one with a class of no content for its package's."""
    package = ModuleType(stub.partition(".")[0])
    made = ModuleType(stub)
    setattr(made, base, type(base, (), {}))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, stub, made)
    path = Path(pb.monitor.__file__).parent / "adapters" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"by_hand_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Loggers(list[tuple[dict[str, float], int]]):
    def log_metrics(self, scalars: dict[str, float], step: int) -> None:
        self.append((scalars, step))


class Net(nn.Linear):
    automatic_optimization = True


class ByHand:
    """What the callback reads of Lightning's trainer, and a loop that makes steps."""

    def __init__(self, first: bool = True) -> None:
        torch.manual_seed(0)
        self.module = Net(3, 2)
        self.optimizers = [torch.optim.SGD(self.module.parameters(), 0.1)]
        self.is_global_zero, self.global_step, self.accumulate_grad_batches = first, 0, 3
        self.precision_plugin = SimpleNamespace(forward_context=self.forward_context)
        self.loggers = [Loggers(), Loggers()]
        self.callback_metrics: dict[str, Tensor] = {}
        self.state, self.validating = SimpleNamespace(fn="fit"), True
        self.inside = 0

    @contextlib.contextmanager
    def forward_context(self) -> Any:
        self.inside += 1
        yield

    def step(self, callback: Any, batch: Any = None, outputs: Any = None) -> float:
        """One step on a batch; returns the loss it was made with."""
        x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        loss = CE(self.module(x), y)
        loss.backward()
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        self.global_step += 1
        part = loss.detach() / self.accumulate_grad_batches
        callback.on_train_batch_end(self, self.module, part if outputs is None else outputs, batch or (x, y), 0)
        return float(loss.detach())


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    return adapter("lightning", "lightning.pytorch", "Callback", monkeypatch)


@pytest.fixture
def hugging_face(monkeypatch: pytest.MonkeyPatch) -> Any:
    return adapter("transformers", "transformers", "TrainerCallback", monkeypatch)


@pytest.mark.slow
def test_steps_of_lightning(tmp_path: Path, lightning: Any) -> None:
    """Every step once, with the loss before it was divided, in the trainer's precision; scalars reach all loggers."""
    trainer = ByHand()
    callback = lightning.LightningCallback(tmp_path / "run", CE, every=1, probes=["loss"], budget=None)
    assert callback.monitor is None
    callback.on_train_start(trainer, trainer.module)
    losses = [trainer.step(callback) for _ in range(3)]
    trainer.module.automatic_optimization = False
    losses.append(trainer.step(callback) / 3)  # by hand nothing was divided
    before = trainer.inside
    callback.on_train_batch_end(trainer, trainer.module, None, None, 1)  # a batch without a step of the optimizer
    assert trainer.inside == before == 4
    callback.on_train_end(trainer, trainer.module)
    assert trainer.inside == 5
    run = pb.load_run(tmp_path / "run")
    assert run.series("loss", "batch_loss")[1] == pytest.approx(losses)
    first, second = trainer.loggers
    assert [step for _, step in first] == [1, 2, 3, 4]
    assert first == second
    assert [scalars["pullback/loss.loss"] for scalars, _ in first] == run.series("loss", "loss")[1]
    assert run.meta["optimizer"]["learning_rate"] == 0.1
    assert callback.findings == run.findings


@pytest.mark.parametrize("told", [True, False])
def test_what_lightning_returns(tmp_path: Path, lightning: Any, told: bool) -> None:
    """A loss in a dictionary is read, one that is not there is not; loggers can be left out."""
    trainer = ByHand()
    trainer.accumulate_grad_batches = 1
    callback = lightning.LightningCallback(
        tmp_path / "run", CE, every=1, probes=["loss"], budget=None, to_loggers=False
    )
    callback.on_train_start(trainer, trainer.module)
    trainer.step(callback, outputs={"loss": torch.tensor(2.5)} if told else {"other": 1.0})
    callback.on_exception(trainer, trainer.module, ValueError("stop"))
    assert pb.load_run(tmp_path / "run").series("loss", "batch_loss")[1] == ([2.5] if told else [])
    assert trainer.loggers == [[], []]


def test_batches_lightning_cannot_split(tmp_path: Path, lightning: Any) -> None:
    assert lightning.pair([1, 2]) == lightning.pair((1, 2)) == (1, 2)
    for batch, got in (((1, 2, 3), "3 parts"), ({"x": 1, "y": 2}, "dict"), ([], "0 parts")):
        with pytest.raises(pb.InputError, match=rf"expected a batch \(x, y\), got {got}. Pass split="):
            lightning.pair(batch)
    trainer = ByHand()
    callback = lightning.LightningCallback(tmp_path / "run", CE, every=1, probes=["loss"], budget=None)
    callback.on_train_start(trainer, trainer.module)
    trainer.step(callback, batch={"x": 1})
    callback.on_train_end(trainer, trainer.module)
    [error] = [r for r in pb.load_run(tmp_path / "run").records if r.error]
    assert "got dict" in str(error.error)
    assert error.step == 1


def test_other_processes_of_lightning_measure_nothing(tmp_path: Path, lightning: Any) -> None:
    trainer = ByHand(first=False)
    callback = lightning.LightningCallback(tmp_path / "run", CE)
    callback.on_train_start(trainer, trainer.module)
    assert callback.monitor is None
    trainer.step(callback)
    callback.on_validation_start(trainer, trainer.module)
    trainer.callback_metrics = {"val_loss": torch.tensor(1.0)}
    callback.on_validation_end(trainer, trainer.module)
    callback.on_train_end(trainer, trainer.module)
    assert not (tmp_path / "run").exists()


def test_validations_of_lightning(tmp_path: Path, lightning: Any) -> None:
    """What a validation logged: not what training had logged before, nor outside of training."""
    trainer = ByHand()
    callback = lightning.LightningCallback(tmp_path / "run", CE, every=1, probes=["loss"], budget=None, module="")
    callback.on_train_start(trainer, trainer.module)
    trainer.callback_metrics = {"train_loss": torch.tensor(3.0), "never": torch.tensor(float("nan"))}
    for step, fn, validating in ((1, "fit", True), (2, "fit", False), (3, "validate", True)):
        trainer.step(callback)
        trainer.state.fn, trainer.validating = fn, validating
        callback.on_validation_start(trainer, trainer.module)
        trainer.callback_metrics = trainer.callback_metrics | {"val_loss": torch.tensor(float(step))}
        callback.on_validation_end(trainer, trainer.module)
    trainer.state.fn = "fit"
    trainer.step(callback)
    callback.on_validation_start(trainer, trainer.module)
    callback.on_validation_end(trainer, trainer.module)  # the same value once more is still the validation's
    callback.on_train_end(trainer, trainer.module)
    records = list(pb.load_run(tmp_path / "run").of("test"))
    assert [(record.step, record.values) for record in records] == [(1, {"loss": 1.0}), (4, {"loss": 3.0})]


def test_lightning_goes_on_in_its_run(tmp_path: Path, lightning: Any) -> None:
    """From the step of a checkpoint; a training that starts at 0 wants a folder of its own."""
    trainer = ByHand()
    callback = lightning.LightningCallback(tmp_path / "run", CE, every=1, probes=["loss"], budget=None)
    callback.on_train_start(trainer, trainer.module)
    trainer.step(callback)
    callback.on_train_start(trainer, trainer.module)  # closes what is open
    trainer.step(callback)
    callback.on_train_end(trainer, trainer.module)
    run = pb.load_run(tmp_path / "run")
    assert run.resumed == (1,)
    assert run.series("loss", "loss")[0] == [1, 2]
    trainer.global_step = 0
    with pytest.raises(pb.InputError, match="one that holds a run"):
        callback.on_train_start(trainer, trainer.module)


class Tiny(nn.Module):
    """Called with names, as models of that package are, and returns its loss where it is given labels."""

    def __init__(self, kept: bool = False) -> None:
        super().__init__()
        self.fc, self.config = nn.Linear(3, 2), SimpleNamespace(is_encoder_decoder=kept)

    def forward(self, x: Tensor, labels: Tensor | None = None, **rest: Any) -> dict[str, Tensor]:
        outputs = {"logits": self.fc(x)}
        return outputs if labels is None else {"loss": CE(outputs["logits"], labels)} | outputs


def loss_of(outputs: Any, y: Tensor) -> Tensor:
    return CE(outputs["logits"], y)


class Trainer:
    """What the callback is handed by that package's trainer."""

    def __init__(self, first: bool = True, parts: int = 1) -> None:
        torch.manual_seed(0)
        self.model = Tiny().train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.args = SimpleNamespace(label_names=None, gradient_accumulation_steps=parts)
        self.state = SimpleNamespace(is_world_process_zero=first, global_step=0)

    def call(self, callback: Any, name: str, **more: Any) -> None:
        known = {"model": self.model, "optimizer": self.optimizer} | more
        getattr(callback, name)(self.args, self.state, None, **known)

    def step(self, callback: Any, **inputs: Any) -> float:
        batch = {"x": torch.randn(4, 3), "labels": torch.tensor([0, 1, 1, 0])} | inputs
        loss = self.model(**batch).get("loss")
        if loss is not None:
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        self.call(callback, "on_step_end")
        return float("nan") if loss is None else float(loss.detach())


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_of_the_trainer(tmp_path: Path, hugging_face: Any, parts: int) -> None:
    """Every step with the batch and the loss of its forward pass; that of one part of several is not the step's."""
    trainer = Trainer(parts=parts)
    callback = hugging_face.TransformersCallback(tmp_path / "run", loss_of, every=1, probes=["loss"], budget=None)
    assert callback.monitor is None
    trainer.call(callback, "on_train_begin")
    losses = []
    for _ in range(2):
        losses.append(trainer.step(callback, num_items_in_batch=4))
        trainer.model.eval()(x=torch.zeros(9, 3))  # between steps: an evaluation, which is not measured
        trainer.model.train()
    trainer.call(callback, "on_evaluate", metrics={"eval_loss": 0.25, "eval_runtime": 3.0})
    hooks = len(trainer.model._forward_hooks)
    trainer.call(callback, "on_train_end")
    assert (hooks, len(trainer.model._forward_hooks)) == (1, 0)
    trainer.call(callback, "on_evaluate", metrics={"eval_loss": 0.5})
    run = pb.load_run(tmp_path / "run")
    assert run.series("loss", "batch_loss")[1] == (pytest.approx(losses) if parts == 1 else [])
    assert run.series("loss", "loss")[0] == [1, 2]
    assert not [record.error for record in run.records if record.error]
    assert [(record.step, record.values) for record in run.of("test")] == [(2, {"loss": 0.25})]
    assert callback.findings == run.findings


def test_a_step_the_trainer_gives_no_labels(tmp_path: Path, hugging_face: Any) -> None:
    """Recorded where a measurement is due, and counted elsewhere; batches of before are not used again."""
    trainer = Trainer()
    callback = hugging_face.TransformersCallback(tmp_path / "run", loss_of, every=2, probes=["loss"], budget=None)
    trainer.call(callback, "on_train_begin")
    for _ in range(4):
        trainer.step(callback, labels=None)
    trainer.call(callback, "on_train_end")
    errors = [(r.step, str(r.error)) for r in pb.load_run(tmp_path / "run").records if r.error]
    assert {step for step, _ in errors} >= {2, 4}
    assert all("the labels `labels` among the model's inputs, got only x, labels" in said for _, said in errors)


def test_other_processes_of_the_trainer_measure_nothing(tmp_path: Path, hugging_face: Any) -> None:
    trainer = Trainer(first=False)
    callback = hugging_face.TransformersCallback(tmp_path / "run", loss_of)
    trainer.call(callback, "on_train_begin")
    trainer.step(callback)
    trainer.call(callback, "on_train_end")
    assert callback.monitor is None
    assert not (tmp_path / "run").exists()


def test_the_trainer_goes_on_in_its_run(tmp_path: Path, hugging_face: Any) -> None:
    trainer = Trainer()
    callback = hugging_face.TransformersCallback(tmp_path / "run", loss_of, every=1, probes=["loss"], budget=None)
    trainer.call(callback, "on_train_begin")
    trainer.step(callback)
    trainer.call(callback, "on_train_begin")
    assert len(trainer.model._forward_hooks) == 1
    trainer.step(callback)
    trainer.call(callback, "on_train_end")
    assert pb.load_run(tmp_path / "run").resumed == (1,)
    trainer.state.global_step = 0
    with pytest.raises(pb.InputError, match="one that holds a run"):
        trainer.call(callback, "on_train_begin")


def test_what_a_model_is_called_with(hugging_face: Any) -> None:
    """Labels leave the inputs, but for encoder-decoders, which make their own from them; several stay a dict."""
    x, a, b = torch.zeros(2), torch.ones(2), torch.zeros(1)
    given = {"x": x, "labels": a, "num_items_in_batch": 2}
    split = hugging_face.split
    assert split(Tiny(), given, ["labels"]) == ({"x": x}, a)
    assert split(Tiny(kept=True), given, ["labels"]) == ({"x": x, "labels": a}, a)
    assert split(nn.Linear(1, 1), given, ["labels"]) == ({"x": x}, a)
    assert split(Tiny(), {"x": x, "start": a, "end": b}, ["start", "end"]) == ({"x": x}, {"start": a, "end": b})
    with pytest.raises(pb.InputError, match="the labels `labels` among the model's inputs, got only none"):
        split(Tiny(), {}, ["labels"])
    with pytest.raises(pb.InputError, match="the labels `start`, `end` among the model's inputs, got only x, start"):
        split(Tiny(), {"x": x, "start": a}, ["start", "end"])


def test_only_batches_of_training_are_kept(hugging_face: Any) -> None:
    last = hugging_face.LastBatch()
    assert (last.inputs, last.loss) == (None, None)
    module = nn.Linear(1, 1)
    last(module.eval(), (), {"x": 1}, {"loss": 2})
    assert (last.inputs, last.loss) == (None, None)
    last(module.train(), (), {"x": 1}, {"loss": 2})
    assert (last.inputs, last.loss) == ({"x": 1}, 2)
    last(module, (), {"x": 3}, (4,))
    assert (last.inputs, last.loss) == ({"x": 3}, None)
