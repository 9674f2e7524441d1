"""Whatever a loop hands to the monitor: it is recorded, or it is said once why not, and the training goes on."""

from __future__ import annotations

import argparse
import datetime
import decimal
import fractions
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.monitor.handed import as_index, as_number, chosen_optimizers
from pullback.monitor.measuring import Measurer
from pullback.monitor.recent import Recent
from pullback.runs import RunWriter
from pullback.runs.schema import encode, in_words

CE = nn.CrossEntropyLoss()


class Speechless:
    """Fails whatever it is asked for."""

    def __float__(self) -> float:
        raise ZeroDivisionError("nothing by nothing")

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __index__ = __len__ = __str__  # type: ignore[assignment]


class Quarter:
    def __float__(self) -> float:
        return 0.25


def network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    return model, torch.randn(24, 4), torch.arange(24) % 3


@contextmanager
def said() -> Iterator[list[str]]:
    """What is said in the block, as texts."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(each.message) for each in caught]


def watched(
    folder: Path, *, change: Callable[[int, nn.Module, Any], None] | None = None, steps: int = 3, **options: Any
) -> tuple[pb.Run, list[str], nn.Module]:
    """A loop whose hands are tied to ``options``; its record, what was said, and the model at its end."""
    hand = {name: options.pop(name) for name in ("loss", "step", "x", "log", "probe") if name in options}
    model, x, y = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    chosen = options.pop("optimizer", lambda model, optimizer: optimizer)(model, optimizer)
    settings = {"every": 1, "budget": None, "probes": "light"} | options
    with said() as texts, pb.Monitor(model, CE, folder, optimizer=chosen, **settings) as monitor:
        for k in range(steps):
            if change is not None:
                change(k, model, optimizer)
            optimizer.zero_grad()
            loss = CE(model(x), y)
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
            number = {"step": hand["step"](k)} if "step" in hand else {}
            monitor.step(
                hand["x"](x) if "x" in hand else x, y, hand["loss"](loss) if "loss" in hand else loss, **number
            )
            if "log" in hand:
                monitor.log(hand.get("probe", "mine"), hand["log"])
    return pb.load_run(folder), texts, model


@pytest.fixture(scope="module")
def alone() -> list[Tensor]:
    """Weights of the same loop, unwatched."""
    model, x, y = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


NUMBERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[float], float]]] = {
    "a tensor": (lambda loss: loss, lambda v: v),
    "a float": (lambda loss: loss.item(), lambda v: v),
    "NumPy's": (lambda loss: np.float32(loss.item()), lambda v: v),
    "an array of none": (lambda loss: loss.detach().numpy(), lambda v: v),
    "(1, 1)": (lambda loss: loss.view(1, 1), lambda v: v),
    "a vector": (lambda loss: loss.detach() + torch.tensor([-1.0, 0.0, 2.0, 3.0]), lambda v: v + 1),
    "an array": (lambda loss: loss.detach().numpy() + np.array([[-1.0], [2.0]]), lambda v: v + 0.5),
    "a list": (lambda loss: [loss, loss.item(), np.float64(loss.item())], lambda v: v),
    "decimal": (lambda loss: decimal.Decimal("0.5"), lambda v: 0.5),
    "a fraction": (lambda loss: fractions.Fraction(1, 4), lambda v: 0.25),
    "an object": (lambda loss: Quarter(), lambda v: 0.25),
    "half": (lambda loss: torch.tensor(0.25, dtype=torch.bfloat16), lambda v: 0.25),
    "whole": (lambda loss: torch.tensor(3), lambda v: 3.0),
    "nan": (lambda loss: float("nan"), lambda v: math.nan),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_losses_that_are_numbers(kind: str, tmp_path: Path, alone: list[Tensor]) -> None:
    given, expected = NUMBERS[kind]
    run, texts, model = watched(tmp_path / "run", loss=given)
    steps, found = run.series("loss", "batch_loss")
    assert steps == [1, 2, 3]
    own = run.series("loss", "loss")[1]
    assert len(own) == 3
    start, x, y = network()
    first = float(CE(start(x), y).detach())
    assert found[0] == pytest.approx(expected(first), rel=1e-3, nan_ok=True)
    assert [text for text in texts if "the loss of step 1 is nan" not in text] == []
    assert len(texts) == (kind == "nan")
    course = run.course("loss")
    assert course[0].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(course[1], np.array(found))
    assert not [record.error for record in run.records if record.error]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone, strict=True))


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ("0.5", "str is no number"), ({"a": 1.0}, "dict is no number"), (Speechless(), "nothing by nothing"),
        (torch.zeros(0), "no number at all"), ([], "no number at all"), (1j, "complex"), (torch.tensor(1j), "complex"),
        (np.zeros(2, dtype=complex), "complex"), (torch.zeros((), device="meta"), "meta"), (print, "float"),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_losses_that_are_none_cost_no_other_number(loss: Any, reason: str, tmp_path: Path, alone: list[Tensor]) -> None:
    run, texts, model = watched(tmp_path / "run", loss=lambda _: loss)
    assert len(run.series("loss", "loss")[1]) == 3
    assert run.series("loss", "batch_loss") == ([], [])
    assert not len(run.course("loss")[0])
    assert len(texts) == 1
    assert reason in texts[0]
    assert "training goes on" in texts[0]
    (error,) = [record.error for record in run.records if record.error]
    assert reason in error
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone, strict=True))


def test_the_first_loss_is_kept_where_it_is_one(tmp_path: Path) -> None:
    for loss, kept in ((torch.ones(4), [1.0]), ("x", [])):
        run, _, _ = watched(tmp_path / type(loss).__name__, loss=lambda _, loss=loss: loss, every=10)
        assert run.series("loss", "batch_loss")[1][:1] == kept


def test_values_that_are_logged(tmp_path: Path) -> None:
    """All that are numbers, whatever stands beside them."""
    good = {
        "0-d": (torch.tensor(0.5, requires_grad=True), 0.5), "float32": (np.float32(0.5), 0.5), "int": (np.int64(3), 3),
        "flag": (np.bool_(True), True), "array": (np.arange(3.0), [0.0, 1.0, 2.0]), "set": ({1}, [1]),
        "path": (Path("a/b"), "a/b"), "matrix": (torch.eye(2), [[1, 0], [0, 1]]), "inf": (np.float64("inf"), math.inf),
        "object": (Quarter(), 0.25),
        "huge": (10**400, math.inf), "dict": ({1: np.float16(2)}, {"1": 2.0}), "nothing": (None, None),
    }  # fmt: skip
    bad = {
        "deep": [[[1]]], "deeper": {"a": {"b": {"c": 1}}}, "complex": 1j, "call": print, "speechless": Speechless(),
        "bytes": b"x", "large": torch.zeros(70_000), "date": datetime.date(2020, 1, 1), "of": np.array([Speechless()]),
    }  # fmt: skip
    run, texts, _ = watched(tmp_path / "run", log={name: value for name, (value, _) in good.items()} | bad)
    (first, *_), again = run.of("mine"), list(run.of("mine"))
    assert len(again) == 3
    assert first.values == {name: value for name, (_, value) in good.items()}
    assert len(texts) == len(bad)  # once each
    errors = [record.error or "" for record in run.records if record.error]
    assert len(errors) == len(bad)
    for name in bad:
        assert sum(f"mine.{name}`" in text for text in texts) == 1
        assert sum(f"as mine.{name}." in error for error in errors) == 1
    assert run.skipped == 0


@pytest.mark.parametrize("values", [3.0, [1.0], "text", Speechless(), None], ids=lambda v: type(v).__name__)
def test_values_that_are_no_dict(values: Any, tmp_path: Path) -> None:
    run, texts, _ = watched(tmp_path / "run", log=values)
    assert len(texts) == 1
    assert "where a dict is needed" in texts[0]
    assert not list(run.of("mine"))
    assert len(list(run.of("loss"))) == 3


def test_names_that_are_no_texts_and_the_one_that_is_taken(tmp_path: Path) -> None:
    run, texts, _ = watched(tmp_path / "a", log={Speechless(): 1.0, 3: 2.0}, probe=7)
    assert not texts
    assert next(run.of("7")).values == {"an object of type Speechless": 1.0, "3": 2.0}
    run, texts, _ = watched(tmp_path / "b", log={"a": 1.0}, probe="resume")
    assert len(texts) == 1
    assert "stands for a training that was resumed" in texts[0]
    assert run.superseded == 0
    assert len(list(run.of("loss"))) == 3


@pytest.mark.parametrize("step", [lambda k: 5, lambda k: "x", lambda k: k + 1.5, lambda k: -1, lambda k: Speechless()])
def test_step_numbers_that_are_none_are_counted_on(step: Callable[[int], Any], tmp_path: Path) -> None:
    run, texts, _ = watched(tmp_path / "run", step=step)
    steps = run.series("loss", "loss")[0]
    assert len(steps) == 3
    assert steps[1:] == [steps[0] + 1, steps[0] + 2]
    assert len(texts) == 1
    assert "`step` as a whole number above the last" in texts[0]
    assert "It is counted as" in texts[0]
    assert len([record for record in run.records if record.error]) == 1


def test_step_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    for place, kind in enumerate((np.int64, torch.tensor, lambda k: np.array(k))):
        run, texts, _ = watched(tmp_path / str(place), step=lambda k, kind=kind: kind(10 * k + 10))
        assert run.series("loss", "loss")[0] == [10, 20, 30]
        assert not texts
    options = {"every": np.int64(2), "max_samples": np.int32(8), "resume": torch.tensor(0), "budget": np.float32(1.0)}
    run, _, _ = watched(tmp_path / "options", **options)
    assert run.series("loss", "loss")[0] == [1, 2, 3]  # with a budget the first steps, and the last
    assert run.meta["settings"] == {"every": 2, "probes": "light", "max_samples": 8, "budget": 1.0}


@pytest.mark.parametrize(
    "x",
    [None, "x", [1, 2], np.array(["a"] * 24), torch.tensor(1.0), torch.ones(0, 4), {"q": torch.ones(24, 4)}, Quarter()],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_batches_that_are_none(x: Any, tmp_path: Path, alone: list[Tensor]) -> None:
    run, _, model = watched(tmp_path / "run", x=lambda _: x)
    assert not list(run.of("loss"))
    assert [record.error for record in run.records if record.error]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone, strict=True))


def test_warnings_that_are_errors_end_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, y = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pb.Monitor(model, CE, tmp_path / "run", every=1, probes="light") as monitor:
            for _ in range(2):
                monitor.step(x, y, loss="none")
            monitor.log("mine", Speechless())  # type: ignore[arg-type]
    assert capsys.readouterr().err.count("training goes on") == 2
    assert len(list(pb.load_run(tmp_path / "run").of("loss"))) == 2


def test_what_fails_inside_and_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also faults of the monitor's own."""
    model, x, y = network()
    with said() as texts, pb.Monitor(model, CE, tmp_path / "run", every=1, probes="light") as monitor:
        with monkeypatch.context() as patch:
            patch.setattr(Recent, "see", lambda self, x: 1 / 0)
            monitor.step(x, y)
            patch.setattr(Measurer, "measure", lambda *_, **__: 1 / 0)
            monitor.measure(x, y)
        monitor.step(x, y)
        monitor.log_error("mine", Speechless())  # type: ignore[arg-type]
        monitor.log_error("mine", ValueError("known"), step=1)  # no number above the last
        monitor.close()
        monitor.log("late", {"a": 1.0})
        monitor.step(x, y)
    assert monitor.num_steps == 4
    told = ("`step` failed", "`measure` failed", "`step` as a whole number", "a record was lost")
    assert [next(word for word in told if word in text) for text in texts] == list(told)
    run = pb.load_run(tmp_path / "run")
    assert [record.step for record in run.of("loss")] == [2]
    assert "ValueError: known" in {record.error for record in run.records}


