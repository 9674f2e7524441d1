"""``kernel_to_store``: a backward kernel larger than memory, tile by tile on disk, resumable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pullback._progress import Progress
from pullback.functional import LossFunction, ModelView
from pullback.functional.readout import loss_readout
from pullback.functional.refused import refuse_recurrent_dropout
from pullback.kernels.group.workers import Workers
from pullback.kernels.sketch.project import Sketch
from pullback.kernels.store.begin import (
    captured_templates,
    check_same,
    description_of,
    footprint_of,
    known_tile,
    pair_plan,
    prepare,
)
from pullback.kernels.store.cost import store_plan
from pullback.kernels.store.data_blocks import Blocks
from pullback.kernels.store.disk_format import Folder
from pullback.kernels.store.fill_tiles import Filler
from pullback.kernels.store.grid import Grid
from pullback.kernels.store.kernel_store import KernelStore, open_store
from pullback.kernels.store.loss_sample import sample_of
from pullback.kernels.store.sketching import Sketching, check_sketch

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
                about = description_of(view, loss_fn, data, sketch) | {"sample": sample_of(view, readout, data, where)}
                templates = captured_templates(view, readout, data, known_tile(folder, tile, where), where)
                plain = footprint_of(view, readout, data, templates[0], where)
                footprint, sketching = plain, None
                if sketch is not None:
                    sketching = Sketching.choose(sketch, templates, len(data))
                    about["exact_parameters"] = list(sketching.exact)
                    footprint = sketching.footprint(plain, where)
                if workers.rank == 0:
                    prepare(folder, about, footprint, tile, resume, memory_limit, where)
            with workers.phase():
                about = check_same(folder, about, tile, where)
                if sketching is not None and list(sketching.exact) != about["exact_parameters"]:  # the store's count
                    sketching = replace(sketching, exact=tuple(about["exact_parameters"]))
                    footprint = sketching.footprint(plain, where)
                footprint.check(about["tile"], memory_limit, where, about["piece_bytes"])
                pair = pair_plan(footprint, about, where)
                filler = Filler(
                    folder=folder,
                    grid=Grid(len(data), about["tile"]),
                    data=data,
                    view=view,
                    readout=readout,
                    templates=templates,
                    pair=pair,
                    layers=about["layers"],
                    dtype=footprint.dtype,
                    workers=workers,
                    progress=shown,
                    where=where,
                    sketching=sketching,
                )
                if progress and workers.rank == 0:
                    shown.say(str(store_plan(footprint, len(data), pair, workers.count, where)))
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
