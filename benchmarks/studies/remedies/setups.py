"""A training as a value: everything a fault plants in or a remedy changes is a field; drawn by one seeded generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

SEED = 1412
TABLES = ("breast cancer", "wine", "iris", "teacher classes")
PICTURES = ("digits", "gratings")
TEXTS = ("prose", "code")
VALUES = ("diabetes", "teacher values")
DATA = {
    "MLP": (*TABLES, "digits"),
    "conv net": PICTURES,
    "residual conv net": PICTURES,
    "post-norm transformer": (*PICTURES, *TEXTS),
    "pre-norm transformer": (*PICTURES, *TEXTS),
    "RNN": (*PICTURES, *TEXTS),
    "GRU": (*PICTURES, *TEXTS),
    "autoencoder": ("digits", "gratings", "breast cancer", "wine"),
    "regression MLP": VALUES,
}
ALL_DATA = tuple(dict.fromkeys(name for names in DATA.values() for name in names))
RATES = 11  # half decades apart: five decades
LARGEST_RATE = {"SGD": 10.0, "momentum": 1.0, "Adam": 0.3, "AdamW": 0.3}
BESIDE = {"healthy": 11, "rate": 14}  # set-ups without a fault for one of each fault
TRANSFORMERS = ("post-norm transformer", "pre-norm transformer")
RECURRENT = ("RNN", "GRU")


@dataclass(frozen=True)
class Setup:
    """One training; the defaults are what is right."""

    kind: str
    data: str
    width: int
    depth: int
    activation: str
    normalisation: str  # "none", "layer" or "batch"
    residual: bool
    initialisation: str  # "default" "he" "xavier" "critical"; planted: "small" "large" "dead"
    optimizer: str
    batch_size: int
    steps: int
    split: int  # seed of what is kept for validation and for the test
    rate: float = 0.0
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float | None = None
    ends: float = 1.0  # share of the steps after which the schedule is at zero; 1: none
    zero_grad: bool = True
    untrained: str = ""  # "forgotten": matrices no optimizer holds; "frozen": all but the last layer
    trained: tuple[str, ...] = ()  # parameters trained nevertheless
    probabilities: bool = False  # softmax before the cross-entropy
    reduction: str = "mean"
    early_stopping: bool = False
    logs: bool = False  # the loop logs the validation loss and accuracy
    inputs: str = "standard"  # or "raw": the units of the source
    targets: str = "standard"
    samples: int | None = None  # of the training, at most
    wrong_labels: float = 0.0  # share of the training samples, as the next three
    not_finite: float = 0.0
    outliers: float = 0.0
    copies: float = 0.0
    majority: float = 0.0  # share of the largest class; 0: as it is
    shuffled: bool = True
    adjusted: bool = False  # the loss is of scores to which the logarithm of each class's frequency is added
    checked: bool = False  # the samples were checked: wrong ones are put right, or left out


@dataclass(frozen=True)
class Drawn:
    """What the generator says of a number: a healthy training, what is planted in it, and where its rate lies."""

    number: int
    setup: Setup  # without a rate
    planted: str  # "healthy", "rate" or the name of a fault
    place: float  # from 0 to 1: of the rate among all (planted "rate"), or among those that are good


def rates(optimizer: str) -> list[float]:
    """Five decades, ascending."""
    return [LARGEST_RATE[optimizer] * 10 ** (-k / 2) for k in reversed(range(RATES))]


def draw(number: int, faults: dict[str, Any]) -> Drawn:
    """The set-up of a number; no other number's depends on it.

    What is planted comes as from a deck of cards, so that the first set-ups hold each fault as often as the others.

    Args:
        number: from 0.
        faults: name -> fault.
    """
    deck, place = divmod(number, len(faults) + sum(BESIDE.values()))
    cards = [*faults, *(name for name, count in BESIDE.items() for _ in range(count))]
    planted = cards[np.random.default_rng([SEED, deck]).permutation(len(cards))[place]]
    generator = np.random.default_rng([SEED, deck, place])
    turn = number  # each kind of network in turn, but those that have no place for the fault
    setup = _setup(generator, tuple(DATA)[turn % len(DATA)], number)
    while planted in faults and not faults[planted].fits(setup):
        turn += 1
        setup = _setup(generator, tuple(DATA)[turn % len(DATA)], number)
    return Drawn(number, setup, planted, float(generator.random()))


def _setup(generator: np.random.Generator, kind: str, split: int) -> Setup:
    one = partial(_one, generator)
    data = one(DATA[kind])
    sequence, conv = kind in (*TRANSFORMERS, *RECURRENT), "conv" in kind
    if kind in RECURRENT:
        depth, activations = 1, ("tanh",)
    else:
        depth = one((1, 2) if sequence else (2, 3) if conv else (1, 2, 3, 4))
        activations = ("relu", "gelu") if sequence else ("relu", "tanh", "gelu", "silu")
    return Setup(
        kind=kind,
        data=data,
        width=one((24, 32, 48) if sequence else (8, 12, 16) if conv else (24, 48, 96)),
        depth=depth,
        activation=one(activations),
        normalisation=_normalisation(kind, one(("none", "none", "layer", "batch"))),
        residual=kind in (*TRANSFORMERS, "residual conv net"),
        initialisation=one(("default", "xavier") if sequence else ("default", "he", "xavier")),
        optimizer=one(("Adam", "AdamW") if kind in TRANSFORMERS else tuple(LARGEST_RATE)),
        batch_size=one((16, 32)) if data in ("wine", "iris") or sequence else one((16, 32, 64, 128)),
        steps=160 if sequence or conv else 300,
        split=split,
        weight_decay=one((0.0, 0.0, 1e-4)),
        logs=bool(generator.random() < 0.5),
    )


def tiny() -> list[Drawn]:
    """Set-ups of a second or two that show that the program works: a sound one, two rates, and faults."""
    iris = Setup("MLP", "iris", 16, 1, "tanh", "none", False, "default", "Adam", 16, 60, 0)
    teacher = Setup("regression MLP", "teacher values", 16, 1, "tanh", "none", False, "default", "SGD", 32, 80, 0)
    return [
        Drawn(0, iris, "healthy", 0.5),
        Drawn(1, iris, "rate", 0.0),
        Drawn(2, teacher, "rate", 0.99),
        Drawn(3, iris, "matrices no optimizer holds", 0.5),
        Drawn(4, replace(teacher, steps=60), "raw targets", 0.5),
    ]


def _one(generator: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(generator.integers(len(options)))]


def task(setup: Setup) -> str:
    """What is asked: "classes", "values", "tokens" (the next one at each position) or "inputs" (of an autoencoder)."""
    if setup.kind == "autoencoder":
        return "inputs"
    return "tokens" if setup.data in TEXTS else "values" if setup.data in VALUES else "classes"


def described(setup: Setup) -> dict[str, Any]:
    """The fields that are not at their defaults, as JSON."""
    defaults = Setup.__dataclass_fields__
    return {name: value for name, value in asdict(setup).items() if value != defaults[name].default}


def _normalisation(kind: str, drawn: str) -> str:
    if kind in TRANSFORMERS:
        return "layer"
    if kind in RECURRENT:
        return "none"
    return "batch" if kind == "residual conv net" else drawn