class NoRate(torch.optim.Optimizer):
    """As Adafactor's with its relative steps: a group whose rate is None, or one without."""

    def __init__(self, params: Any, options: dict[str, Any]) -> None:
        super().__init__(params, options)

    def step(self, closure: Any = None) -> Any:
        pass


@pytest.mark.parametrize(
    "options", [{}, {"lr": None}, {"lr": "auto"}, {"lr": Speechless()}], ids=["none", "None", "text", "object"]
)
def test_optimizers_without_a_rate(options: dict[str, Any], tmp_path: Path) -> None:
    """Everything else is measured; that there is no rate is said."""
    run, texts, _ = watched(
        tmp_path / "run", steps=1, probes="full", optimizer=lambda model, _: NoRate(model.parameters(), dict(options))
    )
    assert not [record.error for record in run.records if record.error]
    assert len(texts) == 1
    assert "no learning rate that is a number" in texts[0]
    values = next(run.of("sharpness")).values
    assert values["optimizer"] == "NoRate"
    assert {"hessian", "smallest", "gauss_newton"} < set(values)
    assert not {"limit", "learning_rate"} & set(values)
    assert set(next(run.of("effective_lr")).values) == {"norm", "invariant"}
    assert not list(run.of("shift"))
    assert run.meta["optimizer"] == {"class": "NoRate"}


