"""``TransformersCallback`` in the real Trainer: the same training to the bit, every loss, checkpoints, compilation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers

import pullback as pb
from pullback.functional import take
from pullback.monitor import TransformersCallback
from pullback.monitor.own_loss import FORMS, OwnLoss, classes, next_token
from tests.compare import assert_same
from tests.stacks.watched import assert_same_to_the_bit, assert_untouched, options, read, state

pytestmark = [pytest.mark.slow]

VOCABULARY, LENGTH = 17, 7


def gpt2(**others: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**size | {"bos_token_id": 0, "eos_token_id": 0} | others)
    )


def bert(kind: str, **others: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=VOCABULARY, **size | others)
    return getattr(transformers, f"BertFor{kind}")(config)


def t5() -> nn.Module:
    torch.manual_seed(0)
    size = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **size))


def tokens(count: int = 24, seed: int = 1) -> dict[str, Tensor]:
    """Sequences padded on the right; one has no labels at all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    for i in range(count):
        mask[i, LENGTH - i % 3 :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def samples(data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: column[i] for name, column in data.items()} for i in range(len(data["input_ids"]))]


def trainer(model: nn.Module, folder: Path, callbacks: list[Any], *, evaluated: Any = None, **others: Any) -> Any:
    arguments = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "learning_rate": 1e-2,
        "seed": 3,
    }
    settings = transformers.TrainingArguments(output_dir=str(folder / "out"), **arguments | others)
    data = {"train_dataset": samples(tokens()), "eval_dataset": evaluated}
    return transformers.Trainer(model=model, args=settings, callbacks=callbacks, **data)


def trained(folder: Path, watched: bool, *, layers: int = 2, **others: Any) -> list[Tensor]:
    model = gpt2(n_layer=layers)
    callbacks = [TransformersCallback(folder / "run", **options())] if watched else []
    made = trainer(model, folder, callbacks, **others)
    made.train()
    assert_untouched(model)
    return state(model, [made.optimizer.optimizer])


@pytest.mark.parametrize(
    ("others", "size"),
    [
        ({}, 4),
        ({"gradient_accumulation_steps": 2}, 4),
        ({"bf16": True}, 4),
        ({"max_grad_norm": 0.1, "per_device_train_batch_size": 3}, 3),
    ],
    ids=str,
)
def test_weights_are_the_same_to_the_bit(tmp_path: Path, others: dict[str, Any], size: int) -> None:
    watched, alone = (trained(tmp_path, watched, **others) for watched in (True, False))
    assert_same_to_the_bit(watched, alone)
    run = read(tmp_path / "run", [2, 4, 6])
    assert [record.step for record in run.of("sharpness")] == [2]
    assert run.series("kernel", "num_samples")[1] == [size] * 3
    assert run.meta["optimizer"]["class"] == "AdamW"
    assert run.meta["model"]["class"] == "GPT2LMHeadModel"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_compiled(tmp_path: Path) -> None:
    """The hook that keeps the batch is called in compiled code too."""
    states, compiled = [], []
    for watched in (True, False):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        states.append(trained(tmp_path, watched, layers=1, torch_compile=True, torch_compile_backend="eager"))
        compiled.append(dict(torch._dynamo.utils.counters["stats"]))
    assert_same_to_the_bit(*states)
    assert compiled[0]["unique_graphs"] == compiled[1]["unique_graphs"] > 0
    read(tmp_path / "run", [2, 4, 6])


