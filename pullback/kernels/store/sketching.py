"""Sketched stores: every block's factors become sketched rows before they are written.

Blocks are sketched apart, in any order and by any worker, so all must see the same projections: the settings fix
these (a generator for every seed, parameter and repeat), the parameters kept exact are chosen once and kept in the
store's description, and factors are first brought to the kinds that all blocks have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pullback._checks import input_error
from pullback.functional.model_view import layer_of
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.joined import aligned
from pullback.gradients.capture.sum_checks import summed
from pullback.kernels.sketch.plan import exact_parameters
from pullback.kernels.sketch.project import Sketch
from pullback.kernels.sketch.sketched_rows import sketch_captured
from pullback.kernels.store.factor_files import factor_bytes
from pullback.kernels.store.footprint import Footprint


@dataclass(frozen=True)
class Sketching:
    """What is done to every captured block of a sketched store.

    Args:
        settings: of the sketch.
        exact: names of the parameters that are not sketched.
        templates: captured factors of a few samples, one for each way in which blocks are written down.
    """

    settings: Sketch
    exact: tuple[str, ...]
    templates: tuple[Captured, ...]

    @classmethod
    def choose(cls, settings: Sketch, templates: Sequence[Captured], count: int) -> Sketching:
        """What stays exact is chosen for the whole kernel of ``count`` samples."""
        factors = aligned(*templates)[0].factors
        return cls(settings, exact_parameters(factors, settings, count, None), tuple(templates))

    @without_autocast()
    def __call__(self, captured: Captured, where: str) -> Captured:
        """The block with sketched factors; its rows are compared with the ordinary gradient first."""
        same = aligned(self.templates[0], captured, *self.templates[1:])[1]
        return sketch_captured(summed(same, where), self.settings, self.exact)

    def footprint(self, plain: Footprint, where: str) -> Footprint:
        """Bytes and operations of sketched blocks, from those of the blocks as they are captured."""
        captured = self(plain.captured, where)
        layers = {layer_of(name) for name in captured.view.parameters if name not in self.exact}
        settings = self.settings
        return replace(
            plain,
            captured=captured,
            dtype=captured.factors[0].like.dtype,
            factor_bytes=factor_bytes(captured),
            captured_bytes=plain.factor_bytes,
            sketched=f"an estimate: {settings.repeats} sketches of {settings.size} x {settings.size} (seed "
            f"{settings.seed}) of {len(layers)} of {len(plain.layers)} layers",
        )


def check_sketch(sketch: Any, where: str) -> None:
    """Refuse anything that is no ``Sketch``."""
    if sketch is not None and not isinstance(sketch, Sketch):
        raise input_error(
            where, "`sketch` to be None or a pb.Sketch", type(sketch).__name__, "Pass pb.Sketch(size=64, repeats=16)"
        )


def to_json(sketch: Sketch | None) -> dict[str, Any] | None:
    """Settings as plain values, for the store's description."""
    return None if sketch is None else asdict(sketch)


def from_json(stored: dict[str, Any] | None) -> Sketch | None:
    """Settings from the store's description."""
    return None if stored is None else Sketch(**stored)


def exact_layers(layers: Iterable[str], params: Iterable[str], about: dict[str, Any]) -> tuple[str, ...]:
    """Layers of a store none of whose parameters is sketched; all of them in an exact store."""
    if about.get("sketch") is None:
        return tuple(layers)
    kept = set(about["exact_parameters"])
    sketched = {layer_of(name) for name in params if name not in kept}
    return tuple(layer for layer in layers if layer not in sketched)