def test_a_rate_that_is_a_tensor(tmp_path: Path) -> None:
    run, texts, _ = watched(
        tmp_path / "run",
        steps=1,
        probes="full",
        optimizer=lambda m, _: torch.optim.Adam(m.parameters(), torch.tensor(0.5)),
    )
    assert not texts
    assert next(run.of("sharpness")).values["learning_rate"] == 0.5
    assert run.meta["optimizer"]["learning_rate"] == 0.5


def wrapped(optimizer: Any) -> argparse.Namespace:
    return argparse.Namespace(optimizer=optimizer)


@pytest.mark.slow
def test_several_optimizers_are_the_groups_of_one(tmp_path: Path) -> None:
    """In any order, in the wrappers of others, and as one with groups."""

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return [
            {"params": list(model[0].parameters()), "lr": 0.5},
            {"params": [*model[1].parameters(), *model[3].parameters()], "lr": 0.1},
        ]

    made = {
        "groups": lambda m, _: torch.optim.SGD(groups(m)),
        "a list": lambda m, _: [torch.optim.SGD([g]) for g in groups(m)],
        "reversed": lambda m, _: tuple(wrapped(torch.optim.SGD([g])) for g in groups(m)[::-1]),
        "deep": lambda m, _: wrapped(wrapped(torch.optim.SGD(groups(m)[::-1]))),
        "with another's": lambda m, _: [
            torch.optim.SGD(groups(m)), torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
        ],
    }  # fmt: skip
    found = []
    for name, optimizer in made.items():
        run, texts, _ = watched(tmp_path / name, steps=1, probes="full", optimizer=optimizer)
        assert not texts
        assert not [record.error for record in run.records if record.error]
        found.append([{**next(run.of(p)).values} for p in ("sharpness", "effective_lr", "shift")])
        assert run.meta["optimizer"] == {"class": "SGD", "learning_rate": 0.5, "learning_rates": [0.5, 0.1]}
    assert all(each == found[0] for each in found)
    sharpness, effective, _ = found[0]
    assert (sharpness["limit"], sharpness["learning_rate"], sharpness["learning_rates"]) == (4.0, 0.5, [0.5, 0.1])
    assert 0 < sharpness["preconditioned"] < sharpness["hessian"]
    assert effective["effective"]["0"] == pytest.approx(0.5 / effective["norm"]["0"] ** 2)


