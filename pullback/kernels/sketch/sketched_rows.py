"""Captured factors to sketched ones, which whatever makes kernels of factors can take in their place."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch

from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.kernels.sketch.plan import exact_parameters
from pullback.kernels.sketch.project import Sketch, as_matrix, key_of, project, project_matrix, projections, split


@dataclass(frozen=True)
class SketchFactor(DenseFactor):
    """Sketched rows of one factor, scaled so that their inner products are the mean over the repeats.

    Args:
        gradients: first covered parameter -> (N, C, R, m), m at most k^2.
        covers: the parameters whose gradients are in it.
    """

    covers: tuple[str, ...] = ()

    def repeat(self, index: int) -> DenseFactor:
        """Rows of one repeat, (N, C, m): their inner products are that repeat's estimate."""
        return DenseFactor({n: g[:, :, index] * math.sqrt(g.shape[2]) for n, g in self.gradients.items()})


def sketch_factors(factors: Iterable[Factor], sketch: Sketch, exact: Collection[str] | None = None) -> list[Factor]:
    """Rows of every factor as a kernel takes them: sketched, or the factor itself where it is kept exact.

    Inner products of ``SketchFactor`` rows are the estimate (the mean over the repeats), those of its ``repeat(r)``
    what that repeat found. Any two blocks of samples sketched with equal settings fit together.

    Args:
        factors: of one block of samples.
        sketch: the settings.
        exact: parameters kept exact, as ``exact_parameters`` names them; None takes this block for the whole kernel.
            Blocks of one kernel must be given the same.

    Returns:
        One factor or ``SketchFactor`` for each factor; those that ``split`` takes apart are several.

    Cost: ``sketch_flops`` without the pairs; at most R k^2 numbers a row are held.
    """
    parts = list(split(factors))
    if exact is None:
        exact = exact_parameters(parts, sketch, parts[0].num_samples, None)
    return [factor if key_of(factor) in exact else _sketched(factor, sketch) for factor in parts]


def _sketched(factor: Factor, sketch: Sketch) -> SketchFactor:
    rows = [project(factor, *projections(factor, sketch, repeat)) for repeat in range(sketch.repeats)]
    return SketchFactor({key_of(factor): torch.stack(rows, 2) / math.sqrt(sketch.repeats)}, covers=tuple(factor.shapes))


def sketch_captured(captured: Captured, sketch: Sketch, exact: Collection[str]) -> Captured:
    """A capture whose factors are those of ``sketch_factors`` and whose ordinary gradient is sketched alike.

    What makes exact kernels of captures makes sketched ones of these, with the same checks of sums on the way.
    """
    pairs = [(f, rule) for whole, rule in zip(captured.factors, captured.rules, strict=True) for f in split([whole])]
    ordinary = dict(captured.ordinary)
    for factor, _ in pairs:
        if key_of(factor) not in exact:
            matrix = as_matrix(factor, captured.ordinary)
            sums = [project_matrix(matrix, *projections(factor, sketch, repeat)) for repeat in range(sketch.repeats)]
            ordinary[key_of(factor)] = torch.stack(sums) / math.sqrt(sketch.repeats)
    rows = sketch_factors((f for f, _ in pairs), sketch, exact)
    return replace(captured, factors=tuple(rows), rules=tuple(rule for _, rule in pairs), ordinary=ordinary)


def sketch_repeat(captured: Captured, sketch: Sketch, exact: Collection[str], repeat: int) -> Captured:
    """A capture of one repeat's rows, (N, C, m), of the sketched factors alone."""
    factors: list[Factor] = []
    rules: list[str] = []
    ordinary: Tensors = {}
    for whole, rule in zip(captured.factors, captured.rules, strict=True):
        for factor in split([whole]):
            if (name := key_of(factor)) in exact:
                continue
            left, right = projections(factor, sketch, repeat)
            factors.append(DenseFactor({name: project(factor, left, right)}))
            rules.append(rule)
            ordinary[name] = project_matrix(as_matrix(factor, captured.ordinary), left, right)
    return replace(captured, factors=tuple(factors), rules=tuple(rules), ordinary=ordinary)
