"""Every threshold of the advisor has a row just inside and one just outside, in numbers that are written out."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pullback as pb
from pullback.advisor import thresholds
from pullback.runs import Run
from tests.advisor.growth_rows import GROWTH
from tests.advisor.runs import Line, Row, a_run, losses
from tests.advisor.threshold_rows import FURTHER

FLAT = losses(2.0, 2.0, 2.0, 2.0, 2.0)
DEAD_UNITS: Line = (0, "activations", {"dead": {"a": 0.9}})
SGD = {"optimizer": "SGD", "learning_rate": 0.1, "limit": 20.0, "smallest_residual": 0.0}


def verdicts(several: tuple[int, int]) -> list[Line]:
    """So many measurements that show vanishing gradients, of so many."""
    bad, whole = several
    return [(k, "flow", {"verdict": "vanishing" if k < bad else "steady", "slope": -2.0}) for k in range(whole)]


def is_info(finding: pb.Finding) -> bool:
    return finding.severity == "info"


def is_warning(finding: pb.Finding) -> bool:
    return finding.severity == "warning"


def curvature(value: float, steps: int = 2, **more: float) -> list[Line]:
    return [(40 * k, "sharpness", SGD | {"hessian": value} | more) for k in range(steps)]


def with_accuracy(share: float) -> list[Line]:
    return [DEAD_UNITS, *[(k, "loss", {"loss": 2.0, "accuracy": share}) for k in range(4)]]


def leaving(norm: float) -> list[Line]:
    """Exploding gradients, of which the second layer is beyond or not."""
    norms = {"a": 500.0, "b": norm, "c": 1.0}
    return [(0, "flow", {"verdict": "exploding", "slope": 3.0, "gradient_norm": norms})]


def tokens(start: float, *residuals: float, entropy: float = 0.9) -> list[Line]:
    """Residuals before and behind layers of a transformer."""
    behind = {f"block.{place}": residual for place, residual in enumerate(residuals)}
    rows = {"relative_residual": behind, "entropy": dict.fromkeys(behind, entropy), "start": start}
    return [(1, "attention", rows)]


def is_residual(finding: pb.Finding) -> bool:
    return finding.change == pb.advisor.Change("residual")


def starts_from(weights: str) -> Callable[[pb.Finding], bool]:
    return lambda finding: finding.change == pb.advisor.Change("initialisation", weights)


def noise(*ratios: float, batch: int, stderr: float = 0.0) -> list[Line]:
    return [
        (k, "noise", {"signal_to_noise": each, "signal_to_noise_stderr": stderr, "batch_size": batch})
        for k, each in enumerate(ratios)
    ]


def scale_is(expected: float) -> Callable[[pb.Finding], bool]:
    return lambda finding: finding.evidence["noise scale"] == pytest.approx(expected, rel=1e-9)


def plateau(*values: float) -> list[Line]:
    return [*losses(*values), (500, "sharpness", SGD | {"hessian": 10.0, "smallest": 0.0})]


def saddle(smallest: float) -> list[Line]:
    return [*losses(*[2.0] * 8), (500, "sharpness", SGD | {"hessian": 10.0, "smallest": smallest})]


def inputs(largest: float, offset: float, ratio: float = 1.0) -> list[Line]:
    return [(0, "inputs", {"largest_abs": largest, "largest_mean_over_std": offset, "std_ratio": ratio})]


def weights(square: float) -> list[Line]:
    values = {"invariant": {"a": True}, "weight_decay": 0.0}
    return [(k, "effective_lr", values | {"norm": {"a": norm}}) for k, norm in enumerate((1.0, math.sqrt(square)))]


def held_out(train: float, test: float) -> list[Line]:
    return [(0, "loss", {"loss": 0.1, "accuracy": train}), (0, "test", {"accuracy": test})]


def rising(last: float) -> list[Line]:
    return [*losses(2.0, 1.0), *[(k, "test", {"loss": loss}) for k, loss in enumerate((0.5, 0.4, last))]]


def constant(loss: float = 2.0, **more: Any) -> Line:
    """What one answer for all reaches, at the start, where nothing is known of the loop's own loss."""
    return 0, "loss", {"constant_loss": loss, **more}