def test_optimizers_of_two_kinds(tmp_path: Path) -> None:
    """The step of the shift is each one's own: against a step made by hand."""
    model, x, y = network()
    optimizers = [torch.optim.SGD(model[0].parameters(), 0.5), torch.optim.Adam(model[3].parameters(), 0.1)]
    with (
        said() as texts,
        pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizers, probes=["shift", "sharpness"]) as monitor,
    ):
        monitor.measure(x, y)
    assert not texts
    run = pb.load_run(tmp_path / "run")
    assert not [record.error for record in run.records if record.error]
    assert next(run.of("sharpness")).values["optimizer"] == "Adam + SGD"
    CE(model(x), y).backward()
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        slope = p.grad
        assert slope is not None
        step = {"0": 0.5 * slope, "1": 0 * slope, "3": 0.1 * slope / (slope.abs() + 1e-8)}[name.partition(".")[0]]
        after[name] = p.detach() - step
    expected = pb.measure.internal_covariate_shift(model, CE, x, y, after)
    change = next(run.of("shift")).values["change"]
    assert list(change.values()) == pytest.approx((expected.shift / expected.norm).tolist(), rel=1e-4)


@pytest.mark.parametrize("bad", ["adam", 3, Speechless(), [None], {"params": []}], ids=lambda v: type(v).__name__)
def test_what_is_no_optimizer_is_refused_before_the_start(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match="`optimizer` as an optimizer of torch, or a list of them, got"):
        pb.Monitor(network()[0], CE, tmp_path / "run", optimizer=bad)
    assert not (tmp_path / "run").exists()
    assert chosen_optimizers([], "here") is None


def frozen_and_released(k: int, model: nn.Module, optimizer: Any) -> None:
    if k in (2, 4):
        model[0].requires_grad_(k == 4)


def replaced(k: int, model: nn.Module, optimizer: Any) -> None:
    if k == 2:
        model[3] = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
        optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.5})


def replaced_alike(k: int, model: nn.Module, optimizer: Any) -> None:
    if k == 2:
        model[3] = nn.Linear(6, 3)
        optimizer.add_param_group({"params": model[3].parameters()})


def unused(k: int, model: nn.Module, optimizer: Any) -> None:
    if k == 2:
        model.register_parameter("extra", nn.Parameter(torch.zeros(2)))


