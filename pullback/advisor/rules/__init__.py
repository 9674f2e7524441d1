"""The rules, one function a name, in a file for each topic: a run to the findings its record supports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pullback.advisor.findings import Finding
from pullback.advisor.rules import (
    attention,
    batch_size,
    conditioning,
    conflicts,
    data,
    depth,
    divergence,
    fading,
    learning,
    learning_rate,
    long_steps,
    loop,
    not_finite,
    outliers,
    plateaus,
    record,
    regimes,
    samples,
    swings,
    trained,
    units,
)
from pullback.runs import Run

RULES: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    record.not_measured,
    not_finite.non_finite_data,
    not_finite.non_finite_outputs,
    not_finite.non_finite_gradients,
    loop.loss_of_probabilities,
    loop.gradients_not_zeroed,
    trained.parameters_not_trained,
    fading.weight_decay_too_high,
    fading.schedule_at_zero,
    data.data_not_shuffled,
    data.targets_not_normalised,
    data.class_imbalance,
    divergence.divergence,
    long_steps.too_high,
    learning_rate.too_low,
    swings.loss_spikes,
    swings.loss_oscillates,
    depth.vanishing_gradients,
    depth.exploding_gradients,
    depth.ordered_initialisation,
    depth.chaotic_initialisation,
    depth.unbalanced_layers,
    units.saturated_units,
    units.dead_units,
    attention.rank_collapse,
    conditioning.ill_conditioning,
    conditioning.inputs_not_normalised,
    conflicts.conflicting_gradients,
    outliers.outlying_samples,
    samples.suspect_samples,
    outliers.duplicates,
    batch_size.too_small,
    batch_size.too_large,
    batch_size.batch_norm_too_small,
    learning.not_learning,
    plateaus.saddle_plateau,
    plateaus.minimum_plateau,
    regimes.effective_rate_decay,
    regimes.lazy_regime,
    regimes.memorisation,
)

__all__ = ["RULES"]