def test_the_batch_of_the_step_is_measured(tmp_path: Path) -> None:
    """The loss in the record is that of the very batch, at the weights after the step."""
    batches: list[dict[str, Tensor]] = []
    weights: list[dict[str, Tensor]] = []

    class Told(transformers.Trainer):  # type: ignore[misc, name-defined]
        def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            batches.append(dict(inputs))
            return super().training_step(model, inputs, *args, **kwargs)

    class Weights(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
            weights.append(copy.deepcopy(known["model"].state_dict()))

    model = gpt2()
    plain = trainer(model, tmp_path, [])
    callbacks = [TransformersCallback(tmp_path / "run", **options()), Weights()]
    Told(model=model, args=plain.args, train_dataset=plain.train_dataset, callbacks=callbacks).train()
    run = read(tmp_path / "run", [2, 4, 6])
    for step, found in zip(*run.series("loss", "loss"), strict=True):
        model.load_state_dict(weights[step - 1])
        own = []
        for i in range(4):
            one = take(batches[step - 1], [i])
            labelled = bool((one["labels"] != -100).any())
            own.append(float(model.eval()(**one).loss.detach()) if labelled else 0.0)
        assert found == pytest.approx(sum(own) / 4, rel=1e-5)


def test_resumed_from_a_checkpoint(tmp_path: Path) -> None:
    """The run of a training that was interrupted beyond its checkpoint is that of one that was not."""
    whole = gpt2()
    trainer(whole, tmp_path / "a", [TransformersCallback(tmp_path / "whole", **options())], max_steps=10).train()

    class Stop(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
            if state.global_step == 7:
                raise InterruptedError

    saving = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}
    with pytest.raises(InterruptedError):
        trainer(gpt2(), tmp_path, [TransformersCallback(tmp_path / "run", **options()), Stop()], **saving).train()
    beyond = [record for record in pb.load_run(tmp_path / "run").records if record.step > 5]
    model = gpt2()
    callback = TransformersCallback(tmp_path / "run", **options())
    trainer(model, tmp_path, [callback], **saving).train(resume_from_checkpoint=True)
    assert_same_to_the_bit([*model.state_dict().values()], [*whole.state_dict().values()])
    run, expected = read(tmp_path / "run", [2, 4, 6, 8, 10]), read(tmp_path / "whole", [2, 4, 6, 8, 10])
    assert run.resumed == (5,)
    assert run.superseded == len(beyond) > 0
    for probe, metric in (("loss", "loss"), ("kernel", "M1"), ("kernel", "eigenvalues")):
        assert run.series(probe, metric) == expected.series(probe, metric)
    with pytest.raises(pb.InputError, match="one that holds a run"):
        trainer(gpt2(), tmp_path, [TransformersCallback(tmp_path / "run")]).train()
    with pytest.raises(pb.InputError, match="one that holds a run"):  # before there is a trainer
        TransformersCallback(tmp_path / "run", on_exists="refuse")
    with pytest.raises(pb.InputError, match="on_exists"):
        TransformersCallback(tmp_path / "run", on_exists="replace")
    again = TransformersCallback(tmp_path / "run", **options(), on_exists="resume")
    trainer(gpt2(), tmp_path / "b", [again], max_steps=2).train()  # from step 0: what the run holds is left behind
    assert read(tmp_path / "run", [2]).resumed == (0,)


LOSSES = [
    (gpt2, {}, next_token),
    (lambda: bert("MaskedLM"), {}, classes),
    (lambda: bert("TokenClassification", num_labels=VOCABULARY), {}, classes),
    (t5, {}, classes),
    (lambda: bert("SequenceClassification", num_labels=3), {"labels": torch.arange(24) % 3}, classes),
    (lambda: bert("SequenceClassification", num_labels=1), {"labels": torch.linspace(-1, 1, 24)}, FORMS[2]),
    (
        lambda: bert("SequenceClassification", num_labels=3, problem_type="multi_label_classification"),
        {"labels": (torch.arange(72).view(24, 3) % 2).float()},
        FORMS[3],
    ),
]


@pytest.mark.parametrize(("make", "others", "form"), LOSSES, ids=lambda each: getattr(each, "__name__", ""))
def test_the_model_s_own_loss(tmp_path: Path, make: Any, others: dict[str, Tensor], form: Any) -> None:
    """Whichever it is: the one sample's loss is the model's own, and training with the callback measures it."""
    model, data = make(), tokens() | others
    loss = OwnLoss()
    loss.settle(model, data, data["labels"])
    assert loss.form is form
    with torch.no_grad():
        found = loss(model.eval()(**data), data["labels"])
        for i in range(24):
            own = model(**take(data, [i])).loss
            if not own.isnan():
                assert_same(found[i], own, 1e-5, scale=1.0)
            else:
                assert found[i] == 0
    made = trainer(model, tmp_path, [TransformersCallback(tmp_path / "run", **options())])
    made.train_dataset = samples(data)
    made.train()
    read(tmp_path / "run", [2, 4, 6])


def test_a_loss_that_follows_in_another_way_is_refused(tmp_path: Path) -> None:
    """No measurement rather than a wrong one; training goes on; a function of one's own is taken."""

    class Odd(transformers.GPT2LMHeadModel):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None, **more: Any) -> Any:
            outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **more)
            if labels is not None:
                outputs.loss = outputs.loss + 0.1 * outputs.logits.square().mean()
            return outputs

    def odd_loss(outputs: Any, labels: Tensor) -> Tensor:
        return next_token(outputs.logits, labels) + 0.1 * outputs.logits.square().mean((1, 2))

    def made() -> nn.Module:
        torch.manual_seed(0)
        return Odd(gpt2().config)

    trainer(made(), tmp_path, [TransformersCallback(tmp_path / "a", **options())]).train()
    run = pb.load_run(tmp_path / "a")
    assert run.series("loss", "loss") == ([], [])
    errors = {record.error for record in run.records if record.error}
    assert any("got a loss of" in error and "Pass loss_fn=" in error for error in errors)
    trainer(made(), tmp_path, [TransformersCallback(tmp_path / "b", odd_loss, **options())]).train()
    read(tmp_path / "b", [2, 4, 6])