def learning(level: float, count: int = 4, of_loop: float = 1.0) -> Run:
    """Dead units, and a course that ends at this level; measured losses times a factor are those of the loop."""
    ratio = [(k, "loss", {"loss": 1.0, "batch_loss": of_loop, "constant_loss": 2.0}) for k in range(4)]
    return a_run(DEAD_UNITS, *(ratio if of_loop != 1.0 else [constant()]), loss=[2.0] * (count - 1) + [level])


def level(value: float, steps: int = 40) -> Run:
    return a_run(constant(), loss=[2.0] * (steps // 2) + [value] * (steps - steps // 2))


def measured_until(step: int) -> Run:
    return a_run((step, "kernel", {"num_samples": 5}), loss=[1.0 - k / 200 for k in range(100)])


def moved(ratio: float, loss: float = 2.0) -> list[Line]:
    return [*losses(*[loss] * 5), (2, "updates", {"median": ratio})]


def moved_and_learns(ratio: float) -> Run:
    """A run that learns, with half of one answer's loss left."""
    return a_run(constant(2.0), *steps_of(ratio, 0.01, 0.01), loss=[2.0] * 25 + [1.0] * 5)


def moves_on(ratio: float) -> Run:
    """One that learns as well, whose steps are as long in two of three measurements."""
    return a_run(constant(2.0), *steps_of(0.01, ratio, ratio), loss=[2.0] * 25 + [1.0] * 5)


def replaced(ratio: float) -> Run:
    """One that learns nothing, whose first step alone is long: what it killed has no gradient."""
    updates = [(step, "updates", {"median": size}) for step, size in ((1, ratio), (2, 0.0), (40, 0.0))]
    return a_run(constant(2.0), *updates, loss=[2.0] * 40)


def begun(share: float) -> Run:
    """One whose steps are short, and whose loss falls late by little, to this share of one answer's."""
    course = [2.4] * 20 + [1.7] * 20 + [1.65] * 20 + [2 * share] * 20
    return a_run(constant(2.0), *steps_of(0.02, 0.02, 0.02), loss=course)


def steps_of(*ratios: float) -> list[Line]:
    return [(2**k, "updates", {"median": ratio}) for k, ratio in enumerate(ratios, start=1)]


def copied(count: int) -> list[Line]:
    """A batch of 100 of which so many are copies of one."""
    values = {"copies": [count + 1], "copied": list(range(1, 1 + min(20, count))), "num_samples": 100}
    return [(1, "inputs", values)]


def cleaner(held_out: float) -> Run:
    """Two samples with suspect labels, and a held-out loss that is this share of the training's."""
    suspects = {"num_samples": 100, "suspects": [[3, 5.0, "label"], [7, 4.0, "label"]]}
    return a_run(constant(2.0), (40, "samples", suspects), (40, "test", {"loss": held_out}), loss=[1.0] * 40)


def by_heart(left: float = 0.01, fall: float = 0.0, looks: int = 8) -> Run:
    """A model that has all measured samples right and half of the held-out ones, after a fall, of so many looks."""
    test = [(k, "test", {"accuracy": 0.5 + (fall if k < looks // 2 else 0.0)}) for k in range(looks)]
    return a_run((0, "loss", {"loss": 0.1, "accuracy": 1.0, "constant_loss": 2.0}), *test, loss=[2.0 * left] * 40)


def slow(way: float) -> Run:
    """Flat curvature, and weights that went this far in 100 steps."""
    flat = [(step, "sharpness", SGD | {"hessian": 0.5}) for step in (1, 100)]
    return a_run(*flat, (100, "updates", {"median": way / 100}), loss=[2.0] * 100)


def layers_moving(ratio: float) -> list[Line]:
    return [(k, "updates", {"ratio": {"a": 0.0, "b": ratio}}) for k in (1, 2)]


def zeroed(growth: float) -> Run:
    """A gradient that the optimizer sees growing by this, beside samples whose gradients stay."""
    norms = [1.0] + [growth] * 63
    measured = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in (1, 20, 40, 60)]
    return a_run(*measured, gradient_norm=norms)


def falling(times: float) -> Run:
    """One that outgrew the samples', and once falls by this factor from one step to the next."""
    measured = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in (1, 20, 40, 60)]
    return a_run(*measured, gradient_norm=[1.0] + [8.0] * 40 + [8.0 * times] + [8.0] * 22)


def adding(share: float, beyond: float = 0.9) -> Run:
    norms = [0.1 + 0.1 * share * k for k in range(8)] + [beyond] * 2
    measured = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in (1, 2, 4, 8, 16)]
    return a_run(*measured, gradient_norm=norms)


def crawling(way: float) -> Run:
    updates = [(step, "updates", {"median": way / 100}) for step in (2, 50, 100)]
    return a_run(*updates, loss=[2.0] * 100)


def decay(share: float = 0.0, cosine: float = 0.0, norm: float = 1.0, left: float = 2.0) -> Run:
    """Weight decay of 0.1 at a rate of 1, by which a step of length 0.1 / share is measured."""
    length = 0.1 / share if share else 1e9
    steps = [(k, "updates", {"shrink": cosine, "norm": size, "median": length}) for k, size in ((1, 1.0), (9, norm))]
    optimizer = {"class": "AdamW", "learning_rate": 1.0, "weight_decay": 0.1}
    return a_run(constant(), *steps, meta={"optimizer": optimizer}, loss=[2.0] * 5 + [left] * 5)


def schedule(rate: float, gone: int) -> Run:
    return a_run(learning_rate=[1.0] * (100 - gone) + [rate] * gone, loss=[2.0] * 100)


def targets(std: float = 1.0, mean: float = 0.0) -> list[Line]:
    return [(0, "targets", {"std": std, "largest_mean": mean})]


def counted(ratio: float) -> list[Line]:
    return [*losses(1.0, 0.1), (0, "targets", {"counts": {"a": 1000 * ratio, "b": 1000.0}})]


def sorted_by(share: float) -> list[Line]:
    """Batches of which this share (Cramér's V squared) of two classes' spread lies between them, of many samples."""
    part = math.sqrt(share)
    half = 1_000_000.0
    return [
        (k, "targets", {"counts": {"a": half * (1 + sign * part), "b": half * (1 - sign * part)}})
        for k, sign in enumerate((1, -1) * 5)
    ]


def left(share: float) -> Run:
    """Raw targets in a run that works, of whose loss this share of one answer's is left."""
    return a_run(constant(2.0), *targets(std=77.0), loss=[2.0] * 5 + [2.0 * share] * 5)


def one_sample(batch: int) -> Run:
    return a_run(constant(2.0), *noise(1 / 7, batch=batch), loss=[2.0] * 5 + [1.0] * 5)


def wild(first: float) -> Run:
    return a_run(constant(2.0), loss=[first] + [2.0] * 9)


def wild_scores(answer: float, nats: float) -> Run:
    """A first cross-entropy so many nats above that of one answer for all."""
    known = {"loss": answer, "constant_loss": answer, "form": "cross-entropy"}
    return a_run((1, "loss", known), loss=[answer + nats] + [answer] * 9)


def copies(sizes: tuple[int, ...], samples: int) -> list[Line]:
    """A batch that holds some samples several times."""
    suspects = [[k, 1.0, "duplicate"] for k in range(sum(sizes) - len(sizes))]
    seen = {"num_samples": samples, "suspects": suspects[:20], "num_suspects": {"duplicate": len(suspects)}}
    return [(0, "samples", seen | {"copies": list(sizes)})]


def far(times: float, count: int = 1) -> list[Line]:
    values = {"largest_abs": 1.0, "far_samples": [[3, times]] * count, "num_far": count}
    return [(0, "inputs", values), (0, "targets", {"num_samples": 100})]


def spiking(height: float, times: int = 2, noise: float = 0.0) -> Run:
    """From 2 at once down to a level of 1, from which the loss leaps for four steps at a time."""
    course = [2.0] * 3 + [1.0 + noise * (0, 1, -1)[k // 4 % 3] for k in range(60 * times + 60)]
    for time in range(times):
        course[60 * (time + 1) : 60 * (time + 1) + 4] = [1.0 + height] * 4
    return a_run(constant(2.0), loss=course)


def swinging(share: float, steps: int = 80) -> Run:
    """A second half that goes up and down in turn, beside a slow wave, whose share of the square is the rest."""
    turns = [math.sqrt(2 * share) * (-1) ** k / math.sqrt(2) for k in range(steps)]
    steady = [math.sqrt(2 * (1 - share)) * math.sin(math.pi * k / 2 + 0.5) for k in range(steps)]
    return a_run(loss=[10.0 + a + b for a, b in zip(turns, steady, strict=True)])


LR_LOW, LR_HIGH = "learning-rate-too-low", "learning-rate-too-high"
ROWS: dict[str, tuple[Row, ...]] = {
    "SHARE_OF_MEASUREMENTS": (Row(verdicts, (5, 10), (4, 9), "vanishing-gradients"),),
    "LEARNS_LOSS": (
        Row(lambda v: [DEAD_UNITS, *losses(1.0, v)], 0.799, 0.801, "dead-units", is_info),
        Row(lambda v: [*losses(1.0, 1.0, 1.0, 1.0, v), *curvature(0.5)], 1.249, 1.251, LR_LOW),
    ),
    "LEARNS_CHANGES": (
        Row(lambda v: [DEAD_UNITS, *losses(v, 1.0, 0.0, 1.0, 0.0)], 3.01, 2.99, "dead-units", is_info, None),
        Row(lambda v: [*losses(0.0, 1.0, 0.0, 1.0, v), *curvature(0.5)], 2.99, 3.01, LR_LOW, least=None),
    ),
    "LEARNS_SHARE": (Row(learning, 1.79, 1.81, "dead-units", is_info),),
    "MISTAKE_LEFT": (Row(left, 0.101, 0.099, "targets-not-normalised", is_warning),),
    "RATE_GONE_MOST": (
        Row(lambda v: [*losses(1.0, 0.1)] and a_run(*losses(1.0, 0.1), learning_rate=[1.0] * (100 - v) + [0.0] * v),
            50, 49, "schedule-at-zero", is_warning),
    ),
    "WILD_START": (Row(wild, 16.01, 15.99, "chaotic-initialisation"),),
    "WILD_NATS": (Row(lambda v: wild_scores(2.5, v), 5.01, 4.99, "chaotic-initialisation"),),
    "WILD_TIMES": (Row(lambda v: wild_scores(6.0, 6.0 * (v - 1)), 2.01, 1.99, "chaotic-initialisation"),),
    "ONE_OR_TWO": (Row(one_sample, 2, 3, "batch-too-small"),),
    "MANY_COPIES": (Row(lambda v: copies((2,) * v, 100), 21, 20, "duplicates"),),
    # of 1000 samples 200 pairs are draws from 2498, which hold 26.6 threes; 4 standard errors and one more are 48.3
    "CLUMPED": (Row(lambda v: copies((3,) * v + (2,) * (200 - 3 * v), 1000), 49, 48, "duplicates"),),
    "FAR_OUT": (Row(far, 20.01, 19.99, "outlying-samples"),),
    "FAR_SHARE": (Row(lambda v: far(50.0, v), 20, 21, "outlying-samples"),),
    "SPIKE_SHARE": (Row(spiking, 0.301, 0.299, "loss-spikes"),),
    "SPIKE_NOISE": (Row(lambda v: spiking(0.5, noise=v), 0.027, 0.029, "loss-spikes"),),
    "MANY_SPIKES": (Row(lambda v: spiking(0.5, v), 2, 1, "loss-spikes"),),
    "SWINGS": (Row(swinging, 0.54, 0.52, "loss-oscillates"),),
    "MANY_SWINGS": (Row(lambda v: swinging(0.9, v), 80, 78, "loss-oscillates"),),
    "FEW_STEPS": (Row(lambda v: learning(1.7, v), 4, 3, "dead-units", is_info),),
    "COMPARABLE": (Row(lambda v: learning(1.7, 4, v), 1.49, 1.51, "dead-units", is_info),),
    "LEARNT_NOTHING": (Row(level, 1.941, 1.939, "not-learning"),),
    "MANY_STEPS": (Row(lambda v: level(2.0, v), 30, 29, "not-learning"),),
    "UNSEEN_STEPS": (Row(measured_until, 49, 51, "not-measured"),),
    "HARDLY_BEGUN": (Row(begun, 0.8001, 0.7999, "learning-rate-too-low"),),
    "LARGE_UPDATE": (Row(moved, 0.1001, 0.0999, LR_HIGH), Row(moves_on, 0.1001, 0.0999, LR_HIGH)),
    "GOOD_UPDATE": (
        Row(
            moved, 0.2, 0.21, LR_HIGH,
            lambda finding: finding.change is not None and abs(finding.change.value - 0.05) < 1e-9,
        ),
    ),
    "HALF_TRAVELLED": (Row(slow, 0.499, 0.501, LR_LOW),),
    "MOVES": (Row(layers_moving, 1.01e-6, 0.99e-6, "parameters-not-trained"),),
    "NOT_ZEROED": (Row(zeroed, 5.01, 4.99, "gradients-not-zeroed"),),
    "ZEROED": (Row(falling, 1.99, 2.01, "gradients-not-zeroed"),),
    "ADDS_UP": (Row(adding, 0.351, 0.349, "gradients-not-zeroed"),),
    "ADDS_UP_BEYOND": (Row(lambda v: adding(v, beyond=1.1), 0.251, 0.249, "gradients-not-zeroed"),),
    "REPLACES": (Row(replaced, 10.01, 9.99, LR_HIGH, is_warning),),
    "WILD_UPDATE": (Row(moved_and_learns, 0.301, 0.299, LR_HIGH, is_warning),),
    "MODEST_UPDATE": (
        Row(
            moved_and_learns, 0.5, 0.51, LR_HIGH,
            lambda finding: finding.change is not None and abs(finding.change.value - 0.1) < 1e-9,
        ),
    ),
    "MOSTLY_COPIES": (Row(copied, 31, 30, "duplicates", is_warning),),
    "BATCH_NORM_SAMPLES": (
        Row(
            lambda v: [(1, "batch_norm", {"smallest_count": {"a": 400}, "batch_size": v})],
            4, 5, "batch-norm-batch-too-small",
        ),
    ),
    "HELD_OUT_BETTER": (Row(cleaner, 0.699, 0.701, "suspect-samples", is_warning),),
    "BY_HEART_LOSS": (Row(lambda v: by_heart(left=v), 0.0999, 0.1001, "memorisation"),),
    "ACCURACY_FALL": (Row(lambda v: by_heart(fall=v), 0.0501, 0.0499, "memorisation", is_warning),),
    # a fall of nothing: of a few looks the gap alone is a warning, of more it is not
    "MANY_LOOKS": (Row(lambda v: by_heart(looks=v), 5, 6, "memorisation", is_warning),),
    "LITTLE_WAY": (Row(crawling, 0.0999, 0.1001, LR_LOW),),
    "DECAY_SHARE": (Row(lambda v: decay(share=v), 0.501, 0.499, "weight-decay-too-high"),),
    "DECAY_COSINE": (Row(lambda v: decay(cosine=v, norm=0.1), 0.501, 0.499, "weight-decay-too-high"),),
    "DECAY_NORM": (Row(lambda v: decay(cosine=0.9, norm=v), 0.499, 0.501, "weight-decay-too-high"),),
    "DECAY_HARMS": (Row(lambda v: decay(share=0.9, left=v), 0.601, 0.599, "weight-decay-too-high", is_warning),),
    "RATE_GONE": (Row(lambda v: schedule(v, 50), 0.99e-3, 1.01e-3, "schedule-at-zero"),),
    "RATE_GONE_SHARE": (Row(lambda v: schedule(0.0, v), 20, 19, "schedule-at-zero"),),
    "TARGET_SCALE": (
        Row(lambda v: targets(std=v), 10.01, 9.99, "targets-not-normalised"),
        Row(lambda v: targets(mean=v), -10.01, -9.99, "targets-not-normalised"),
    ),
    "IMBALANCED": (Row(counted, 20.1, 19.9, "class-imbalance"),),
    "IMBALANCED_ALWAYS": (Row(counted, 30.1, 29.9, "class-imbalance", is_warning),),
    "IN_ORDER": (Row(sorted_by, 0.201, 0.199, "data-not-shuffled"),),
    "OUTLIER": (
        Row(
            lambda v: [(0, "samples", {"num_samples": 50, "suspects": [[3, v, "outlier"]]})],
            7.01, 6.99, "suspect-samples",
        ),
    ),
    "LEARNS_ACCURACY": (Row(with_accuracy, 0.801, 0.799, "dead-units", is_info),),
    "DIVERGING": (Row(lambda v: losses(1.0, v), 2.001, 1.999, "divergence"),),
    "DIVERGING_CHANGES": (Row(lambda v: losses(0.0, 1.0, 0.0, 1.0, v), 5.01, 4.99, "divergence", least=None),),
    "STABLE_SHARE": (Row(lambda v: [*FLAT, *curvature(v)], 0.999, 1.001, LR_LOW),),
    "SMALL_UPDATE": (Row(lambda v: [*FLAT, (0, "updates", {"median": v})], 0.99e-5, 1.01e-5, LR_LOW),),
    "MANY_SHARPNESS": (Row(lambda v: [*FLAT, *curvature(0.5, v)], 2, 1, LR_LOW),),
    "MANY_LOSSES": (
        Row(lambda v: [*FLAT[:v], *curvature(0.5)], 5, 4, LR_LOW),
        # of fewer each must lie below the one before; here one does not
        Row(lambda v: [DEAD_UNITS, *losses(9.0, 1.0, 1.0, 1.0, 1.0)[:v]], 5, 4, "dead-units", is_info, None),
    ),
    "LEAVES": (Row(leaving, 10.01, 9.99, "exploding-gradients", lambda finding: finding.layer == "b"),),
    "CHI_PRODUCT": (
        Row(lambda v: [(0, "initialisation", {"chi": {"a": v, "b": 1.0}})], 100.1, 99.9, "chaotic-initialisation"),
        Row(lambda v: [(0, "initialisation", {"chi": {"a": 1 / v}})], 100.1, 99.9, "ordered-initialisation"),
    ),
    "UNBALANCED": (Row(lambda v: [(0, "flow", {"balance": v})], 10_001.0, 9_999.0, "unbalanced-layers"),),
    "SATURATED": (
        Row(
            lambda v: [(0, "activations", {"saturated": {"a": v}, "kind": {"a": "tanh"}})],
            0.501, 0.499, "saturated-units",
        ),
    ),
    "DEAD": (Row(lambda v: [(0, "activations", {"dead": {"a": v}})], 0.501, 0.499, "dead-units"),),
    "COLLAPSED": (
        Row(lambda v: [(0, "activations", {"effective_rank": {"a": v}})], 1.0499, 1.0501, "rank-collapse"),
    ),
    "ENOUGH_UNITS": (
        Row(
            lambda v: [(0, "activations", {"effective_rank": {"a": 1.0}, "width": {"a": v}})], 8, 7, "rank-collapse",
        ),
    ),
    "ONE_TOKEN": (
        Row(lambda v: tokens(0.9, v), 0.099, 0.101, "rank-collapse"),
        Row(lambda v: tokens(v, 0.05), 0.101, 0.099, "rank-collapse"),  # they were one before
    ),
    "ONE_KEY": (
        Row(lambda v: tokens(0.9, 0.9, entropy=v), 0.099, 0.101, "rank-collapse"),
        Row(lambda v: tokens(0.9, 0.05, entropy=v), 0.099, 0.101, "rank-collapse", starts_from("xavier")),
    ),
    "COLLAPSES_AT_ONCE": (
        Row(lambda v: tokens(0.9, 0.2, v), 0.0499, 0.0501, "rank-collapse", is_residual),
        Row(lambda v: tokens(0.9, 0.2, v), 0.0501, 0.0499, "rank-collapse", starts_from("critical")),
    ),
    "ILL_CONDITIONED": (
        Row(lambda v: [(0, "kernel", {"effective_rank": v, "num_samples": 256})], 3.99, 4.01, "ill-conditioning"),
    ),
    "ALIGNED": (
        Row(
            lambda v: [
                (0, "kernel", {"effective_rank": 1.5, "num_samples": 256}), (0, "alignment", {"mean_cosine": v})
            ],
            0.301, 0.299, "ill-conditioning", lambda finding: "gradients are aligned" in finding.action,
        ),
    ),
    "CONFLICT": (
        Row(
            lambda v: [(0, "alignment", {"mean_cosine": v, "conflict_fraction": 0.5})],
            -0.0501, -0.0499, "conflicting-gradients",
        ),
    ),
    "CLASS_CONFLICT": (
        Row(
            lambda v: [
                (0, "alignment", {"mean_cosine": 0.0, "conflict_fraction": 0.5}),
                (0, "classes", {"within": 0.9, "between": v}),
            ],
            -0.501, -0.499, "conflicting-gradients",
        ),
    ),
    "SUSPECT_SHARE": (
        Row(
            lambda v: [(0, "samples", {"num_samples": 1000, "suspects": [[k, 5.0, "label"] for k in range(v)]})],
            43, 42, "suspect-samples", is_warning,  # 43 or more of 1000 in 1.4 of 100, 42 or more in 2.04
        ),
    ),
    "BATCH_TOO_SMALL": (Row(lambda v: noise(1 / 1000, batch=v), 99, 101, "batch-too-small"),),
    "BATCH_TOO_LARGE": (Row(lambda v: noise(1 / 10, batch=v), 101, 99, "batch-too-large"),),
    # a share of 1 / 1000 and two errors of it stay below 1 / 81, where a batch of 8 is a tenth of the scale, 80
    "STDERRS": (
        Row(
            lambda v: noise(1 / 999, batch=8, stderr=v * (1000 / 999) ** 2),
            0.99 * (1 / 81 - 1 / 1000) / 2, 1.01 * (1 / 81 - 1 / 1000) / 2, "batch-too-small",
        ),
    ),
    # of a hundred measurements one is noise: its share is r / (1 + r), at least -1
    "LEAST_SIGNAL": (
        Row(
            lambda v: noise(v, *[1.0] * 99, batch=512), -0.6, -0.49, "batch-too-large",
            scale_is(1 / ((99 * 0.5 - 1) / 100) - 1),
        ),
        Row(
            lambda v: noise(v, *[1.0] * 99, batch=512), -0.49, -0.51, "batch-too-large",
            scale_is(1 / ((99 * 0.5 - 0.49 / 0.51) / 100) - 1),
        ),
    ),
    "BATCH_NORM_COUNT": (
        Row(lambda v: [(0, "batch_norm", {"smallest_count": {"a": v}})], 15, 16, "batch-norm-batch-too-small"),
    ),
    "PLATEAU": (
        Row(lambda v: plateau(3.0, 2.0, 1.0, 1.0, 1.0, 1.0, v, v), 0.9901, 0.9899, "minimum-plateau"),
        # of unknown zero: of the fall so far, 10
        Row(
            lambda v: plateau(10.0, 5.0, 1.0, 0.0, 0.0, 0.0, v, v), -0.1009, -0.1012, "minimum-plateau", least=None,
        ),
    ),
    # halves that zigzag by 1 around levels that differ by v; what the loss fell by is no matter
    "PLATEAU_CHANGES": (
        Row(
            lambda v: plateau(0.0, 0.0, 0.0, 0.0, 0.0, 1.0, v, v + 1), 1.49, 1.51, "minimum-plateau", least=None,
        ),
    ),
    "PLATEAU_LOSSES": (Row(lambda v: plateau(*[2.0] * v), 8, 7, "minimum-plateau"),),
    "NEGATIVE": (Row(saddle, -0.1001, -0.0999, "saddle-plateau"), Row(saddle, -0.0999, -0.1001, "minimum-plateau")),
    "MEAN_OVER_STD": (Row(lambda v: inputs(53.0, v), 10.01, 9.99, "inputs-not-normalised"),),
    "OFFSET_INPUT": (Row(lambda v: inputs(v, 50.0), 10.01, 9.99, "inputs-not-normalised"),),
    "STD_RATIO": (Row(lambda v: inputs(1.0, 1.0, v), 1001.0, 999.0, "inputs-not-normalised"),),
    "LARGEST_INPUT": (Row(lambda v: inputs(v, 1.0), 100.1, 99.9, "inputs-not-normalised"),),
    "RATE_DECAY": (Row(weights, 2.001, 1.999, "effective-rate-decay"),),
    "LAZY_DRIFT": (
        Row(
            lambda v: [*losses(2.0, 1.0), *[(k, "tangent", {"drift": each}) for k, each in enumerate((0.0, v))]],
            0.0999, 0.1001, "lazy-regime",
        ),
    ),
    "GENERALISATION_GAP": (Row(lambda v: held_out(1.0, v), 0.799, 0.801, "memorisation"),),
    "KNOWN_BY_HEART": (Row(lambda v: held_out(v, 0.5), 0.9501, 0.9499, "memorisation"),),
    "TEST_LOSS_RISE": (Row(rising, 0.6001, 0.5999, "memorisation"),),
    "TEST_LOSS_SHARE": (Row(rising, 0.6001, 0.5999, "memorisation", least=None),),
    **FURTHER,
    **GROWTH,
}  # fmt: skip


@pytest.mark.parametrize("threshold", ROWS)
def test_the_two_sides_of_every_threshold(threshold: str) -> None:
    for row in ROWS[threshold]:
        assert row.says(row.yes), row.yes
        assert not row.says(row.no), row.no


def test_every_threshold_has_its_rows() -> None:
    assert set(ROWS) == {name for name in vars(thresholds) if name.isupper()}


def test_no_file_of_rules_has_a_threshold_of_its_own() -> None:
    """But for how much is listed or said, and over how many steps a course is smoothed."""
    others = {
        "NUM_LISTED",
        "NUM_NAMED",
        "MOST_NAMED",
        "WINDOW",
        "AROUND",
        "SMOOTH",
        "LONGEST",
        "MOST_CAUSES",
    }
    for path in Path(pb.advisor.__file__).parent.rglob("*.py"):
        if path.name != "thresholds.py":
            numbers = re.findall(r"^([A-Z_]+(?:, [A-Z_]+)*) = -?[0-9]", path.read_text(), re.MULTILINE)
            assert set(numbers) <= others, path


@pytest.mark.parametrize("threshold", ROWS)
def test_a_threshold_that_is_moved_is_noticed(threshold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fifth, or by one where it counts, up and down, in every file that reads it."""
    value = getattr(thresholds, threshold)
    moved = (value + 1, value - 1) if isinstance(value, int) else (1.2 * value, 0.8 * value)
    readers = [m for name, m in sys.modules.items() if name.startswith("pullback.advisor") and hasattr(m, threshold)]
    for other in moved:
        with monkeypatch.context() as patch:
            for module in readers:
                patch.setattr(module, threshold, other)
            assert any(not row.says(row.yes) or row.says(row.no) for row in ROWS[threshold]), other
