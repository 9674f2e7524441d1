"""Wrong labels that are told by where the model's scores have them: drawn labels against hard samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pullback as pb
from pullback.runs import Run
from tests.advisor.runs import Line, a_run

CLASSES = 10
EVERY: Line = (0, "targets", {"counts": {str(k): 50 for k in range(CLASSES)}})


def a_record(step: int, ranks: Any, classes: int = CLASSES) -> Line:
    found, counts = np.unique(np.asarray(ranks), return_counts=True)
    named = [[int(place), 1.0] for place in np.flatnonzero(np.asarray(ranks) > 1)[:20]]
    seen = {str(rank): int(count) for rank, count in zip(found, counts, strict=True)}
    values = {"num_samples": len(ranks), "suspects": [], "num_classes": classes}
    return step, "samples", values | {"label_ranks": seen, "contradicted": named}


def ranks_of(rng: np.random.Generator, samples: int, wrong: float, hard: float) -> np.ndarray:
    """A share of labels drawn among all others, and of the rest a share second, third, ... each half as often."""
    ranks = np.where(rng.random(samples) < hard, 1 + np.minimum(rng.geometric(0.55, samples), CLASSES - 1), 1)
    return np.where(rng.random(samples) < wrong, rng.integers(2, CLASSES + 1, samples), ranks)


SETTLED = [*np.linspace(2.3, 1.4, 100), *[1.4] * 750]  # losses


def said(run: Run) -> pb.Finding | None:
    return next((each for each in pb.diagnose(run) if each.name == "suspect-samples"), None)


def a_training(seed: int, wrong: float, hard: float, samples: int = 16) -> Run:
    rng = np.random.default_rng(seed)
    return a_run(
        EVERY, *[a_record(step, ranks_of(rng, samples, wrong, hard)) for step in range(50, 850, 50)], loss=SETTLED
    )


def test_two_fifths_of_the_labels_are_told_by_few_samples_a_measurement() -> None:
    found = [said(a_training(seed, 0.4, 0.2)) for seed in range(40)]
    assert sum(each is not None and each.severity == "warning" for each in found) >= 38
    first = next(each for each in found if each is not None)
    assert first.change is not None
    assert (first.change.kind, bool(first.change.value)) == ("check_samples", True)
    assert first.evidence["samples contradicted"] > 30


@pytest.mark.parametrize("hard", [0.3, 0.5, 0.65])
def test_hard_samples_are_not_told(hard: float) -> None:
    """Whatever share of them is wrong: none of 60 runs."""
    assert not any(said(a_training(seed, 0.0, hard)) for seed in range(60))


@pytest.mark.parametrize("loss", [np.linspace(2.3, 1.4, 850), 1.4 + 0.9 * np.exp(-np.arange(850) / 600), None])
def test_a_model_that_still_learns_is_not_told(loss: Any) -> None:
    """Nor one whose course is not known."""
    rng = np.random.default_rng(0)
    lines = [a_record(step, ranks_of(rng, 16, 0.4, 0.2)) for step in range(50, 850, 50)]
    assert said(a_run(EVERY, *lines, loss=SETTLED)) is not None
    assert said(a_run(EVERY, *lines, **({} if loss is None else {"loss": loss.tolist()}))) is None


def whole_batches(seed: int, wrong: float, hard: float, sure: float) -> list[Line]:
    """Four measured samples, and 192 of the last batches; the model is sure of this share of its contradictions.

    Of hard samples it is sure where the label is next to the first answer.
    """
    rng = np.random.default_rng(seed)
    few, ranks = a_record(800, [1, 1, 2, 1]), ranks_of(rng, 192, wrong, hard)
    values = a_record(800, ranks)[2]
    against = ranks[(ranks > 1) & (rng.random(192) < sure)]
    told = a_record(800, against)[2]["label_ranks"]
    keys = ("num_samples", "num_classes", "label_ranks")
    return [EVERY, few, (800, "labels", {key: values[key] for key in keys} | {"confident_ranks": told})]


LEARNS = np.linspace(2.3, 1.2, 850).tolist()


@pytest.mark.parametrize(("wrong", "loss", "sure"), [(0.4, SETTLED, 0.0), (0.15, SETTLED, 0.0), (0.5, LEARNS, 0.9)])
def test_samples_of_whole_batches_tell_what_few_do_not(wrong: float, loss: list[float], sure: float) -> None:
    """Once the loss has settled or, of samples of which the model is sure, before it has."""
    found = [said(a_run(*whole_batches(seed, wrong, 0.05, sure), loss=loss)) for seed in range(20)]
    assert sum(each is not None and each.severity == "warning" for each in found) >= 18
    few = [said(a_run(*whole_batches(seed, wrong, 0.05, sure)[:2], loss=loss)) for seed in range(20)]
    assert not any(few)


@pytest.mark.parametrize(("hard", "loss", "sure"), [(0.3, SETTLED, 1.0), (0.5, SETTLED, 0.0), (0.5, LEARNS, 1.0)])
def test_hard_samples_of_whole_batches_are_not_told(hard: float, loss: list[float], sure: float) -> None:
    assert not any(said(a_run(*whole_batches(seed, 0.0, hard, sure), loss=loss)) for seed in range(40))


def test_nothing_is_said_where_nothing_is_learnt() -> None:
    rng = np.random.default_rng(0)
    untrained = [a_record(step, rng.integers(1, CLASSES + 1, 64)) for step in range(50, 850, 50)]
    assert said(a_run(EVERY, *untrained, loss=SETTLED)) is None


def test_one_frequent_class_is_no_knowledge() -> None:
    """Its answer for all leaves the labels of the others at any place."""
    frequent: Line = (0, "targets", {"counts": {"0": 450} | {str(k): 50 for k in range(1, CLASSES)}})
    rng = np.random.default_rng(0)
    lines = [
        a_record(step, np.where(rng.random(64) < 0.5, 1, rng.integers(2, CLASSES + 1, 64)))
        for step in range(50, 850, 50)
    ]
    assert said(a_run(frequent, *lines, loss=SETTLED)) is None


def test_of_three_classes_places_say_nothing() -> None:
    rng = np.random.default_rng(0)
    three: Line = (0, "targets", {"counts": {"0": 50, "1": 50, "2": 50}})
    lines = [a_record(step, rng.choice([1, 2, 3], 64, p=[0.6, 0.2, 0.2]), 3) for step in range(50, 850, 50)]
    assert said(a_run(three, *lines, loss=SETTLED)) is None


@pytest.mark.parametrize(
    "damage", [{"label_ranks": 3}, {"label_ranks": {"x": 1, "-1": 4, "99": 5}}, {"contradicted": "a"}]
)
def test_damaged_records_are_passed_over(damage: dict[str, Any]) -> None:
    step, probe, values = a_record(50, [1, 1, 2, 5])
    assert said(a_run(EVERY, (step, probe, values | damage))) is None
