"""What each rule reads: without it a rule says nothing, and its silence is no all-clear."""

from __future__ import annotations

from collections.abc import Callable

from pullback.advisor.model import is_batch_normed, is_normalised
from pullback.runs import Run

Needs = tuple[
    tuple[str, ...], ...
]  # of each group one: a probe, what the loop shows at every step, or a part of the description

_LOSS: Needs = (("loss",),)
_HELD_OUT = ("test", "epoch")

NEEDS: dict[str, Needs] = {  # the name of a rule's finding -> what it reads
    "not-measured": (),
    "non-finite-data": _LOSS,
    "non-finite-outputs": _LOSS,
    "non-finite-gradients": _LOSS,
    "loss-of-probabilities": _LOSS,
    "gradients-not-zeroed": (("gradient_norm",), ("gradients",)),
    "parameters-not-trained": (("updates", "optimizer"),),
    "weight-decay-too-high": (("updates",),),
    "schedule-at-zero": (("learning_rate",),),
    "data-not-shuffled": (("all_targets", "targets"),),
    "outlying-samples": (("inputs",),),
    "targets-not-normalised": (("targets",),),
    "inputs-not-normalised": (("inputs",),),
    "chaotic-initialisation": (("initialisation", "loss"),),
    "ordered-initialisation": (("initialisation",),),
    "exploding-gradients": (("flow",),),
    "learning-rate-too-high": (("sharpness", "updates", "loss"),),
    "divergence": _LOSS,
    "dead-units": (("activations",),),
    "saturated-units": (("activations",),),
    "vanishing-gradients": (("flow",),),
    "rank-collapse": (("activations", "attention"),),
    "unbalanced-layers": (("flow",),),
    "learning-rate-too-low": (*_LOSS, ("sharpness", "updates")),
    "loss-spikes": _LOSS,
    "loss-oscillates": _LOSS,
    "suspect-samples": (("samples",),),
    "class-imbalance": (("all_targets", "targets"),),
    "batch-norm-batch-too-small": (("batch_norm",),),
    "batch-too-small": (("noise", "loss_form"),),
    "conflicting-gradients": (("alignment",),),
    "effective-rate-decay": (("effective_lr",),),
    "memorisation": (*_LOSS, _HELD_OUT),
    "not-learning": _LOSS,
    "saddle-plateau": (*_LOSS, ("sharpness",)),
    "minimum-plateau": (*_LOSS, ("sharpness",)),
    "ill-conditioning": (("kernel",),),
    "lazy-regime": (*_LOSS, ("tangent",)),
    "duplicates": (("inputs", "samples"),),
    "batch-too-large": (("noise",),),
}

_ONLY_OF: dict[str, Callable[[Run], bool]] = {  # models without it have nothing that could be missed
    "batch-norm-batch-too-small": is_batch_normed,
    "effective-rate-decay": is_normalised,
}
_IN_WORDS = {"test": "held-out loss"}  # as a person calls it, where it is no probe


def unseen(run: Run) -> dict[str, tuple[str, ...]]:
    """Rules that could not look, by the name of their finding, and the first of what would have let each."""
    shown = {name for name in ("loss", "gradient_norm", "learning_rate") if len(run.courses.of(name)[1])}
    there = {*run.measured, *run.meta, *shown}
    missing = {
        name: tuple(_IN_WORDS.get(group[0], group[0]) for group in needs if not there & set(group))
        for name, needs in NEEDS.items()
        if name not in _ONLY_OF or _ONLY_OF[name](run)
    }
    return {name: groups for name, groups in missing.items() if groups}
