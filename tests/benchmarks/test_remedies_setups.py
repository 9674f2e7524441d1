"""The benchmark of remedies: its draws, data, networks, faults, changes and trainings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from benchmarks.studies.remedies.changes import CHANGES, NotPossibleError, carried_out
from benchmarks.studies.remedies.data import prepare, source
from benchmarks.studies.remedies.faults import FAULTS, names
from benchmarks.studies.remedies.networks import build
from benchmarks.studies.remedies.setups import ALL_DATA, DATA, LARGEST_RATE, Setup, described, draw, rates, task, tiny
from benchmarks.studies.remedies.training import NO_ANSWER, batches, loss_of, skill, train, trained
from benchmarks.studies.remedies.watching import samples
from pullback.advisor.change import KINDS

IRIS, TEACHER = tiny()[0].setup, tiny()[2].setup
SHORT = replace(IRIS, rate=0.03, steps=12)


def of_kind(kind: str, **fields: Any) -> Setup:
    """A drawn set-up of a kind of network, at a rate."""
    chosen = next(each.setup for each in (draw(k, FAULTS) for k in range(40)) if each.setup.kind == kind)
    return replace(chosen, rate=1e-3, **fields)


# Draws.


def test_a_number_always_gives_the_same_set_up() -> None:
    assert [draw(k, FAULTS) for k in (5, 11)] == [draw(k, FAULTS) for k in (5, 11)]
    assert len({json.dumps(described(draw(k, FAULTS).setup)) for k in range(30)}) == 30


def test_draws_cover_what_they_are_of() -> None:
    drawn = [draw(k, FAULTS) for k in range(300)]
    assert len(DATA) >= 7
    assert len(ALL_DATA) >= 7
    assert {each.setup.kind for each in drawn} == set(DATA)
    assert {each.setup.data for each in drawn} == set(ALL_DATA)
    assert {each.setup.optimizer for each in drawn} == set(LARGEST_RATE)
    assert {each.setup.normalisation for each in drawn} == {"none", "layer", "batch"}
    assert {"healthy", "rate"} < {each.planted for each in drawn}
    assert len({each.planted for each in drawn} & set(FAULTS)) >= 24
    for each in drawn:
        assert each.planted not in FAULTS or FAULTS[each.planted].fits(each.setup)


@pytest.mark.parametrize("optimizer", LARGEST_RATE)
def test_rates_go_over_five_decades(optimizer: str) -> None:
    grid = rates(optimizer)
    assert grid == sorted(grid)
    assert grid[-1] / grid[0] == pytest.approx(1e5)


# Data.


@pytest.mark.parametrize("data", ALL_DATA)
def test_inputs_in_units_of_their_own(data: str) -> None:
    kind = next(kind for kind in DATA if data in DATA[kind])
    setup = of_kind(kind, data=data, width=8)
    found = prepare(setup)
    assert len(found.x) == len(found.y) == len(found.faulty)
    assert min(len(found.x_valid), len(found.x_test)) >= 25
    if task(setup) == "tokens":
        assert found.x.dtype == torch.int64
        assert torch.equal(found.x[:, 1:], found.y[:, :-1])  # the next character
        return
    assert abs(float(found.x.mean())) < 1e-3
    assert float(found.x.std()) == pytest.approx(1, abs=0.02)
    raw = prepare(replace(setup, inputs="raw"))
    assert set(raw.x.flatten().tolist()) <= set(source(data)[0].flatten().tolist())


def test_no_sample_is_in_two_parts() -> None:
    x = source("teacher classes")[0]
    setup = of_kind("MLP", data="teacher classes", inputs="raw")
    found = prepare(setup)
    parts = [{tuple(row) for row in part.tolist()} for part in (found.x, found.x_valid, found.x_test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(x)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_wrong_labels_are_as_many_as_said(share: float) -> None:
    setup = of_kind("MLP", data="wine")
    right, wrong = prepare(setup), prepare(replace(setup, wrong_labels=share))
    assert torch.equal(right.y != wrong.y, wrong.faulty)
    assert int(wrong.faulty.sum()) == round(share * len(right.y))
    assert torch.equal(right.y_test, wrong.y_test)
    assert torch.equal(prepare(replace(setup, wrong_labels=share, checked=True)).y, right.y)


@pytest.mark.parametrize("field", ["not_finite", "outliers", "copies"])
def test_faulty_samples_are_left_out_once_checked(field: str) -> None:
    setup = replace(of_kind("MLP", data="iris"), **{field: 0.2}, inputs="raw")
    planted, checked = prepare(setup), prepare(replace(setup, checked=True))
    assert 0 < int(planted.faulty.sum()) <= 0.2 * len(planted.x) + 1
    assert len(checked.x) == len(planted.x) - int(planted.faulty.sum())
    assert torch.equal(checked.x, planted.x[~planted.faulty])
    assert not bool(checked.faulty.any())
    whole = prepare(replace(setup, **{field: 0.0})).x
    changed = (planted.x != whole).any(1)
    assert torch.equal(changed, planted.faulty)


def test_a_sample_that_is_not_finite_spoils_no_other() -> None:
    found = prepare(replace(IRIS, not_finite=0.1))
    assert bool(found.x[~found.faulty].isfinite().all())
    assert bool(found.x[found.faulty].isnan().any(1).all())


def test_one_class_is_99_times_as_frequent() -> None:
    labels = prepare(of_kind("MLP", data="breast cancer", majority=0.99)).y
    counts = sorted(labels.bincount().tolist())
    assert counts[0] >= 1
    assert counts[1] / sum(counts) == pytest.approx(0.99, abs=0.01)


def test_batches_are_shuffled_or_sorted() -> None:
    data = prepare(setup := replace(IRIS, steps=6, batch_size=15))
    epoch = torch.cat(list(batches(setup, data, 0)))
    assert sorted(epoch.tolist()) == list(range(90))
    assert not torch.equal(epoch, torch.cat(list(batches(setup, data, 1))))
    labels = data.y[torch.cat(list(batches(replace(setup, shuffled=False), data, 0)))]
    assert torch.equal(labels, data.y.sort().values)


def test_a_loss_that_is_adjusted_asks_of_scores_what_equal_classes_would() -> None:
    """Scores that are the logarithms of the shares leave nothing to learn, as equal ones do of equal classes."""
    unequal = prepare(rare := replace(IRIS, majority=0.9))
    shares = unequal.y.bincount(minlength=3) / len(unequal.y)
    alone = torch.zeros(len(unequal.y), 3)
    adjusted, plain = loss_of(replace(rare, adjusted=True), unequal), loss_of(rare, unequal)
    torch.testing.assert_close(adjusted(alone, unequal.y), plain(alone + shares.log(), unequal.y))
    torch.testing.assert_close(float(adjusted(alone, unequal.y)), -float((shares * shares.log()).sum()))


# Networks.


@pytest.mark.parametrize(("kind", "data"), [(kind, data) for kind in DATA for data in DATA[kind]])
def test_every_network_takes_its_data(kind: str, data: str) -> None:
    setup = of_kind(kind, data=data)
    found = prepare(setup)
    state = torch.get_rng_state()
    model = build(setup, found, 0).eval()
    assert torch.equal(state, torch.get_rng_state())
    outputs = model(found.x[:5])
    expected = {"tokens": (5, found.outputs, 20), "classes": (5, found.outputs)}.get(task(setup), found.y[:5].shape)
    assert tuple(outputs.shape) == tuple(expected)
    if task(setup) == "tokens":  # no position sees what comes after it
        changed = found.x[:5].clone()
        changed[:, 12:] = (changed[:, 12:] + 1) % found.outputs
        torch.testing.assert_close(model(changed)[..., :12], outputs[..., :12])


def test_the_norm_of_a_transformer_is_before_its_parts_or_behind() -> None:
    made = {}
    for kind in ("pre-norm transformer", "post-norm transformer"):
        setup = of_kind(kind, data="digits")
        block = build(setup, prepare(setup), 0).blocks[0]
        made[kind] = block(5 * torch.randn(3, 8, setup.width), None).detach()
    assert float(made["post-norm transformer"].var(-1, correction=0).mean()) == pytest.approx(1, abs=0.01)
    assert float(made["pre-norm transformer"].var(-1, correction=0).mean()) > 5


# Faults.


def test_every_fault_changes_its_set_ups_and_has_a_name() -> None:
    known = re.findall(r"[a-z]+(?:-[a-z]+)+|divergence|duplicates|memorisation", pb.diagnose.__doc__ or "")
    rates_too = {"rate too high", "rate too low"}
    for name, fault in FAULTS.items():
        fitting = [each.setup for each in (draw(k, FAULTS) for k in range(120)) if fault.fits(each.setup)]
        assert fitting, name
        for setup in fitting:
            whole = fault.sound(setup)
            assert fault.plant(whole) != whole, name
        assert fault.names
        assert names(name, "fault") == fault.names
    assert all(names("rate", verdict) for verdict in rates_too)
    assert names("healthy", "healthy") == ()
    assert len(known) > 20


def test_parameters_no_optimizer_holds() -> None:
    setup = replace(IRIS, untrained="forgotten")
    model = build(setup, prepare(setup), 0)
    assert {p.dim() for p in trained(model, setup)} == {1}
    assert all(p.requires_grad for p in model.parameters())
    again = replace(setup, trained=tuple(name for name, _ in model.named_parameters()))
    assert len(trained(model, again)) == len(list(model.parameters()))
    frozen = replace(IRIS, untrained="frozen")
    model = build(frozen, prepare(frozen), 0)
    assert len(trained(model, frozen)) == 2
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


# Changes.


def test_every_kind_of_change_is_carried_out_by_a_function() -> None:
    assert set(CHANGES) == set(KINDS)


EVERY_CHANGE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {  # value, what was set, what is then
    "learning_rate": (0.1, {"rate": 0.5}, {"rate": pytest.approx(0.05)}),
    "batch_size": (2.0, {"batch_size": 16}, {"batch_size": 32}),
    "clip_norm": (1.5, {}, {"clip": 1.5}),
    "warmup_steps": (10, {}, {"warmup": 10}),
    "weight_decay": (0, {"weight_decay": 3.0}, {"weight_decay": 0.0}),
    "initialisation": ("critical", {"initialisation": "large"}, {"initialisation": "critical"}),
    "activation": ("relu", {"activation": "sigmoid"}, {"activation": "relu"}),
    "normalisation": ("layer", {}, {"normalisation": "layer"}),
    "residual": (None, {}, {"residual": True}),
    "standardise_inputs": (None, {"inputs": "raw"}, {"inputs": "standard"}),
    "standardise_targets": (None, {"targets": "raw", "data": "diabetes"}, {"targets": "standard"}),
    "shuffle": (None, {"shuffled": False}, {"shuffled": True}),
    "check_samples": (tuple(range(90)), {"wrong_labels": 0.6}, {"checked": True}),
    "balance_classes": (None, {}, {"adjusted": True}),
    "loss_from_logits": (None, {"probabilities": True}, {"probabilities": False}),
    "zero_grad": (None, {"zero_grad": False}, {"zero_grad": True}),
    "train_parameters": (("0.weight",), {"untrained": "forgotten"}, {"trained": ("0.weight",)}),
    "early_stopping": (None, {}, {"early_stopping": True}),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_change_changes_one_thing(kind: str) -> None:
    value, before, after = EVERY_CHANGE[kind]
    assert pb.Change(kind, value).value == value
    setup = replace(SHORT, **before)
    made = carried_out(setup, kind, value)
    assert replace(made, **{name: getattr(setup, name) for name in after}) == setup
    assert {name: getattr(made, name) for name in after} == after
    assert train(replace(made, steps=3), 0).skill > NO_ANSWER


@pytest.mark.parametrize(
    ("kind", "value", "network", "data"),
    [
        ("activation", "gelu", "RNN", "digits"),
        ("activation", "tanh", "GRU", "digits"),
        ("activation", "of their own", "MLP", "iris"),
        ("normalisation", "batch", "post-norm transformer", "digits"),
        ("normalisation", "layer", "RNN", "digits"),
        ("residual", None, "GRU", "digits"),
        ("standardise_inputs", None, "RNN", "prose"),
        ("standardise_targets", None, "MLP", "iris"),
        ("balance_classes", None, "regression MLP", "diabetes"),
        ("initialisation", "zero", "MLP", "iris"),
    ],
)
def test_what_has_no_place_is_not_carried_out(kind: str, value: Any, network: str, data: str) -> None:
    with pytest.raises(NotPossibleError, match=" "):
        carried_out(of_kind(network, data=data), kind, value)


def test_samples_that_are_right_change_nothing() -> None:
    setup = replace(SHORT, wrong_labels=0.2)
    faulty = prepare(setup).faulty
    wrong, right = faulty.nonzero()[:, 0].tolist(), (~faulty).nonzero()[:, 0].tolist()
    assert carried_out(setup, "check_samples", tuple(wrong[:5] + right[:4])).checked
    assert carried_out(setup, "check_samples", tuple(wrong[:4] + right[:5])) == setup


def test_places_of_a_batch_are_samples_of_the_training() -> None:
    trained_ = train(SHORT, 0)
    finding = pb.Finding("suspect-samples", "warning", None, (3, 5), {}, "", "", "", change=pb.Change("check_samples", [2, 0]))  # fmt: skip  # noqa: E501
    assert samples(finding, trained_) == (int(trained_.batches[4][2]), int(trained_.batches[4][0]))


# Training.


def test_the_same_seed_trains_the_same_watched_or_not(tmp_path: Path) -> None:
    alone, again, watched = train(SHORT, 3), train(SHORT, 3), train(SHORT, 3, tmp_path / "run")
    assert alone.losses == again.losses == watched.losses
    assert alone.skill == again.skill == watched.skill
    assert train(SHORT, 4).losses != alone.losses
    assert len(alone.losses) == SHORT.steps


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_grad": False},
        {"clip": 1e-3},
        {"warmup": 10},
        {"ends": 0.3},
        {"reduction": "sum"},
        {"weight_decay": 1.0},
    ],
)
def test_what_a_loop_does_shows_in_its_losses(fields: dict[str, Any]) -> None:
    plain, other = (train(replace(SHORT, optimizer="SGD", **each), 0).losses for each in ({}, fields))
    assert plain != other
    if "reduction" in fields:
        assert other[0] == pytest.approx(16 * plain[0], rel=1e-5)


def test_a_schedule_at_zero_stands_still() -> None:
    setup = replace(TEACHER, rate=0.1, steps=30, ends=0.2, batch_size=2000)
    losses = train(setup, 0).losses
    assert len(set(losses[:6])) == 6
    assert losses[8:] == pytest.approx([losses[8]] * 22, rel=1e-5)


def test_early_stopping_ends_with_the_best_weights() -> None:
    setup = replace(TEACHER, rate=0.3, samples=20, steps=200, width=64, batch_size=20)
    assert train(replace(setup, early_stopping=True), 0).skill >= train(setup, 0).skill


def test_skill_is_nothing_of_one_answer_and_all_of_the_truth() -> None:
    class Says(torch.nn.Module):
        def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.answer(x)

    for setup in (IRIS, TEACHER, of_kind("RNN", data="code")):
        data = prepare(setup)
        y = data.y_test
        if task(setup) == "values":
            constant, right = y.mean(0).expand_as(y), y
        else:
            right = 50.0 * torch.nn.functional.one_hot(y, data.outputs).float().movedim(-1, 1)
            counts = data.y.flatten().bincount(minlength=data.outputs).float() + 1
            constant = counts.log().view(1, -1, *[1] * (y.dim() - 1)).expand_as(right)
        assert skill(setup, Says(lambda x, z=right: z), data, data.x_test, y) == pytest.approx(1, abs=1e-6)
        assert skill(setup, Says(lambda x, z=constant: z), data, data.x_test, y) == pytest.approx(0, abs=1e-5)
        assert skill(setup, Says(lambda x, z=right: z * torch.nan), data, data.x_test, y) == NO_ANSWER
