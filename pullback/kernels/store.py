"""``kernel_to_store``: a backward kernel larger than memory, tile by tile on disk, resumable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from pullback._checks import check_positive, input_error
from pullback._progress import Progress
from pullback._version import __version__
from pullback.functional import LossFunction, ModelView, undisturbed
from pullback.functional.readout import Readout, loss_readout
from pullback.kernels.assemble import forward_order
from pullback.kernels.captured import Captured
from pullback.kernels.coverage import capture_factors
from pullback.kernels.plan import KernelPlan
from pullback.kernels.refused import refuse_recurrent_dropout
from pullback.kernels.sketch_project import Sketch
from pullback.kernels.store_data import Blocks, fingerprint, first_difference
from pullback.kernels.store_layout import FORMAT, Folder
from pullback.kernels.store_plan import Footprint, StorePlan, data_bytes, graph_bytes
from pullback.kernels.store_read import KernelStore, open_store
from pullback.kernels.store_run import Filler, Grid
from pullback.kernels.store_sample import check_sample, sample_of
from pullback.kernels.store_sketch import Sketching, check_sketch, factor_bytes, from_json, to_json
from pullback.kernels.workers import Workers

__all__ = ["KernelStore", "kernel_to_store", "open_store"]


def kernel_to_store(
    model: nn.Module,
    loss_fn: LossFunction,
    dataset: Any,
    path: str | Path,
    *,
    tile: int | None = None,
    resume: bool = True,
    params: Iterable[str] | None = None,
    memory_limit: int | None = None,
    progress: bool = True,
    sketch: Sketch | None = None,
) -> KernelStore:
    """Backward kernel K_ij = <g_i, g_j> of a whole data set, made tile by tile on disk; exact unless ``sketch=``.

    One forward and one backward pass over the data; the captured gradient factors wait on disk, and tiles are made
    from two blocks of them at a time, so that memory does not grow with N. Every finished tile is in a ledger with
    its checksum: a run that was killed goes on where it stopped when it is called again.

    Under ``torchrun``, or with ``torch.distributed`` initialised, the same call on every worker shares the work;
    ``path`` must then be on a file system all of them see.

    Args:
        model: as ``backward_kernel``.
        loss_fn: as ``backward_kernel``.
        dataset: a tuple ``(x, y)``, or a map-style data set of such pairs (batched by ``default_collate``); order is
            kept, nothing is shuffled.
        path: folder of the store; made if it does not exist.
        tile: samples along the side of a tile; None chooses by ``memory_limit``, or takes that of the store resumed.
        resume: go on with an unfinished store at ``path``; with False such a path is refused.
        params: names of parameters or modules to restrict the gradients to; None for all trainable ones.
        memory_limit: bytes this call may hold in each worker, beyond what the model, the data set and the process
            held before; None sets no limit, and chooses tiles that keep within a quarter of the machine's memory.
        progress: print the plan and the progress on standard error.
        sketch: estimate the layers this says instead, without bias, as ``sketch_kernel`` does: sketched rows wait on
            disk and tiles are made of them. The store holds the estimates without standard errors; ``sketch_kernel``
            with the same settings, ``exact="smaller"`` among them, gives both for any of the samples.

    Returns:
        KernelStore, finished.

    Raises:
        InputError: as ``backward_kernel``; a limit that cannot be kept; a path that holds something else; a store
            begun with other weights, data, parameters, tiles, another loss or sketch; a ``sketch`` that is none; a
            folder that cannot be written or read.
        UnsupportedError, SelfCheckError: as ``backward_kernel``.
        WorkerError: another worker failed.

    Cost: one pass over the data and the operations of ``backward_kernel``. Disk: half of N^2 numbers, and the
        captured factors (for a linear layer N T (d + p) numbers) until it is finished.

    Example:
        >>> import tempfile, torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        >>> x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
        >>> folder = tempfile.mkdtemp() + "/kernel"
        >>> store = kernel_to_store(model, nn.CrossEntropyLoss(), (x, y), folder, tile=2, progress=False)
        >>> from pullback import reference
        >>> bool(torch.allclose(store.to_dense(), reference.total_kernel(model, nn.CrossEntropyLoss(), x, y)))
        True
    """
    where = "kernel_to_store"
    workers = Workers(where, "See that worker's own error, then call again with any number of workers: it resumes")
    folder = Folder(path, workers.rank, where)
    try:
        with Progress(progress and workers.rank == 0) as shown:
            with workers.phase():
                view = ModelView.of(model, params, where)
                refuse_recurrent_dropout(view.model, where)
                readout = loss_readout(loss_fn)
                data = Blocks(dataset, next(iter(view.parameters.values())).device, where)
                check_sketch(sketch, where)
                about = _about(view, loss_fn, data, sketch) | {"sample": sample_of(view, readout, data, where)}
                templates = _templates(view, readout, data, _known_tile(folder, tile, where), where)
                plain = _footprint(view, readout, data, templates[0], where)
                footprint, sketching = plain, None
                if sketch is not None:
                    sketching = Sketching.choose(sketch, templates, len(data))
                    about["exact_parameters"] = list(sketching.exact)
                    footprint = sketching.footprint(plain, where)
                if workers.rank == 0:
                    _prepare(folder, about, footprint, tile, resume, memory_limit, where)
            with workers.phase():
                about = _check(folder, about, tile, where)
                if sketching is not None and list(sketching.exact) != about["exact_parameters"]:  # the store's count
                    sketching = replace(sketching, exact=tuple(about["exact_parameters"]))
                    footprint = sketching.footprint(plain, where)
                footprint.check(len(data), about["tile"], memory_limit, where, about["piece_bytes"])
                filler = Filler(
                    folder=folder,
                    grid=Grid(len(data), about["tile"]),
                    data=data,
                    view=view,
                    readout=readout,
                    templates=templates,
                    pair=_pair(footprint, about, where),
                    layers=about["layers"],
                    dtype=footprint.dtype,
                    workers=workers,
                    progress=shown,
                    where=where,
                    sketching=sketching,
                )
                if progress and workers.rank == 0:
                    plan = StorePlan.from_json(about["plan"], where)
                    shown.say(str(replace(plan, seconds=plan.seconds / workers.count)))
                folder.open_ledger()
                filler.look()
            for step in (filler.verify, filler.look, filler.capture, filler.look, filler.fill):
                with workers.phase():
                    step()
            with workers.phase():
                if workers.rank == 0:
                    filler.finish()
    finally:
        folder.close()
        workers.leave()
    return KernelStore(path)


def _about(view: ModelView, loss_fn: LossFunction, data: Blocks, sketch: Sketch | None) -> dict[str, Any]:
    """The part of a store's description that a resumed call must agree with."""
    return {"format": FORMAT, "num_samples": len(data), **fingerprint(view, loss_fn), "sketch": to_json(sketch)}


