"""``LightningCallback`` in the real trainer: the same to the bit; its precision, loggers and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning.pytorch")

import lightning.pytorch as L

import pullback as pb
from pullback.advisor import verdict
from pullback.modules import MLP
from pullback.monitor import LightningCallback
from pullback.monitor.adapters import base_class
from tests.stacks.watched import assert_same_to_the_bit, assert_untouched, options, read, state

CE = nn.CrossEntropyLoss()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # of torch, about the trainer's own code
        "ignore:The .*dataloader.* does not have many workers:UserWarning",
        "ignore:The number of training batches:UserWarning",
        "ignore:You defined a `validation_step` but have no:UserWarning",
    ),
]


class Module(L.LightningModule):  # type: ignore[misc, name-defined]
    """A network with dropout and batch norm; ``optimizers`` are stepped by hand if there are two."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = MLP([6, 16, 16, 3], dropout=0.2, normalisation="batch")
        self.automatic_optimization = optimizers == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = CE(self(batch[0]), batch[1])
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("validation", CE(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        first, *others = self.net.layers.children()
        if self.automatic_optimization:
            return torch.optim.Adam(self.parameters(), 1e-2)
        rest = [p for layer in others for p in layer.parameters()]
        return [torch.optim.SGD(first.parameters(), 0.1), torch.optim.SGD(rest, 0.01)]


def loader(seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    data = TensorDataset(torch.randn(60, 6, generator=generator), torch.randint(3, (60,), generator=generator))
    return DataLoader(data, batch_size=10)  # six batches an epoch


def trainer(folder: Path, callbacks: list[Any], **others: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = quiet | {"max_epochs": 2, "logger": False, "accelerator": "cpu", "devices": 1} | others
    return L.Trainer(default_root_dir=folder, callbacks=callbacks, **settings)


def trained(folder: Path, watched: bool, *, module: Module | None = None, **others: Any) -> list[Tensor]:
    module = module or Module()
    callbacks = [LightningCallback(folder / "run", CE, **options())] if watched else []
    fitted = trainer(folder, callbacks, **others)
    fitted.fit(module, loader(), loader(2))
    assert_untouched(module)
    return state(module, fitted.optimizers)


@pytest.mark.parametrize(
    ("others", "steps"),
    [
        ({}, range(2, 13, 2)),
        ({"accumulate_grad_batches": 3}, (2, 4)),
        ({"precision": "bf16-mixed"}, range(2, 13, 2)),
        ({"gradient_clip_val": 0.1}, range(2, 13, 2)),
    ],
    ids=str,
)
def test_weights_are_the_same_to_the_bit(tmp_path: Path, others: dict[str, Any], steps: Any) -> None:
    watched, alone = (trained(tmp_path, watched, **others) for watched in (True, False))
    assert_same_to_the_bit(watched, alone)
    run = read(tmp_path / "run", list(steps))
    assert run.meta["optimizer"]["class"] == "Adam"
    assert "net.layers.0.linear" in run.meta["model"]["layers"]
    assert run.series("kernel", "num_samples")[1] == [10] * len(steps)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_compiled(tmp_path: Path) -> None:
    states = []
    for watched in (True, False):
        torch.compiler.reset()
        callbacks = [LightningCallback(tmp_path / "run", CE, **options())] if watched else []
        module = Module()
        fitted = trainer(tmp_path, callbacks, max_epochs=1)
        fitted.fit(torch.compile(module, backend="eager"), loader(), loader(2))
        states.append(state(module, fitted.optimizers))
    assert_same_to_the_bit(*states)
    assert "net.layers.0.linear" in read(tmp_path / "run", [2, 4, 6]).meta["model"]["layers"]


def test_a_module_without_a_forward_pass(tmp_path: Path) -> None:
    """Where the training step calls a part of the module, that part is watched."""

    class Parts(Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

        def training_step(self, batch: Any, index: int) -> Tensor:
            return CE(self.net(batch[0]), batch[1])

    callback = LightningCallback(tmp_path / "run", CE, module="net", **options())
    trainer(tmp_path, [callback], max_epochs=1).fit(Parts(), loader())
    run = read(tmp_path / "run", [2, 4, 6])
    assert run.meta["model"]["class"] == "MLP"
    assert "layers.0.linear" in run.meta["model"]["layers"]


class Validated(Module):
    """Logs in training and in validation; one metric never changes."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = super().training_step(batch, index)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        outputs = self(batch[0])
        self.log_dict({"val_loss": CE(outputs, batch[1]), "val_acc": 0.5, "val_margin": outputs.amax(1).mean()})


@pytest.mark.parametrize("sanity", [0, 2])
def test_what_a_validation_logs(tmp_path: Path, sanity: int) -> None:
    """At its step, without what training logged, the check before training and validations after it."""
    module, seen = Validated(), []

    class Kept(L.Callback):  # type: ignore[misc, name-defined]
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))

    watch = LightningCallback(tmp_path / "run", CE, probes="light", every=2)
    made = trainer(tmp_path, [watch, Kept()], val_check_interval=3, num_sanity_val_steps=sanity)
    made.fit(module, loader(), loader(2))
    expected = list(seen)
    made.validate(module, loader(3), verbose=False)
    assert [step for step, _ in expected] == [3, 6, 9, 12]
    records = list(pb.load_run(tmp_path / "run").of("test"))
    assert [(record.step, record.values["loss"]) for record in records] == expected
    assert all(set(record.values) == {"loss", "accuracy", "val_margin"} for record in records)
    assert {record.values["accuracy"] for record in records} == {0.5}


def test_two_optimizers_by_hand(tmp_path: Path) -> None:
    """The trainer counts two steps a batch; so does the record."""
    watched, alone = (trained(tmp_path, watched, module=Module(optimizers=2)) for watched in (True, False))
    assert_same_to_the_bit(watched, alone)
    run = read(tmp_path / "run", list(range(2, 25, 2)))
    assert run.meta["optimizer"] == {"class": "SGD", "learning_rate": 0.1, "learning_rates": [0.1, 0.01]}


def test_the_loss_of_the_step(tmp_path: Path) -> None:
    """As the training step returned it, also where batches are accumulated."""
    losses: list[float] = []

    class Told(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            losses.append(float((loss := super().training_step(batch, index)).detach()))
            return loss

    trained(tmp_path, True, module=Told(), accumulate_grad_batches=3, max_epochs=1)
    assert pb.load_run(tmp_path / "run").series("loss", "batch_loss") == ([2], [pytest.approx(losses[5])])


def test_precision_is_the_trainer_s(tmp_path: Path) -> None:
    """In mixed precision the measured loss is that of the half-precision model."""
    trained(tmp_path, True, precision="bf16-mixed", max_steps=2)
    module = Module()
    other = trainer(tmp_path, [], precision="bf16-mixed", max_steps=2)
    other.fit(module, loader(), loader(2))
    x, y = list(loader())[1]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = float(CE(module.eval()(x).float(), y))
    with torch.no_grad():
        full = float(CE(module(x), y))
    (found,) = pb.load_run(tmp_path / "run").series("loss", "loss")[1]
    assert found == pytest.approx(half, rel=1e-3)
    assert abs(found - full) > abs(found - half)


def test_resumed_from_a_checkpoint(tmp_path: Path) -> None:
    """The record goes on at the checkpoint's step; what was measured beyond it is left behind."""
    whole = trainer(tmp_path, [LightningCallback(tmp_path / "whole", CE, **options())], max_epochs=3)
    whole.fit(expected := Module(), loader(), loader(2))

    class Save(L.Callback):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    first = trainer(tmp_path, [LightningCallback(tmp_path / "run", CE, **options()), Save()], max_epochs=2)
    first.fit(Module(), loader(), loader(2))
    beyond = [record for record in pb.load_run(tmp_path / "run").records if record.step > 6]
    torch.manual_seed(0)
    again = trainer(tmp_path, [LightningCallback(tmp_path / "run", CE, **options())], max_epochs=3)
    again.fit(module := Module(), loader(), loader(2), ckpt_path=tmp_path / "first.ckpt")
    run = read(tmp_path / "run", list(range(2, 19, 2)))
    assert run.superseded == len(beyond) > 0
    assert run.resumed == (6,)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in expected.parameters())


def test_a_fresh_training_into_a_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    trained(tmp_path, True, max_epochs=1)
    with pytest.raises(pb.InputError, match="one that holds a run"):
        trained(tmp_path, True, max_epochs=1)
    with pytest.raises(pb.InputError, match="one that holds a run"):  # before there is a trainer
        LightningCallback(tmp_path / "run", CE, on_exists="refuse")
    with pytest.raises(pb.InputError, match="on_exists"):
        LightningCallback(tmp_path / "run", CE, on_exists="replace")
    before = len(pb.load_run(tmp_path / "run").records)
    beside = LightningCallback(tmp_path / "run", CE, on_exists="number", **options())
    with pytest.warns(UserWarning, match="the record is written to .*run-2"):
        trainer(tmp_path, [beside], max_epochs=1).fit(Module(), loader())
    assert beside.monitor is not None
    assert beside.monitor.run_dir == tmp_path / "run-2"
    assert pb.load_run(tmp_path / "run-2").steps
    assert len(pb.load_run(tmp_path / "run").records) == before


def test_an_exception_in_training_passes_through(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == 4:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    callback = LightningCallback(tmp_path / "run", CE, **options())
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [callback]).fit(module := Failing(), loader())
    assert_untouched(module)
    read(tmp_path / "run", [2, 4])


def test_scalars_go_to_the_trainer_s_loggers(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    got: list[int] = []
    logger = CSVLogger(tmp_path / "csv")
    callback = LightningCallback(tmp_path / "run", CE, forward=[lambda step, _: got.append(step)], **options())
    trainer(tmp_path, [callback], logger=logger, max_epochs=1).fit(Module(), loader())
    logger.save()
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    values = {int(row["step"]): float(row["pullback/kernel.M1"]) for row in rows if row.get("pullback/kernel.M1")}
    run = pb.load_run(tmp_path / "run")
    assert values == pytest.approx(dict(zip(*run.series("kernel", "M1"), strict=True)))
    assert got == [2, 4, 6]


@pytest.mark.filterwarnings("ignore:Monitor")
def test_a_finding_stops_the_trainer_and_stands_in_tensorboard(tmp_path: Path) -> None:
    """As the guide does it; the trainer's own logger gets the findings and the verdict as text."""
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Wild(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e30)

    def stop(finding: Any) -> None:
        if finding.severity == "critical":
            found.append((made.global_step, finding.name))
            made.should_stop = True

    found: list[tuple[int, str]] = []
    logger = TensorBoardLogger(tmp_path / "board")
    watch = LightningCallback(tmp_path / "run", CE, probes="light", every=50, on_finding=stop)
    made = trainer(tmp_path, [watch], logger=logger)
    made.fit(Wild(), loader())
    assert made.global_step == found[0][0] < 12
    events = EventAccumulator(logger.log_dir).Reload()
    [*_, last] = events.Tensors("pullback/verdict/text_summary")
    assert last.tensor_proto.string_val[0].decode() == verdict(tmp_path / "run")
    [*_, listed] = events.Tensors("pullback/findings/text_summary")
    assert all(name in listed.tensor_proto.string_val[0].decode() for _, name in found)


def test_batches_of_another_kind(tmp_path: Path) -> None:
    class Named(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            return super().training_step((batch["x"], batch["y"]), index)

    data = [{"x": torch.randn(8, 6), "y": torch.randint(3, (8,))} for _ in range(4)]
    batches = DataLoader(data, batch_size=None)
    fitted = trainer(tmp_path, [LightningCallback(tmp_path / "a", CE, **options())], max_epochs=1)
    fitted.fit(Named(), batches)  # what cannot be taken apart is recorded, and the training goes on
    assert fitted.global_step == 4
    errors = {record.error or "" for record in pb.load_run(tmp_path / "a").records}
    assert any("a batch (x, y), got dict. Pass split=" in error for error in errors)
    callback = LightningCallback(tmp_path / "b", CE, split=lambda batch: (batch["x"], batch["y"]), **options())
    trainer(tmp_path, [callback], max_epochs=1).fit(Named(), batches)
    read(tmp_path / "b", [2, 4])


def test_the_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names the extra; a package that lacks one of its own parts is another matter."""
    for name in ("no_such_package", "lightning_of_another_name.pytorch"):
        with pytest.raises(pb.InputError, match=r"the package \w+, got no such package. pip install 'pullback\[x\]'"):
            base_class((name,), "Callback", "x")
    with pytest.raises(pb.InputError, match="the package a_missing or b_missing"):
        base_class(("a_missing.c", "b_missing"), "Callback", "x")
    assert base_class(("a_missing", "lightning.pytorch"), "Callback", "x") is L.Callback
    (tmp_path / "installed_but_incomplete.py").write_text("import a_part_of_its_own")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_part_of_its_own"):
        base_class(("installed_but_incomplete",), "Callback", "x")
