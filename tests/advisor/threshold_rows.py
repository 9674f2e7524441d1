"""Rows of the thresholds that say how many are enough, how far one change goes, and what chance does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

import pullback as pb
from pullback.runs import Run
from tests.advisor.runs import Line, Row, a_run, losses

SGD = {"optimizer": "SGD", "learning_rate": 0.1, "limit": 20.0, "smallest_residual": 0.0}
CONSTANT: Line = (0, "loss", {"constant_loss": 2.0})
LOW, HIGH = "learning-rate-too-low", "learning-rate-too-high"


def is_warning(finding: pb.Finding) -> bool:
    return finding.severity == "warning"


def is_info(finding: pb.Finding) -> bool:
    return finding.severity == "info"


def factor_is(expected: float) -> Any:
    return lambda finding: finding.change is not None and finding.change.value == pytest.approx(expected, rel=1e-9)


def stuck(sharpness: float, step: int = 1, module: str = "Linear") -> Run:
    """A run whose loss stands, of one measured curvature."""
    curvature = (step, "sharpness", SGD | {"hessian": sharpness})
    return a_run(*losses(2.0, 2.0, 2.0, 2.0, 2.0), curvature, meta={"model": {"modules": {module: 1}}})


def labels(late: int, samples: int, early: int = 0, right: float = 0.1) -> list[Line]:
    """Suspect labels at the end of a run, and at its first step, where so many answers are right."""

    def seen(step: int, count: int) -> Line:
        named = [[k, 5.0, "label"] for k in range(min(5, count))]
        return step, "samples", {"num_samples": samples, "suspects": named, "num_suspects": {"label": count}}

    answers = {"loss": 2.0, "accuracy": right, "constant_accuracy": 0.1}
    return [(1, "loss", answers), *([seen(1, early)] if early else []), seen(40, late)]


def places(
    right: int, first_others: int, last_ones: int, classes: int = 12, loss: Sequence[float] = (2.0,) * 40
) -> Run:
    """Labels of a run: first among the model's scores, second, or last of all."""
    ranks = {"1": right, "2": first_others, str(classes): last_ones}
    seen = {"num_samples": right + first_others + last_ones, "num_classes": classes, "label_ranks": ranks}
    named = {"suspects": [], "contradicted": [[3, 1.0]]}
    every = (0, "targets", {"counts": {str(k): 10 for k in range(classes)}})
    return a_run(every, (40, "samples", seen | named), loss=loss)


def sure(against: int, last_ones: int, classes: int = 12) -> Run:
    """Labels of whole batches of a run that still learns, against which the model is sure: second, or last of all."""
    ranks = {"2": against - last_ones, str(classes): last_ones}
    seen = {"num_samples": 2 * against, "num_classes": classes, "label_ranks": {"1": against} | ranks}
    some = {"num_samples": 4, "num_classes": classes, "suspects": [], "contradicted": [[3, 1.0]]}
    every = (0, "targets", {"counts": {str(k): 10 for k in range(classes)}})
    lines = [(40, "samples", some | {"label_ranks": {"1": 4}}), (40, "labels", seen | {"confident_ranks": ranks})]
    return a_run(every, *lines, loss=[4.0 - 0.05 * step for step in range(41)])


def far_out(looks: int) -> list[Line]:
    """One batch of so many that were looked at has a sample far out; training works."""
    some = {"far_samples": [[3, 50.0]], "num_far": 1}
    lines: list[Line] = [
        (step, "inputs", {"furthest_sample": 2.0} | (some if not step else {})) for step in range(looks)
    ]
    return [*losses(2.0, 1.0, 0.1), (0, "targets", {"num_samples": 100}), *lines]


def quarters(count: int, fall: float) -> list[float]:
    return [level for level in (4.0, 3.0, 2.0, 2.0 - fall) for _ in range(count)]


def outlier(samples: int) -> list[Line]:
    return [(0, "samples", {"num_samples": samples, "suspects": [[3, 20.0, "outlier"]]})]


def off_at_start(share: float) -> Run:
    """Units that are off after a first step which left their layer as it was."""
    still = (1, "updates", {"median": 0.1, "ratio": {"a": 0.0, "b": 0.1}})
    return a_run(*losses(2.0, 2.0), still, (1, "activations", {"dead": {"a": share}, "kind": {"a": "ReLU"}}))