def _known_tile(folder: Folder, tile: int | None, where: str) -> int | None:
    """The side of a tile, if it is given or that of a store to go on with; tiles that are chosen leave no one over."""
    if tile is not None:
        check_positive(where, "tile", tile)
        return tile
    return folder.description()["tile"] if folder.is_store else None


def _templates(view: ModelView, readout: Readout, data: Blocks, tile: int | None, where: str) -> list[Captured]:
    """The first few samples: two, because blocks of one sample may take another path than larger ones.

    And the last one, if it is a block of its own.
    """
    count = 1 if tile == 1 else min(2, len(data))
    with undisturbed(view.model):
        templates = [capture_factors(view, readout, *data.take(0, count), where)]
        if tile is not None and len(data) % tile == 1 and count > 1:
            templates.append(capture_factors(view, readout, *data.take(len(data) - 1, len(data)), where))
    return templates


def _footprint(view: ModelView, readout: Readout, data: Blocks, captured: Captured, where: str) -> Footprint:
    x, y = data.take(0, captured.num_samples)
    with undisturbed(view.model):
        graph = graph_bytes(view, readout, x, y, where)
    layers = forward_order(captured)
    sizes = {layer: sum(view.parameters[name].numel() for name in names) for layer, names in view.layers.items()}
    parameters = sum(p.numel() * p.element_size() for p in view.parameters.values())
    return Footprint(
        captured=captured,
        layers=tuple(layers),
        layer_sizes=tuple(sizes[layer] for layer in layers),
        dtype=captured.factors[0].like.dtype,
        data_bytes=data_bytes(x, y),
        factor_bytes=factor_bytes(captured),
        graph_bytes=graph,
        parameter_bytes=parameters,
    )


def _prepare(
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
    footprint.check(count, tile, memory_limit, where)
    plan, pair = footprint.plan(count, tile, where, memory_limit=memory_limit)
    free, needed = folder.free_bytes(), plan.disk_bytes + plan.capture_bytes
    if free < needed:
        raise input_error(
            where,
            f"{needed / 1e9:.3g} GB of free disk, of which {plan.capture_bytes / 1e9:.3g} GB only until it is finished",
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


def _check(folder: Folder, about: dict[str, Any], tile: int | None, where: str) -> dict[str, Any]:
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


def _pair(footprint: Footprint, about: dict[str, Any], where: str) -> KernelPlan:
    """How a tile is made, as it was decided when the store was begun."""
    forms, piece_bytes = about["forms"], about["piece_bytes"]
    return footprint.plan(about["num_samples"], about["tile"], where, forms=forms, piece_bytes=piece_bytes)[1]
