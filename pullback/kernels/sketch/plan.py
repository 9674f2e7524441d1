"""What is sketched and what stays exact, and what both cost; printable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pullback._results import Shown
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Products
from pullback.gradients.rows.factor import Factor
from pullback.kernels.sketch.project import Sketch, is_vector, key_of, matrix_shape, projection_cost, split


@dataclass(frozen=True)
class FactorSketch:
    """How the block of one factor is found.

    Args:
        parameters: names of the parameters it covers.
        rule: which rule wrote their gradients down.
        sketched: whether it is estimated.
        exact_flops: operations of the exact block in its cheapest form.
        sketch_flops: operations of all repeats; None for what is never sketched.
    """

    parameters: tuple[str, ...]
    rule: str
    sketched: bool
    exact_flops: float
    sketch_flops: float | None


@dataclass(frozen=True)
class SketchPlan(Shown):
    """What a sketched kernel costs; ``str(plan)`` is a table.

    Args:
        shape: of the kernel as a matrix, rows and columns.
        settings: size, repeats, seed and the choice of exact layers.
        factors: in the order of the forward pass.
    """

    shape: tuple[int, int]
    settings: Sketch
    factors: tuple[FactorSketch, ...]

    @property
    def flops(self) -> float:
        """Operations of all blocks as planned, without the forward and backward pass."""
        return sum(f.sketch_flops if f.sketched and f.sketch_flops else f.exact_flops for f in self.factors)

    def __str__(self) -> str:
        rows = [("parameters", "rule", "form", "GFLOP exact", "GFLOP sketched")]
        rows += [
            (
                ", ".join(f.parameters),
                f.rule,
                "sketch" if f.sketched else "exact",
                f"{f.exact_flops / 1e9:.3g}",
                "-" if f.sketch_flops is None else f"{f.sketch_flops / 1e9:.3g}",
            )
            for f in self.factors
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        n1, n2 = self.shape
        size, repeats = self.settings.size, self.settings.repeats
        lines.append(f"kernel {n1} x {n2}, {repeats} sketches of {size} x {size}: {self.flops / 1e9:.3g} GFLOP")
        return "\n".join(lines)


def make_sketch_plan(captured: Captured, sketch: Sketch, n2: int | None) -> SketchPlan:
    """Which factors of an n1 x n1 (n2 None) or n1 x n2 kernel are sketched, and the operations."""
    n1 = captured.num_samples
    kept = exact_parameters(captured.factors, sketch, n1, n2)
    factors = [
        FactorSketch(
            tuple(factor.shapes),
            rule,
            key_of(factor) not in kept,
            exact_flops(factor, n1, n2),
            None if _never(factor, sketch) else sketch_flops(factor, sketch, n1, n2),
        )
        for whole, rule in zip(captured.factors, captured.rules, strict=True)
        for factor in split([whole])
    ]
    C = captured.num_outputs
    return SketchPlan((C * n1, C * (n2 or n1)), sketch, tuple(factors))


def exact_parameters(factors: Iterable[Factor], sketch: Sketch, n1: int, n2: int | None) -> tuple[str, ...]:
    """Names of the parameters whose block of an n1 x n1 (n2 None) or n1 x n2 kernel is computed exactly."""
    kept = [f for f in split(factors) if _is_exact(f, sketch, n1, n2)]
    return tuple(name for factor in kept for name in factor.shapes)


def _is_exact(factor: Factor, sketch: Sketch, n1: int, n2: int | None) -> bool:
    if _never(factor, sketch):
        return True
    return sketch.exact == "cheaper" and exact_flops(factor, n1, n2) <= sketch_flops(factor, sketch, n1, n2)


def _never(factor: Factor, sketch: Sketch) -> bool:
    """Vectors, unused parameters, and layers that a sketch would leave as they are."""
    if is_vector(factor) or factor.is_zero:
        return True
    g, p, d = matrix_shape(factor)
    return max(g * p, g * d) <= sketch.size


def exact_flops(factor: Factor, n1: int, n2: int | None) -> float:
    """Operations of the exact block in its cheapest form."""
    asked = Products.of(n1, n2, factor.num_outputs)
    return min(factor.work(form, asked).flops for form in factor.forms)


def sketch_flops(factor: Factor, sketch: Sketch, n1: int, n2: int | None) -> float:
    """Operations of all repeats: the projections of every position and their products, then every pair of rows."""
    g, p, d = matrix_shape(factor)
    C, k, m = factor.num_outputs, min(sketch.size, g * p), min(sketch.size, g * d)
    rows = C * n1, None if n2 is None else C * n2
    _, products = projection_cost(factor, k, m)
    return sketch.repeats * (2.0 * products * (n1 + (n2 or 0)) + Products.of(*rows, 1).flops * k * m)
