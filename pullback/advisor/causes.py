"""What follows from what: the order of findings, a cause first and what follows from it beneath.

``FOLLOWS`` says by which mechanism a finding can follow from another. Whether it does is a matter of time: what was
seen at first cannot follow from what came later. Properties of the data, the loop and the starting weights hold from
the start, whenever a measurement shows them. A finding without a cause among the others is one itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pullback.advisor.findings import SEVERITIES, Finding
from pullback.advisor.thresholds import FIRST_MEASUREMENT, TAKES_ALL

OF_WEIGHTS = "share of the weights that decay takes a step"  # evidence of decay that the settings alone tell

# By mechanism, the nearest to the loop and the data first: of two causes of equal severity the first stands first.
ORDER = (
    "not-measured",
    "non-finite-data",
    "non-finite-outputs",
    "loss-of-probabilities",
    "gradients-not-zeroed",
    "parameters-not-trained",
    "weight-decay-too-high",
    "schedule-at-zero",
    "data-not-shuffled",
    "outlying-samples",
    "targets-not-normalised",
    "inputs-not-normalised",
    "chaotic-initialisation",
    "ordered-initialisation",
    "exploding-gradients",
    "learning-rate-too-high",
    "non-finite-gradients",
    "divergence",
    "dead-units",
    "saturated-units",
    "vanishing-gradients",
    "rank-collapse",
    "unbalanced-layers",
    "learning-rate-too-low",
    "loss-spikes",
    "loss-oscillates",
    "suspect-samples",
    "class-imbalance",
    "batch-norm-batch-too-small",
    "batch-too-small",
    "conflicting-gradients",
    "effective-rate-decay",
    "memorisation",
    "not-learning",
    "saddle-plateau",
    "minimum-plateau",
    "ill-conditioning",
    "lazy-regime",
    "duplicates",
    "batch-too-large",
)

FROM_START = frozenset({
    "not-measured", "non-finite-data", "non-finite-outputs", "loss-of-probabilities", "gradients-not-zeroed",
    "weight-decay-too-high", "data-not-shuffled", "outlying-samples", "targets-not-normalised", "inputs-not-normalised",
    "chaotic-initialisation", "ordered-initialisation", "suspect-samples", "class-imbalance", "batch-too-small",
    "batch-norm-batch-too-small",
})  # fmt: skip

_WRECKS = (
    "non-finite-data", "non-finite-outputs", "gradients-not-zeroed", "learning-rate-too-high", "divergence",
    "non-finite-gradients",
)  # fmt: skip
_SCALE = (
    "outlying-samples",
    "targets-not-normalised",
    "inputs-not-normalised",
    "chaotic-initialisation",
    "exploding-gradients",
)
_STOPS = (
    "loss-of-probabilities", "parameters-not-trained", "weight-decay-too-high", "schedule-at-zero", "data-not-shuffled",
    "ordered-initialisation", "dead-units", "saturated-units", "vanishing-gradients", "rank-collapse",
    "learning-rate-too-low", "suspect-samples", "class-imbalance", "batch-too-small",
)  # fmt: skip

FOLLOWS: dict[str, tuple[str, ...]] = {  # a finding -> those it can follow from
    # of weights that a first step threw far out, some measurements fail
    "not-measured": ("non-finite-data", "non-finite-outputs", "learning-rate-too-high"),
    "parameters-not-trained": (*_WRECKS, *_SCALE, "dead-units", "saturated-units", "vanishing-gradients"),
    "gradients-not-zeroed": ("parameters-not-trained",),  # no optimizer zeroes what none holds
    "targets-not-normalised": ("outlying-samples",),
    "chaotic-initialisation": (
        "non-finite-data", "outlying-samples", "targets-not-normalised", "inputs-not-normalised",
    ),
    # where no gradient comes through, a small decay is all there is of a step
    "weight-decay-too-high": (
        "ordered-initialisation", "vanishing-gradients", "dead-units", "saturated-units", "learning-rate-too-high",
        "divergence",
    ),
    "learning-rate-too-high": ("gradients-not-zeroed", "weight-decay-too-high", "data-not-shuffled", *_SCALE),
    "divergence": (*_WRECKS, *_SCALE, "data-not-shuffled"),
    "non-finite-gradients": (
        "non-finite-data", "gradients-not-zeroed", *_SCALE, "learning-rate-too-high", "divergence",
    ),
    "dead-units": (*_WRECKS, *_SCALE, "weight-decay-too-high", "vanishing-gradients"),
    "saturated-units": (*_WRECKS, *_SCALE),
    "exploding-gradients": (*_WRECKS, "chaotic-initialisation", "inputs-not-normalised", "targets-not-normalised"),
    "vanishing-gradients": (
        *_WRECKS, *_SCALE, "ordered-initialisation", "weight-decay-too-high", "dead-units", "saturated-units",
    ),
    "rank-collapse": (
        *_WRECKS, *_SCALE, "ordered-initialisation", "weight-decay-too-high", "dead-units", "saturated-units",
        "vanishing-gradients", "data-not-shuffled",
    ),
    "unbalanced-layers": (
        *_WRECKS, *_SCALE, "ordered-initialisation", "weight-decay-too-high", "dead-units", "saturated-units",
        "vanishing-gradients", "parameters-not-trained", "rank-collapse",
    ),
    "schedule-at-zero": (),
    "loss-spikes": (*_WRECKS, *_SCALE, "data-not-shuffled", "batch-too-small"),
    "loss-oscillates": (*_WRECKS, *_SCALE, "data-not-shuffled"),
    "suspect-samples": (*_WRECKS, *_SCALE, "data-not-shuffled"),
    "conflicting-gradients": (*_WRECKS, *_SCALE, *_STOPS),
    "batch-too-small": (*_WRECKS, *_SCALE, *(name for name in _STOPS if name != "batch-too-small")),
    "ill-conditioning": (*_WRECKS, *_SCALE, *(name for name in _STOPS if name != "suspect-samples")),
    "memorisation": ("suspect-samples", "duplicates"),
    "non-finite-outputs": ("non-finite-data", *_SCALE),
    "not-learning": (
        *_WRECKS, *_SCALE, *_STOPS, "unbalanced-layers", "conflicting-gradients", "loss-spikes", "loss-oscillates",
    ),
    "saddle-plateau": (*_WRECKS, *_SCALE, *_STOPS),
    "minimum-plateau": (*_WRECKS, *_SCALE, *_STOPS),
}  # fmt: skip

# Advice that others contradict: the rate of a run whose trouble is another one is not called too low. What is only
# worth knowing is no trouble, and contradicts nothing.
GIVES_WAY: dict[str, tuple[str, ...]] = {
    "learning-rate-too-low": (
        *_WRECKS, *_SCALE, "loss-of-probabilities", "parameters-not-trained", "weight-decay-too-high",
        "schedule-at-zero", "ordered-initialisation", "dead-units", "saturated-units", "vanishing-gradients",
        "rank-collapse",
    ),
    "learning-rate-too-high": ("non-finite-data", "non-finite-outputs"),
}  # fmt: skip


AT_THE_END = frozenset({
    "not-learning", "saddle-plateau", "minimum-plateau", "memorisation", "batch-too-small", "ill-conditioning",
    "conflicting-gradients",
})  # fmt: skip
# what is said of the whole run, and not seen at a time


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Causes first, by severity and then by mechanism; what follows from a cause directly beneath it.

    A consequence has no change of its own and its cause's action, so that several symptoms of one cause never ask for
    different things; a cause is as severe as the worst that follows from it.
    """
    faults = {finding.name for finding in findings if finding.severity != "info"}
    kept = {f.name: f for f in findings if not faults & set(GIVES_WAY.get(f.name, ()))}
    because = _links(kept)
    told = [
        replace(f, because=because[name], change=None, action=kept[_root(name, because)].action)
        if because[name]
        else replace(f, severity=_worst(name, kept, because))
        for name, f in kept.items()
    ]
    listed: list[Finding] = []
    for root in sorted((f for f in told if not f.because), key=_rank):
        _append(root, told, listed)
    return listed


