"""What two samples say of many, also on the meta device, where shapes alone say it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pullback._checks import input_error, unsupported
from pullback.functional import take
from pullback.functional.batch import Batch, mapped, tensors
from pullback.kernels.request import Request
from pullback.kernels.run import Template, template


@contextmanager
def from_few(request: Request, num_samples: int | None) -> Iterator[tuple[Request, Template]]:
    """The request for ``num_samples`` samples, and the capture of the two it was given for; a block of meta tensors."""
    model, where = request.rows.view.model, request.where
    on_meta = any(p.device.type == "meta" for p in model.parameters())
    given = [request.rows, *([] if request.columns is None else [request.columns])]
    if not on_meta and any(
        leaf.device.type == "meta" for side in given for leaf in (*tensors(side.x), *tensors(side.y))
    ):
        raise input_error(
            where,
            "data with numbers in it for a model with numbers in it",
            "tensors on the meta device",
            'Make the model under torch.device("meta") too',
        )
    request = shapes_of(request, num_samples, on_meta=on_meta)
    with shapes_alone(where) if on_meta else nullcontext():
        yield request, template(request)


@contextmanager
def shapes_alone(where: str) -> Iterator[None]:
    """Tensors made in the block are on the meta device; an error because they hold no numbers says so."""
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        apart = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))  # code that is not the model's
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(apart)]
        if not frames:
            raise
        raise unsupported(
            where,
            "a model and a loss that read no numbers, on the meta device",
            f"`{frames[-1].line}` in {frames[-1].name} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})",
            "Pass what makes that needless (a mask in full, for example), or plan a small model with numbers",
        ) from error


def shapes_of(request: Request, count: int | None, *, on_meta: bool) -> Request:
    """The request for ``count`` samples like those given: one is taken twice, for it does not show the sample axis."""
    rows = request.rows
    x, y, count = rows.x, rows.y, rows.count if count is None else count
    if count > 1 and rows.count == 1:
        x, y = take(x, [0, 0]), take(y, [0, 0])
    columns = request.columns
    if on_meta:
        x, y = _moved(x), _moved(y)
        if columns is not None:
            columns = replace(columns, x=_moved(columns.x), y=_moved(columns.y))
    return replace(request, rows=replace(rows, x=x, y=y, count=count), columns=columns)


def _moved(batch: Batch) -> Any:
    """A batch on the meta device."""
    return mapped(lambda leaf: leaf.to("meta"), batch)
