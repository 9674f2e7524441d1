"""Synthetic runs: one as a training would leave it, one that holds nothing, one that means harm."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pullback.runs import Run, RunWriter, load_run

LAYERS = (
    "conv1.weight",
    "conv2.weight",
    "block.0.fc.weight",
    "block.1.fc.weight",
    "fc.weight",
    "head.weight",
)
SCRIPT = "<script>alert(1)</script>"
NASTY = (
    SCRIPT,
    "</script><img src=x onerror=alert(2)>",
    '<b>"bold"</b> & <a href="http://evil.example">x</a>',
)

META = {
    "pullback": "0.1.0",
    "model": {"class": "ConvNet", "num_params": 101770, "layers": list(LAYERS), "frozen": []},
    "loss": "CrossEntropyLoss",
    "optimizer": {"class": "SGD", "learning_rate": 0.05},
    "settings": {"every": 10, "max_samples": 256, "probes": "full"},
    "data": "digits, 1437 training samples",
}


def measured(
    t: float, noisy: Callable[..., float], random: np.random.Generator, num_samples: int
) -> dict[str, dict[str, Any]]:
    """What every probe says at a time of the training, in the order of the record."""
    loss = noisy(2.3 * math.exp(-3.2 * t) + 0.05)
    losses = {"loss": loss, "accuracy": 1 - 0.9 * math.exp(-4 * t), "batch_loss": noisy(loss, 0.2)}
    rms = noisy(4 * math.exp(-1.5 * t) + 0.4)
    gradients = {"mean_gradient_norm": noisy(rms * (0.6 * math.exp(-3 * t) + 0.08)), "rms_gradient_norm": rms}
    rank = noisy(6 + 60 * t)
    top = noisy(rms**2 * 0.4, 0.05)
    eigenvalues = [float(top / (k + 1) ** 1.4 * np.exp(0.05 * random.standard_normal())) for k in range(12)]
    m1 = rms**2 / 101770
    kernel = {
        "M1": m1,
        "M2": m1**2 * 101770 / rank,
        "conditioning": 101770 / rank,
        "effective_rank": rank,
        "eigenvalues": sorted(eigenvalues, reverse=True),
        "num_samples": num_samples,
        "num_params": 101770,
        "normalisation": "mean",
    }
    norms = [noisy(0.25 * 1.35**depth * (1 + 2 * math.exp(-2 * t)), 0.06) for depth in range(len(LAYERS))]
    share = np.array(norms) ** 2 / np.sum(np.array(norms) ** 2)
    flow = {
        "gradient_norm": dict(zip(LAYERS, norms, strict=True)),
        "frobenius": dict(zip(LAYERS, [f**2 for f in norms], strict=True)),
        "spectral": dict(zip(LAYERS, [0.7 * f**2 for f in norms], strict=True)),
        "trace_share": dict(zip(LAYERS, share.tolist(), strict=True)),
        "slope": -0.6,
        "verdict": "vanishing",
    }
    hessian = noisy(8 + 34 * (1 - math.exp(-4 * t)))
    sharpness = {
        "hessian": hessian,
        "hessian_residual": 1e-4,
        "gauss_newton": noisy(0.9 * hessian),
        "gauss_newton_residual": 1e-4,
        "learning_rate": 0.05,
        "limit": 40.0,
        "optimizer": "SGD",
    }
    alignment = {
        "mean_cosine": noisy(0.35 * math.exp(-2 * t) + 0.02),
        "conflict_fraction": noisy(0.12 + 0.3 * t),
        "worst_pairs": [[3, 200, -0.61], [17, 90, -0.55], [8, 41, -0.5]],
    }
    return {
        "loss": losses,
        "gradients": gradients,
        "kernel": kernel,
        "flow": flow,
        "sharpness": sharpness,
        "alignment": alignment,
        "cost": {"seconds": noisy(1e-4, 0.2)},
    }


def write_full_run(path: Path, seed: int = 0, num_steps: int = 60, num_samples: int = 256, stored: int = 4) -> Run:
    """A run with all probes: smooth curves with noise, ten classes, some findings, one failure."""
    random = np.random.default_rng(seed)
    speed = 1 + 0.4 * seed

    def noisy(value: float, size: float = 0.03) -> float:
        return float(value * np.exp(size * random.standard_normal()))

    with RunWriter(path, META) as writer:
        for place in range(num_steps):
            step, t = 10 * place, speed * place / 60
            records = measured(t, noisy, random, num_samples)
            for probe, values in records.items():
                writer.append(step, probe, values)
            if place % (num_steps // 6) == num_steps // 6 - 1:
                loss, accuracy = records["loss"]["loss"], records["loss"]["accuracy"]
                epoch = {
                    "epoch": place // (num_steps // 6),
                    "train_loss": noisy(loss),
                    "test_loss": noisy(loss + 0.1 * t),
                }
                writer.append(step, "epoch", epoch | {"test_accuracy": accuracy - 0.03})
        labels = np.sort(random.integers(0, 10, num_samples))
        for place in range(stored):
            step = 10 * round(place * (num_steps - 1) / max(stored - 1, 1))
            writer.write_array(step, "alignment", "cosine", cosines(random, labels, place / max(stored - 1, 1)))
            writer.write_array(step, "alignment", "labels", labels.astype(np.int64))
        for finding in FINDINGS:
            writer.append(590, "finding", finding)
        writer.append_error(0, "density", RuntimeError("no room for 3 vectors"))
    return load_run(path)


def cosines(random: np.random.Generator, labels: np.ndarray, progress: float) -> np.ndarray:
    """Cosines of gradients that share a direction early on, and their class's direction later."""
    centres = random.standard_normal((10, 30))
    common = random.standard_normal(30) * (1.6 * (1 - progress))
    gradients = common + (0.4 + progress) * centres[labels] + 0.9 * random.standard_normal((len(labels), 30))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients @ gradients.T).astype(np.float32)