CHANGES = {
    "frozen and released": (frozen_and_released, {3: {"0"}, 5: {"0"}}, [1, 1, 3, 3, 5, 5]),
    "replaced": (replaced, {3: {"3"}}, [1, 1, 3, 3, 3, 3]),
    "replaced by one alike": (replaced_alike, {3: {"3"}}, [1, 1, 1, 1, 1, 1]),
    "one that is never used": (unused, {}, [1, 1, 3, 3, 3, 3]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_models_that_change_in_mid_run(change: str, tmp_path: Path) -> None:
    """Every probe goes on; no layer that was put in another's place has an update; drift is of the same parameters."""
    how, without, since = CHANGES[change]
    probes = ("loss", "updates", "flow", "effective_lr", "shift", "tangent", "sharpness", "activations")
    run, texts, _ = watched(tmp_path / "run", change=how, steps=6, probes=probes)
    assert not texts
    assert not [record.error for record in run.records if record.error]
    for probe in set(probes) - {"sharpness", "shift"}:
        assert [record.step for record in run.of(probe)] == list(range(1, 7)), probe
    updates = dict(zip(*run.series("updates", "ratio"), strict=True))
    for step, layers in without.items():
        assert not layers & set(updates[step]), step
    assert run.series("tangent", "since")[1] == since


def test_a_model_that_is_frozen_whole_for_a_while(tmp_path: Path) -> None:
    def whole(k: int, model: nn.Module, optimizer: Any) -> None:
        if k in (1, 2):
            model.requires_grad_(k == 2)

    run, _, _ = watched(tmp_path / "run", change=whole, steps=4)
    assert run.series("loss", "loss")[0] == [1, 3, 4]
    assert any("trainable parameters" in (record.error or "") for record in run.records)


def test_anything_may_stand_in_about(tmp_path: Path) -> None:
    about = {
        "path": Path("/data/x"), "rate": np.float32(0.5), "count": np.int64(3), "dtype": torch.float32,
        "t": torch.ones(2),
        "device": torch.device("cpu"), "args": argparse.Namespace(a=1), "day": datetime.date(2020, 1, 2), "set": {1},
        "nested": {"a": {"b": [Path("q")]}}, "nan": math.nan, "large": torch.zeros(70_000), 3: 4, "bad": Speechless(),
    }  # fmt: skip
    run, texts, _ = watched(tmp_path / "run", steps=1, about=about)
    assert not texts
    meta = run.meta
    assert (meta["path"], meta["rate"], meta["count"], meta["dtype"]) == ("/data/x", 0.5, 3, "torch.float32")
    assert (meta["t"], meta["device"], meta["args"], meta["day"]) == ([1, 1], "cpu", "Namespace(a=1)", "2020-01-02")
    assert (meta["nested"], meta["nan"], meta["3"]) == ({"a": {"b": ["q"]}}, "NaN", 4)
    assert meta["bad"] == "an object of type Speechless"
    assert meta["set"] == [1]


def test_a_loss_says_how_small_it_may_be(tmp_path: Path) -> None:
    """Known of torch's; of a callable by its own word, or by that of the caller."""

    def each(outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, y, reduction="none")

    model, _, _ = network()
    cases = [
        (CE, {}, 0.0),
        (nn.PoissonNLLLoss(), {}, None),
        (nn.functional.mse_loss, {}, 0.0),
        (each, {}, None),
        (each, {"about": {"least_loss": 0.0}}, 0.0),
    ]
    own = lambda outputs, y: each(outputs, y) - 1
    own.least_loss = -1.0  # type: ignore[attr-defined]
    for place, (loss_fn, options, least) in enumerate([*cases, (own, {}, -1.0)]):
        with pb.Monitor(model, loss_fn, tmp_path / str(place), **options):
            pass
        assert pb.load_run(tmp_path / str(place)).meta.get("least_loss") == least


def test_a_writer_says_what_no_record_holds(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {}) as writer:
        for bad in ({"a": 1j}, {"a": [[[1]]]}, {"a": Speechless()}):
            with pytest.raises(pb.InputError, match="values that a record can hold, got mine.a: "):
                writer.append(1, "mine", bad)
    with pytest.raises(TypeError, match="a value of type complex, which is no number"):
        encode(1j)
    with pytest.raises(ValueError, match="an array of 70,000 numbers, where a record takes 65,536"):
        encode(torch.zeros(70_000))
    assert encode({"a": 1j}, in_words) == {"a": "1j"}
    assert (as_index(np.int8(3)), as_index(3.0), as_index(Speechless())) == (3, None, None)
    with pytest.raises(TypeError, match="NoneType is no number"):
        as_number(None)
    with pytest.raises(ValueError, match="complex numbers"):
        as_number(torch.tensor(1j))