def is_of_start(finding: pb.Finding) -> bool:
    return finding.steps[0] == 0


def collapsed(*samples: int) -> list[Line]:
    """Measurements of so many samples each, of which all are alike."""
    ranks = {"effective_rank": {"a": 1.0}, "width": {"a": 50}}
    counts = [(k, "kernel", {"num_samples": count}) for k, count in enumerate(samples)]
    return [*losses(2.0, 2.0), *counts, *[(k, "activations", ranks) for k in range(len(samples))]]


def adding(norms: int, leap: int | None = None) -> Run:
    """Gradients that add up in so many steps, until a loss that leaps at a step."""
    measured = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in (1, 2, 4, 8, 16)]
    course = [1.0] * (20 if leap is None else leap) + [9.0] * 20
    return a_run(*measured, gradient_norm=[0.1 + 0.05 * k for k in range(norms)], loss=course)


def rising(rises: int) -> Run:
    """36 norms of which so many are longer than the one before, after a loss that leapt early."""
    norms = [0.1 * 1.5 ** min(k, rises) * 0.9 ** max(0, k - rises) for k in range(36)]
    measured = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in (1, 2, 4, 8, 16, 36)]
    return a_run(CONSTANT, *measured, gradient_norm=norms, loss=[2.0] * 4 + [20.0] * 36)


def rises_at_first(times: float) -> Run:
    """A loss that begins at that of one answer, stands higher for a tenth of the steps, and falls to half of it."""
    return a_run(CONSTANT, loss=[2.0] + [2.0 * times] * 20 + [1.0] * 179)


def standing(fall: float) -> Run:
    """36 norms that grow twelve times, and fall by this share of themselves at every step from then on."""
    norms = [0.1 * 1.5 ** min(k, 12) * (1 - fall) ** max(0, k - 12) for k in range(36)]
    measured = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in (1, 2, 4, 8, 16, 36)]
    return a_run(CONSTANT, *measured, gradient_norm=norms, loss=[2.0] * 4 + [20.0] * 36)


def numbers_by_heart(last: float, left: float = 0.01, looks: int = 8) -> Run:
    """An error of which so much is left, and a held-out one that rises to this from 0.5."""
    form = (0, "loss", {"constant_loss": 1.0, "loss": 1.0, "form": "squared"})
    held_out = [(10 * k, "test", {"loss": 0.5 if k == 1 else last}) for k in range(1, looks + 1)]
    return a_run(form, (100, "loss", {"loss": left, "form": "squared"}), *held_out, loss=[1.0] * 10 + [left] * 91)


def surer_of_mistakes(last: float, looks: int = 8, best: float = 1.0) -> Run:
    """Classes known by heart, beside a held-out loss that rises to this from ``best``; one answer for all has 2."""
    form = (0, "loss", {"constant_loss": 2.0, "loss": 2.0, "form": "cross-entropy"})
    held_out = [(10 * k, "test", {"loss": best if k == 1 else last, "accuracy": 0.6}) for k in range(1, looks + 1)]
    return a_run(form, (100, "loss", {"loss": 0.01, "form": "cross-entropy"}), *held_out, loss=[2.0] * 10 + [0.01] * 91)


def probabilities(measurements: int) -> Run:
    seen = [(k, "loss", {"outputs": "probabilities", "form": "binary"}) for k in range(measurements)]
    return a_run(CONSTANT, *seen, loss=[2.0] * 5 + [1.0] * 5)


def in_order(batches: int) -> list[Line]:
    return [(k, "targets", {"counts": {"a": 500.0 * (k % 2), "b": 500.0 * (1 - k % 2)}}) for k in range(batches)]


def few_numbers(errors: float) -> list[Line]:
    """Five batches of ten numbers, whose means lie apart by so many standard errors of an analysis of variance."""
    apart = math.sqrt((4 + errors * math.sqrt(8)) / 40)
    means = [apart, -apart, apart, -apart, 0.0]
    return [(k, "targets", {"sample_mean": m, "sample_std": 1.0, "num_samples": 10}) for k, m in enumerate(means)]


