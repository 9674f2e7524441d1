"""The beginning of a store: a new one, or one that is gone on with if it is of the same kernel."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pullback._checks import check_positive, input_error
from pullback._version import __version__
from pullback.functional import LossFunction, ModelView, undisturbed
from pullback.functional.memory import graph_bytes
from pullback.functional.readout import Readout
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.sketch.project import Sketch
from pullback.kernels.store.cost import store_plan
from pullback.kernels.store.data_blocks import Blocks
from pullback.kernels.store.disk_format import FORMAT, Folder
from pullback.kernels.store.fingerprint import fingerprint, first_difference
from pullback.kernels.store.footprint import Footprint
from pullback.kernels.store.loss_sample import check_sample
from pullback.kernels.store.sketching import from_json, to_json


def description_of(view: ModelView, loss_fn: LossFunction, data: Blocks, sketch: Sketch | None) -> dict[str, Any]:
    """The part of a store's description that a resumed call must agree with."""
    return {"format": FORMAT, "num_samples": len(data), **fingerprint(view, loss_fn), "sketch": to_json(sketch)}


def known_tile(folder: Folder, tile: int | None, where: str) -> int | None:
    """The side of a tile, if it is given or that of a store to go on with; tiles that are chosen leave no one over."""
    if tile is not None:
        check_positive(where, "tile", tile)
        return tile
    return folder.description()["tile"] if folder.is_store else None


def captured_templates(view: ModelView, readout: Readout, data: Blocks, tile: int | None, where: str) -> list[Captured]:
    """The first few samples: two, because blocks of one sample may take another path than larger ones.

    And the last one, if it is a block of its own.
    """
    count = 1 if tile == 1 else min(2, len(data))
    with undisturbed(view.model):
        templates = [capture_factors(view, readout, *data.take(0, count), where)]
        if tile is not None and len(data) % tile == 1 and count > 1:
            templates.append(capture_factors(view, readout, *data.take(len(data) - 1, len(data)), where))
    return templates


def footprint_of(view: ModelView, readout: Readout, data: Blocks, captured: Captured, where: str) -> Footprint:
    """What one captured block says of the whole store."""
    pair = data.take(0, captured.num_samples)
    with undisturbed(view.model):
        graph = graph_bytes(view, readout, *pair, where)
    return Footprint.of(captured, pair, graph)


def prepare(
    folder: Folder,
    about: dict[str, Any],
    footprint: Footprint,
    tile: int | None,
    resume: bool,
    memory_limit: int | None,
    where: str,
) -> None:
    """Rank 0's part: begin a store, or see that the one there may be gone on with."""
    if folder.is_store:
        if not resume:
            raise input_error(
                where,
                "an empty or new folder with `resume=False`",
                f"a kernel store at {folder.path}",
                "Choose another path, or delete it",
            )
        return
    if not folder.is_free:
        raise input_error(
            where,
            "an empty or new folder, or a kernel store",
            f"something else at {folder.path}",
            "Choose another path, or delete it",
        )
    count = about["num_samples"]
    if tile is None:
        tile = footprint.choose_tile(count, memory_limit, where)
    tile = min(tile, count)
    footprint.check(tile, memory_limit, where)
    pair = footprint.pair_plan(tile, where, memory_limit=memory_limit)
    plan = store_plan(footprint, count, pair, 1, where)
    free, needed, kept = folder.free_bytes(), plan.disk_bytes, plan.disk_bytes - plan.finished_bytes
    if free < needed:
        raise input_error(
            where,
            f"{needed / 1e9:.3g} GB of free disk, of which {kept / 1e9:.3g} GB only until it is finished",
            f"{free / 1e9:.3g} GB at {folder.path}",
            "Choose another path, or make room",
        )
    folder.create(
        about
        | {
            "pullback": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "tile": tile,
            "dtype": str(footprint.dtype).removeprefix("torch."),
            "layers": list(footprint.layers),
            "layer_sizes": list(footprint.layer_sizes),
            "num_params": footprint.captured.view.num_params,
            "plan": plan.to_json(),
            # kept, because choices made anew (from rates, under another limit) might change the last digits of tiles
            "piece_bytes": pair.piece_bytes,
            "forms": {name: layer.form for layer in pair.layers for name in layer.parameters},
        }
    )


def check_same(folder: Folder, about: dict[str, Any], tile: int | None, where: str) -> dict[str, Any]:
    """The store's description, if it is of the matrix this call means."""
    stored = folder.description()
    asked = {key: value for key, value in about.items() if key not in ("exact_parameters", "sample")}
    asked |= {"tile": stored["tile"] if tile is None else min(tile, about["num_samples"])}
    begun = {key: stored.get(key) for key in asked}
    for each in (begun, asked):
        each["sketch"] = str(from_json(each["sketch"]))
    if found := first_difference(begun, asked):
        name, old, new = found
        names = {
            "num_samples": "the number of samples",
            "tile": "`tile`",
            "sketch": "`sketch`",
            "params": "the parameters",
        }
        raise input_error(
            where,
            f"{names.get(name, f'the {name}')} the store at {folder.path} was begun with, {old}",
            new,
            "Choose another path, or pass what it was begun with",
        )
    check_sample(stored.get("sample"), about["sample"], folder.path, where)
    return stored


def pair_plan(footprint: Footprint, about: dict[str, Any], where: str) -> KernelPlan:
    """How a tile is made, as it was decided when the store was begun."""
    forms, piece_bytes = about["forms"], about["piece_bytes"]
    return footprint.pair_plan(about["tile"], where, forms=forms, piece_bytes=piece_bytes)