def _links(kept: dict[str, Finding]) -> dict[str, tuple[str, ...]]:
    """Of each finding the causes it has among the others, in their order; never in a circle."""
    because: dict[str, tuple[str, ...]] = dict.fromkeys(kept, ())
    for name in sorted(kept, key=ORDER.index):
        for cause in sorted(set(FOLLOWS.get(name, ())) & set(kept), key=ORDER.index):
            if _comes_first(kept[cause], kept[name]) and name not in _behind(cause, because):
                because[name] = (*because[name], cause)
    return because


def _behind(name: str, because: dict[str, tuple[str, ...]]) -> set[str]:
    """The finding and all it follows from."""
    return {name}.union(*(_behind(cause, because) for cause in because[name]))


def _root(name: str, because: dict[str, tuple[str, ...]]) -> str:
    return _root(because[name][0], because) if because[name] else name


def _comes_first(cause: Finding, effect: Finding) -> bool:
    """What was seen first cannot follow from what came later; what is only worth knowing causes no harm."""
    if cause.severity == "info" and effect.severity != "info":
        return False
    if cause.name in FROM_START:
        return True
    if (cause.name, effect.name) == ("vanishing-gradients", "dead-units"):  # samples look alike from the start:
        return cause.steps[0] < min(FIRST_MEASUREMENT, effect.steps[0])  # half of the units are off for all of them
    decays = (
        effect.name == "weight-decay-too-high"
    )  # that is most of steps makes wrecks, and a large one needs no cause
    if decays and (cause.name in _WRECKS or effect.evidence.get(OF_WEIGHTS, 0.0) >= TAKES_ALL):
        return cause.steps[0] < effect.steps[0]
    if effect.name in FROM_START:  # what the loop's settings say, step 0, follows from nothing that was measured later
        return cause.steps[0] <= min(FIRST_MEASUREMENT, effect.steps[0])
    seen = effect.steps[1] if effect.name in AT_THE_END else effect.steps[0]
    if cause.name in FOLLOWS.get(effect.name, ()) and effect.name in FOLLOWS.get(cause.name, ()):
        return (cause.steps[0], ORDER.index(cause.name)) < (seen, ORDER.index(effect.name))
    return cause.steps[0] <= seen


def _worst(name: str, kept: dict[str, Finding], because: dict[str, tuple[str, ...]]) -> str:
    behind = [f.severity for other, f in kept.items() if name in _behind(other, because)]
    return max(behind, key=SEVERITIES.index)


def _rank(finding: Finding) -> tuple[int, bool, int]:
    """By severity; what stands in the settings, at step 0, before what was measured; by mechanism."""
    first = -len(SEVERITIES) if finding.name == "not-measured" and finding.severity != "info" else 0
    return first - SEVERITIES.index(finding.severity), finding.steps[0] > 0, ORDER.index(finding.name)


def _append(finding: Finding, told: Sequence[Finding], listed: list[Finding]) -> None:
    """A finding, and beneath it what has it for its first cause."""
    listed.append(finding)
    for other in sorted((f for f in told if f.because[:1] == (finding.name,)), key=_rank):
        _append(other, told, listed)