def within(share: float) -> list[Line]:
    """Sums of six batches of ten, within which this share of the squares lies."""
    of_all = {"batches": 6, "num_samples": 60, "sums": [0.0], "square_sums": [1.0], "squared_sums": [1.0 - share]}
    return [(5, "all_targets", of_all), (5, "targets", {"num_samples": 10})]


def imbalanced(labels: int) -> list[Line]:
    return [*losses(2.0, 2.0), (0, "targets", {"counts": {"a": labels - 3.0, "b": 3.0}})]


def falling(last: float = 1.5, steps: int = 80, noise: float = 0.0, way: float = 0.3) -> Run:
    """A loss that falls evenly from that of one answer, and three measured steps of so much of the weights in all."""
    course = [2.0 + (last - 2.0) * k / (steps - 1) + noise * (-1) ** k for k in range(steps)]
    updates = [(step, "updates", {"median": way / steps}) for step in (2, 4, steps)]
    return a_run(CONSTANT, *updates, loss=course)


def flat(way: float, curvature: float = 1e-6) -> Run:
    """No curvature, and weights that went this far in 100 steps."""
    bent = [(step, "sharpness", SGD | {"hessian": curvature}) for step in (1, 100)]
    return a_run(*bent, *[(s, "updates", {"median": way / 100}) for s in (2, 50, 100)], loss=[2.0] * 100)


def noisy_level(noise: float) -> Run:
    """A loss at 1.96 of one answer's 2, of 40 steps that go up and down by so much in turn."""
    return a_run(CONSTANT, loss=[1.96 + noise * (-1) ** k for k in range(40)])


def batches(size: int, scale: float = 100.0) -> Run:
    seen = {"signal_to_noise": 1 / scale, "signal_to_noise_stderr": 0.0, "batch_size": size}
    return a_run((0, "noise", seen), *losses(2.0, 2.0, 2.0))


def one_sample(size: int, left: float = 0.75) -> Run:
    return a_run(CONSTANT, (0, "loss_form", {"batch_size": size}), loss=[2.0] * 20 + [2.0 * left] * 20)


def wild(left: float) -> Run:
    """Steps of half of the weights, and this share of one answer's loss at the end."""
    return a_run(CONSTANT, (2, "updates", {"median": 0.5}), loss=[2.0] * 20 + [2.0 * left] * 20)


def begun(update: float = 0.1, most: float = 0.1, module: str = "Linear", sharpness: float = 1.0) -> Run:
    """The first step of a run: its length in those of the weights, at the median and of the layer that moved most."""
    steps = (1, "updates", {"median": update, "ratio": {"a": 0.1, "b": update, "c": most}})
    curvature = (1, "sharpness", SGD | {"hessian": sharpness})
    return a_run(steps, curvature, meta={"model": {"modules": {module: 1}}}, loss=[2.0])


def normed(size: int) -> list[Line]:
    return [(0, "batch_norm", {"smallest_count": {"a": 4}, "batch_size": size})]


def decayed(taken: float, first: int = 1, *more: Line) -> Run:
    optimizer = {"class": "AdamW", "learning_rate": taken / 0.1, "weight_decay": 0.1}
    steps = [(k, "updates", {"shrink": 0.9, "norm": size, "median": 1e9}) for k, size in ((first, 1.0), (9, 0.1))]
    return a_run(CONSTANT, *steps, *more, meta={"optimizer": optimizer}, loss=[2.0] * 10)


def has_room(sharpness: float) -> list[Line]:
    """Short steps in a run that is stuck; the limit is at 20, a quarter of which is aimed at."""
    curvature = [(40 * k, "sharpness", SGD | {"hessian": sharpness}) for k in range(2)]
    return [*losses(2.0, 2.0, 2.0, 2.0, 2.0), (2, "updates", {"median": 5e-6}), *curvature]


def layers_of(count: int) -> dict[str, float]:
    return {str(place): 1.0 for place in range(count)}


def says_one(ratio: float = 5.0, others: float = 8.0, right: float = 0.0, level: float = 1.5) -> Run:
    """A class so many times as frequent as the other, and measured samples of which just those of it are right."""
    counts = (1, "targets", {"counts": {"0": 100 * ratio, "1": 100.0}})
    most = 1 - others / 2 / 10
    answers = {"loss": 1.0, "accuracy": most + right, "constant_accuracy": most, "constant_loss": 2.0}
    seen = [line for k in range(4) for line in ((k, "kernel", {"num_samples": 10}), (k, "loss", answers))]
    return a_run(counts, *seen, loss=[2.0] * 4 + [level] * 40)


