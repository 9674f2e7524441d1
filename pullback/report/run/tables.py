"""Tables of the page that no chart draws: the layers, and the samples that stand out."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from pullback.advisor.reading import by_layer, rows, with_layers
from pullback.charts.chart import Cell, Table
from pullback.charts.text import as_dict, as_float, number
from pullback.report.run.series import NamedRun
from pullback.runs import Record, Run
from pullback.runs.rows import Rows

# Columns of the layers: where the numbers stand, the last measured ones.
COLUMNS = (
    ("Gradient norm", "flow", "gradient_norm"),
    ("Step over weights", "updates", "ratio"),
    ("Effective rank", "activations", "effective_rank"),
    ("Dead units, %", "activations", "dead"),
    ("Saturated, %", "activations", "saturated"),
)
REASONS = {"label": "label contradicted", "outlier": "outlying gradient", "duplicate": "copy of another"}
MOST_SUSPECTS = 20
MOST_VALUES = 12  # of a sample that is no picture
SMALLEST, LARGEST = 4, 512  # sides of a picture
PNG_KINDS = {1: 0, 3: 2, 4: 6}  # channels to colour types


def layer_table(named: NamedRun) -> Table | None:
    """A row for each layer of the model: its size, and what was last measured of it."""
    run = named.run
    columns = {label: _last(run, probe, metric) for label, probe, metric in COLUMNS}
    model = as_dict(run.meta.get("model"))
    described = model.get("layers")
    layers = [each for each in described if isinstance(each, str)] if isinstance(described, list) else []
    if not layers or not any(columns.values()):
        return None
    counted = model.get("layer_sizes")
    sizes = dict(zip(layers, counted, strict=False)) if isinstance(counted, list) else {}
    used = {label: _shown(label, values) for label, values in columns.items() if values}
    rows: list[list[Cell]] = [[name, sizes.get(name), *(v.get(name) for v in used.values())] for name in layers]
    return Table("Layers at the last measurement", ("Layer", "Parameters", *used), rows)


def _shown(label: str, values: dict[str, float]) -> dict[str, float]:
    """In the unit of the heading."""
    return {name: 100 * value for name, value in values.items()} if label.endswith("%") else values


def _last(run: Run, probe: str, metric: str) -> dict[str, float]:
    records = with_layers(run, probe, metric)
    return by_layer(records[-1], metric) if records else {}


def suspects_of(named: NamedRun) -> dict[str, Any] | None:
    """The samples that stand out at the last step at which any did, with what they look like where that is stored."""
    records = rows(named.run, "samples")
    found = records.where(records.lists("suspects", 0)[0] > 0)
    if not found:
        return None
    record, inputs = _with_pictures(named.run, found)
    listed = [each for each in record.values["suspects"] if isinstance(each, list) and len(each) == 3]
    pairs, targets = (record.values.get(name) for name in ("index", "suspect_targets"))
    index = (
        {str(pair[0]): pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2}
        if isinstance(pairs, list)
        else {}
    )
    told = [
        {
            "place": place,
            "index": index.get(str(place)),
            "target": _at(targets, row),
            "reason": REASONS.get(str(reason), str(reason)),
            "score": as_float(score),
            **_looks(inputs, row),
        }
        for row, (place, score, reason) in enumerate(listed[:MOST_SUSPECTS])
    ]
    targeted, seen = (
        any(row["target"] is not None for row in told),
        any(row["picture"] or row["numbers"] for row in told),
    )
    return {"step": record.step, "rows": told, "indexed": bool(index), "targets": targeted, "looks": seen}


def _with_pictures(run: Run, found: Rows) -> tuple[Record, np.ndarray | None]:
    """The last record; or the last whose inputs are stored, if the later ones have none of these."""
    for record in reversed(found.where(np.isin(found.steps, run.array_steps("samples", "suspects")))):
        inputs = run.array("samples", record.step, "suspects")
        if inputs is not None and inputs.dtype.kind in "fiub" and inputs.ndim > 1:
            return record, inputs
    return found[-1], None


def _at(values: object, row: int) -> Cell:
    return values[row] if isinstance(values, list) and row < len(values) else None


def _looks(inputs: np.ndarray | None, row: int) -> dict[str, str]:
    """A picture as a PNG file in base 64, or the first numbers."""
    if inputs is None or row >= len(inputs):
        return {"picture": "", "numbers": ""}
    sample = inputs[row].astype(float)
    if (pixels := _pixels(sample)) is not None:
        return {"picture": base64.b64encode(png(pixels)).decode(), "numbers": ""}
    flat = sample.ravel()
    more = f", … ({len(flat):,} numbers)" if len(flat) > MOST_VALUES else ""
    return {"picture": "", "numbers": ", ".join(number(each, 3) for each in flat[:MOST_VALUES]) + more}


def _pixels(sample: np.ndarray) -> np.ndarray | None:
    """(H, W, C) of bytes, from the sample's least value to its largest; None of what is no picture."""
    image = sample[None] if sample.ndim == 2 else sample
    if image.ndim != 3 or len(image) not in PNG_KINDS or not np.isfinite(image).all():
        return None
    if not all(SMALLEST <= side <= LARGEST for side in image.shape[1:]):
        return None
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return (255 * scaled).round().astype(np.uint8).transpose(1, 2, 0)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, C) of bytes as a PNG file, C of 1, 3 or 4."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_KINDS[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