FINDINGS = (
    {
        "name": "conflicting-gradients",
        "severity": "info",
        "layer": None,
        "steps": [400, 590],
        "evidence": {"conflict_fraction": 0.41},
        "threshold": "more than 0.4 of all pairs",
        "source": "Yu et al. 2020",
        "action": "Look at the pairs listed under Agreement: they may be mislabelled.",
    },
    {
        "name": "learning-rate-too-high",
        "severity": "critical",
        "layer": None,
        "steps": [300, 590],
        "evidence": {"sharpness": 41.7, "limit": 40.0},
        "threshold": "sharpness above 2/lr at three measurements in a row",
        "source": "Cohen et al. 2021",
        "action": "Lower the learning rate below 0.048.",
    },
    {
        "name": "vanishing-gradients",
        "severity": "warning",
        "layer": "conv1.weight",
        "steps": [0, 590],
        "evidence": {"slope": -0.6, "ratio": 0.22},
        "threshold": "slope below −0.5 a layer",
        "source": "Glorot & Bengio 2010",
        "action": "Raise the scale of the initial weights, or add skip connections.",
    },
)


def write_nasty_run(path: Path) -> Run:
    """Markup in every place that takes a text, and no usable number in many that take one."""
    model = {"class": NASTY[0], "num_params": 12, "layers": list(NASTY), "frozen": [NASTY[1]]}
    optimizer = {"class": "Adam" + NASTY[0], "learning_rate": 1e-3}
    settings = {NASTY[0]: NASTY[1], "odd": "\u2028\u2029\x00"}
    meta = {"pullback": NASTY[1], "model": model, "loss": NASTY[2], "optimizer": optimizer}
    with RunWriter(path, meta | {"settings": settings, "data": NASTY[0]}) as writer:
        losses = [2.0, math.nan, 0.0, math.inf, 1e9, -math.inf]
        for place, loss in enumerate(losses):
            writer.append(place, "loss", {"loss": loss, "accuracy": math.nan})
            writer.append(place, "gradients", {"mean_gradient_norm": 0.0, "rms_gradient_norm": loss})
            kernel = {
                "M1": loss,
                "M2": 0.0,
                "conditioning": "wide",
                "effective_rank": None,
                "eigenvalues": [loss, 0.0, -1e-9],
            }
            writer.append(place, "kernel", kernel)
            norms = dict(zip(NASTY, [loss, 0.0, 1.0], strict=True))
            flow = {"gradient_norm": norms, "trace_share": norms, "slope": math.nan, "verdict": NASTY[0]}
            writer.append(place, "flow", flow)
            writer.append(place, "sharpness", {"hessian": loss, "limit": math.nan, "optimizer": NASTY[0]})
            writer.append(place, "alignment", {"mean_cosine": math.nan, "worst_pairs": [[NASTY[0], 1, 2], "no pair"]})
        cosine = np.full((3, 3), np.nan, dtype=np.float32)
        writer.write_array(2, "alignment", "cosine", cosine)
        writer.append_error(3, NASTY[0], ValueError(NASTY[1]))
        finding = {"name": NASTY[0], "severity": NASTY[1], "layer": NASTY[2], "steps": [NASTY[0], 2]}
        texts = {
            "evidence": {NASTY[0]: NASTY[1]},
            "threshold": NASTY[0],
            "source": NASTY[1],
            "action": NASTY[2],
        }
        writer.append(5, "finding", finding | texts)
    return load_run(path)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_full_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_full_run(tmp_path_factory.mktemp("runs") / "small", seed=1, num_steps=8, num_samples=20, stored=2)


@pytest.fixture(scope="session")
def empty_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "empty"
    RunWriter(path, {}).close()
    return load_run(path)


@pytest.fixture(scope="session")
def nasty_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_nasty_run(tmp_path_factory.mktemp("runs") / "<i>nasty & 'mean'</i>".replace("/", "∕"))