def schedule(steps: int) -> Run:
    return a_run(learning_rate=[1.0] * (steps // 2) + [1e-6] * (steps - steps // 2), loss=[2.0] * 100)


def answers(samples: int) -> Run:
    """Dead units in a run whose measured samples are all right, and whose loss stands."""
    seen = [(0, "activations", {"dead": {"a": 0.9}}), (3, "kernel", {"num_samples": samples})]
    right = {"loss": 2.0, "accuracy": 0.9, "constant_accuracy": 0.1, "constant_loss": 2.0}
    return a_run(*seen, (3, "loss", right), loss=[2.0] * 4)


def scaled(pairs: int, leap: float = 1.0) -> Run:
    """Dead units, and losses of the loop ten times the measured ones, that grow by a factor in the steps after them."""
    course = [1.7 * (leap if k % 4 == 1 else 1.0) for k in range(4 * max(pairs, 1))]
    seen = [(4 * k + 1, "loss", {"loss": 0.17, "batch_loss": 1.7, "constant_loss": 2.0}) for k in range(pairs)]
    return a_run((0, "activations", {"dead": {"a": 0.9}}), *seen, loss=course)


def survives(share: float) -> Run:
    """Gradients that vanish, and weights that hardly moved, those of the last layer neither."""
    norms = {"a": share, "b": 1.0}
    flows = [(k, "flow", {"verdict": "vanishing", "slope": -3.0, "gradient_norm": norms}) for k in (1, 2, 4)]
    updates = [(k, "updates", {"median": 1e-6, "ratio": {"a": 1e-6, "b": 1e-6}}) for k in (2, 4, 8)]
    return a_run(*flows, *updates, loss=[2.0] * 40)


def lost(share: float) -> Run:
    """A gradient of which so little arrives at the first layer at the start, and enough later."""
    first = {"verdict": "vanishing", "slope": -8.0, "gradient_norm": {"a": share, "b": 1.0}}
    flows = [(1, "flow", first), *((k, "flow", {"verdict": "steady", "slope": 0.0}) for k in (2, 4, 8))]
    return a_run(CONSTANT, *flows, loss=[2.0] * 20 + [1.0] * 20)


def unlearnt(fall: float = 0.2, looks: int = 16, noise: float = 0.0) -> Run:
    """A test accuracy that falls by so much in the middle, and goes up and down by so much."""
    test = [(k, "test", {"accuracy": 0.5 + noise * (k % 2) + fall * (k < looks // 2)}) for k in range(looks)]
    return a_run((0, "loss", {"loss": 0.5}), *test, loss=[2.0] * 20 + [1.0] * 20)


def remembering(steps: int) -> Run:
    """Momentum that remembers 50 steps more than there are, of a loss that stands."""
    meta = {"optimizer": {"class": "SGD", "momentum": 1 - 1 / (steps + 50)}}
    return a_run(CONSTANT, meta=meta, loss=[2.0] * steps)


def cut_off(share: float) -> list[Line]:
    seen = [(k, "loss", {"loss": 2.0, "constant_loss": 2.0, "cut_off": share}) for k in range(4)]
    return [*seen, (0, "activations", {})]


def by_chance(share: float) -> Run:
    """A held-out accuracy of the most frequent class, which has this share, of a loss that falls."""
    counts = (0, "targets", {"counts": {"a": 1000 * share, "b": 1000 * (1 - share) - 400, "c": 400.0}})
    return a_run(counts, *[(k, "test", {"accuracy": share}) for k in range(8)], loss=[2.0] * 20 + [0.2] * 20)


def wild_anyway(first: float) -> Run:
    """A first loss in units of the entropy of two classes, of a run that ends before any loss was measured."""
    counts = (1, "all_targets", {"counts": {"a": 50, "b": 50}})
    return a_run(counts, least=None, loss=[first * math.log(2), math.nan])


FURTHER: dict[str, tuple[Row, ...]] = {
    "MANY_SAMPLES": (Row(outlier, 16, 15, "suspect-samples"),),
    "UNLEARNT": (Row(lambda v: labels(30, 100, 20, v), 0.301, 0.299, "suspect-samples", is_warning),),
    "CONFIDENT": (Row(lambda v: labels(300, 1000, v), 150, 151, "suspect-samples", is_warning),),
    # places are 0 and 1: a share p of ones has the standard error sqrt(p (1 - p) / n), 0.046 of 30 in 100
    "OFF_BEYOND_CHANCE": (Row(off_at_start, 0.76, 0.74, "dead-units", is_of_start),),
    "HARD_PLACE": (Row(lambda v: places(100, 100 - v, v), 29, 28, "suspect-samples", is_warning),),
    "PLACE_ERRORS": (Row(lambda v: places(100, 100 - v, v), 29, 28, "suspect-samples", is_warning),),
    "FEW_CLASSES": (Row(lambda v: places(150, 50, 50, v), 4, 3, "suspect-samples", is_warning),),
    "SURE_PLACE": (Row(lambda v: sure(100, v), 45, 44, "suspect-samples", is_warning),),
    "MANY_SURE": (Row(lambda v: sure(v, v), 12, 11, "suspect-samples", is_warning),),
    "RARE_BATCHES": (Row(far_out, 20, 21, "outlying-samples", is_warning),),
    "MANY_RANKED": (Row(lambda v: places(15, 0, v), 15, 14, "suspect-samples", is_warning),),
    "PLACES_TELL": (Row(lambda v: places(v, 50, 50), 233, 234, "suspect-samples", is_warning),),
    # quarters of 4, 3, 2 and 2 - f, of a start of 4: f of 2 + f is a tenth where f is 2/9
    "SETTLED": (Row(lambda v: places(50, 0, 50, loss=quarters(4, v)), 0.352, 0.353, "suspect-samples", is_warning),),
    "FEW_SETTLED": (Row(lambda v: places(50, 0, 50, loss=[2.0] * v), 16, 15, "suspect-samples", is_warning),),
    # of 200 and 1000 labels of which 3 percent are wrong so many or more are in 1.84 and 2.04 of 100 draws
    "LABEL_CHANCE": (Row(lambda v: labels(*v), (12, 200), (42, 1000), "suspect-samples", is_warning),),
    "FEW_DIRECTIONS": (Row(lambda v: collapsed(*[v] * 5), 3, 2, "rank-collapse"),),
    "MANY_DIRECTIONS": (Row(lambda v: collapsed(4, v), 4, 3, "rank-collapse"),),
    "FALLS_SHORT": (Row(wild, 0.301, 0.299, HIGH),),
    "MEDIAN_OF": (Row(lambda v: adding(20, v), 6, 5, "gradients-not-zeroed"),),
    # of 36 by chance 17.5 rise, with a variance of 37 / 12
    "RISES": (Row(rising, 25, 24, "gradients-not-zeroed"),),
    "BY_HEART_RISE": (Row(numbers_by_heart, 0.651, 0.649, "memorisation", is_warning),),
    "STANDS": (Row(standing, 0.9e-3, 1.1e-3, "gradients-not-zeroed"),),
    "MANY_NORMS": (Row(adding, 5, 4, "gradients-not-zeroed"),),
    "MANY_OUTPUTS": (Row(probabilities, 3, 2, "loss-of-probabilities"),),
    "MANY_BATCHES": (Row(in_order, 5, 4, "data-not-shuffled"),),
    "ORDER_ERRORS": (Row(few_numbers, 6.01, 5.99, "data-not-shuffled"),),
    "LEAST_WITHIN": (Row(within, 1.01e-9, 0.99e-9, "data-not-shuffled"),),
    "MANY_LABELS": (Row(imbalanced, 100, 99, "class-imbalance"),),
    "HALF_WAY": (Row(falling, 0.96, 0.95, LOW),),
    "MANY_STEPS_OF_FALL": (Row(lambda v: falling(steps=v), 40, 39, LOW),),
    "TRAVELLED": (Row(lambda v: falling(way=v), 0.999, 1.001, LOW),),
    "WELL_TRAVELLED": (Row(lambda v: falling(way=v), 0.6, 0.61, LOW, factor_is(5.0)),),
    "FIRST_UPDATE": (Row(lambda v: begun(v), 0.501, 0.499, HIGH),),
    "ALL_AT_ONCE": (Row(lambda v: begun(0.1, v, "BatchNorm1d"), 5.01, 4.99, HIGH),),
    "FAR_ABOVE": (Row(lambda v: begun(sharpness=v), 101.0, 99.0, HIGH),),
    "FALLS_BY": (Row(lambda v: falling(noise=v), 0.1, 0.115, LOW),),
    "RAISED": (Row(lambda v: flat(v), 0.1, 0.04, LOW, factor_is(10.0)),),
    "IMBALANCED_SILENT": (Row(says_one, 4.01, 3.99, "class-imbalance", lambda f: f.severity == "warning"),),
    "UNSAID": (Row(lambda v: says_one(others=v), 7.6, 7.4, "class-imbalance"),),
    "RAISED_LEAST": (Row(has_room, 2.49, 2.51, LOW),),
    "DEEP": (
        Row(
            lambda v: [(1, "flow", {"verdict": "vanishing", "slope": -2.0, "gradient_norm": layers_of(v)})],
            12,
            11,
            "vanishing-gradients",
            lambda f: f.change == pb.Change("normalisation", "layer") and "layer norm" in f.action,
        ),
    ),
    "RAISED_FAR": (Row(lambda v: flat(v), 0.004, 0.006, LOW, factor_is(100.0)),),
    "FIRST_STEPS": (Row(lambda v: stuck(30.0, v, "BatchNorm1d"), 10, 9, HIGH),),
    "SHARE_OF_LIMIT": (Row(stuck, 50.0, 51.0, HIGH, factor_is(0.1)),),
    "LOWEST_FACTOR": (Row(stuck, 6000.0, 4900.0, HIGH, factor_is(0.001)),),
    "LEVEL_STDERRS": (Row(noisy_level, 0.09, 0.1, "not-learning"),),
    "LARGEST_FACTOR": (Row(lambda v: batches(4, v), 65.0, 63.0, "batch-too-small", factor_is(16.0)),),
    "ENOUGH_FOR_NORM": (
        Row(
            normed,
            31,
            32,
            "batch-norm-batch-too-small",
            lambda f: f.change is not None and f.change.kind == "batch_size",
        ),
    ),
    "AT_NO_COST": (Row(one_sample, 2, 3, "batch-too-small", factor_is(8.0)),),
    "TAKES_ALL": (Row(decayed, 0.0101, 0.0099, "weight-decay-too-high", lambda f: f.steps[0] == 0),),
    "MANY_RATES": (Row(schedule, 20, 19, "schedule-at-zero"),),
    "FIRST_MEASUREMENT": (
        Row(
            lambda v: decayed(0.001, v, (v, "activations", {"dead": {"a": 0.9}})),
            1,
            2,
            "weight-decay-too-high",
            lambda finding: finding.because == ("dead-units",),
        ),
    ),
    "ENOUGH_ANSWERS": (Row(answers, 64, 63, "dead-units", is_info),),
    "LEAPS": (Row(lambda v: scaled(4, v), 4.01, 3.99, "dead-units", is_info),),
    "LOST": (Row(lost, 3.4e-4, 3.5e-4, "vanishing-gradients"),),
    "SURVIVES": (Row(survives, 0.0099, 0.0101, "vanishing-gradients"),),
    "WORSE_THAN_ONE_ANSWER": (Row(surer_of_mistakes, 2.201, 2.199, "memorisation", is_warning),),
    "ROSE": (Row(rises_at_first, 1.201, 1.199, HIGH, is_warning),),
    "LOST_ACCURACY": (Row(unlearnt, 0.101, 0.099, "memorisation"),),
    "ENOUGH_LOOKS": (Row(lambda v: unlearnt(looks=v), 12, 11, "memorisation"),),
    "LOSES": (Row(lambda v: unlearnt(0.2, 16, v), 0.039, 0.041, "memorisation"),),
    "LONG_MEMORY": (Row(remembering, 100, 99, HIGH),),
    "CUT_OFF": (Row(cut_off, 0.101, 0.099, "dead-units"),),
    "COMMON": (Row(by_chance, 0.499, 0.501, "not-learning"),),
    "WILD_ANYWAY": (Row(wild_anyway, 1.01e4, 0.99e4, "chaotic-initialisation"),),
    "FEW_RATIOS": (Row(scaled, 2, 3, "dead-units", is_info),),
}