def test_no_labels_reach_the_model(tmp_path: Path) -> None:
    """Label smoothing takes them away before: recorded, and training goes on."""
    trainer(gpt2(), tmp_path, [TransformersCallback(tmp_path / "run", **options())], label_smoothing_factor=0.1).train()
    run = pb.load_run(tmp_path / "run")
    assert [record.step for record in run.records if record.error] == [2, 4, 6]
    assert all("the labels `labels` among the model's inputs, got only" in str(r.error) for r in run.records if r.error)


def test_metrics_of_evaluations_are_recorded(tmp_path: Path) -> None:
    """At the step of each, and none of an evaluation after training."""
    watch = TransformersCallback(tmp_path / "run", probes="light", every=2)
    made = trainer(gpt2(), tmp_path, [watch], evaluated=samples(tokens(8, 2)), eval_strategy="steps", eval_steps=2)
    made.compute_metrics = lambda _: {"accuracy": 0.25, "perplexity": 3.0}
    made.train()
    made.evaluate()
    shown = [(each["step"], each["eval_loss"]) for each in made.state.log_history if "eval_loss" in each]
    records = list(pb.load_run(tmp_path / "run").of("test"))
    assert [(record.step, record.values["loss"]) for record in records] == shown[:3]
    assert [record.step for record in records] == [2, 4, 6]
    assert all(record.values == record.values | {"accuracy": 0.25, "eval_perplexity": 3.0} for record in records)
    assert all(set(record.values) == {"loss", "accuracy", "eval_perplexity"} for record in records)


@pytest.mark.filterwarnings("ignore:Monitor")
def test_a_finding_stops_the_trainer(tmp_path: Path) -> None:
    """As the guide does it; an exception leaves ``train``."""
    found: list[tuple[int, str]] = []

    def stop(finding: Any) -> None:
        if finding.severity == "critical":
            found.append((made.state.global_step, finding.name))
            made.control.should_training_stop = True

    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "optim": "sgd", "lr_scheduler_type": "constant"}
    watch = TransformersCallback(tmp_path / "run", probes="light", every=50, on_finding=stop)
    made = trainer(gpt2(), tmp_path, [watch], **wild)
    made.train()
    assert found
    assert made.state.global_step == found[0][0] < 6

    class Stop(Exception):
        pass

    def leave(finding: Any) -> None:
        raise Stop(finding.name)

    with pytest.raises(Stop, match="."):
        trainer(
            gpt2(), tmp_path, [TransformersCallback(tmp_path / "b", probes="light", on_finding=leave)], **wild
        ).train()


@pytest.mark.parametrize("handed", ["labels", "inputs"])
def test_a_loop_of_one_s_own(tmp_path: Path, handed: str) -> None:
    """The model's own loss, with the tokenizer's batch as it is; the padded positions count as they do in it."""
    model, data = gpt2().double(), transformers.BatchEncoding(tokens(6))
    probes = ["loss", "gradients", "kernel", "sharpness"]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with pb.Monitor(model, None, tmp_path / "run", optimizer=optimizer, every=1, probes=probes, budget=None) as monitor:
        loss = model(**data).loss
        loss.backward()
        optimizer.step()
        y = data["labels"] if handed == "labels" else None
        monitor.step(data, y, loss=loss)
    run = pb.load_run(tmp_path / "run")
    assert not [record.error for record in run.records if record.error]
    assert [record.values for record in run.of("loss_form")] == [{"reduction": "weighted mean", "batch_size": 6}]
    with torch.no_grad():
        own = [model.eval()(**take(dict(data), [i])).loss for i in range(6)]
    expected = torch.stack(own).nan_to_num(0.0).mean()
    assert run.series("loss", "loss")[1] == pytest.approx(
        [float(expected)], rel=1e-6
    )  # that package takes losses in float32


def test_evaluation_is_not_taken_for_training(tmp_path: Path) -> None:
    """Batches of an evaluation between the steps are larger, and are not measured."""
    model = gpt2()
    made = trainer(
        model,
        tmp_path,
        [TransformersCallback(tmp_path / "run", **options())],
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=9,
        evaluated=samples(tokens(9, seed=2)),
    )
    made.train()
    assert read(tmp_path / "run", [2, 4, 6]).series("kernel", "num_samples")[1] == [4, 4, 4]


def test_models_are_saved_and_copied_with_the_hook(tmp_path: Path) -> None:
    """During training too, by plain pickling; the copy's hook is its own."""

    class Save(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
            torch.save(known["model"], tmp_path / "model.pt")
            copy.deepcopy(known["model"]).train()(**tokens(2))

    trainer(gpt2(), tmp_path, [TransformersCallback(tmp_path / "run", **options()), Save()]).train()
    assert read(tmp_path / "run", [2, 4, 6]).series("kernel", "num_samples")[1] == [4, 4, 4]
    assert torch.load(tmp_path / "model.pt", weights_only=False)(**tokens(2)).loss > 0
