"""What a loss says of a few samples: kept by a store, so that it is not gone on with under another loss of that name.

Functions have no content to hash that outlives a version of Python, and two lambdas share one name; their values tell
them apart. Derivatives by the outputs are kept too: kernels are made of them, and a constant does not show in them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from pullback._checks import input_error
from pullback.functional import ModelView, undisturbed
from pullback.functional.agreement import tolerance
from pullback.functional.batch import tensors
from pullback.functional.readout import Readout
from pullback.kernels.store.data_blocks import Blocks
from pullback.kernels.store.fingerprint import digest

PAIRS = 4  # looked at, evenly spaced over the data


def sample_of(view: ModelView, readout: Readout, data: Blocks, where: str) -> list[dict[str, Any]]:
    """Losses of pairs of samples, the squared norm of their derivative by the outputs, and the error of either."""
    starts = torch.linspace(0, max(len(data) - 2, 0), PAIRS, device="cpu").long().unique().tolist()
    return [_of_pair(view, readout, data, start, min(start + 2, len(data)), where) for start in starts]


def _of_pair(view: ModelView, readout: Readout, data: Blocks, start: int, stop: int, where: str) -> dict[str, Any]:
    x, y = data.take(start, stop)
    with undisturbed(view.model), torch.no_grad():
        outputs = view(x)
    with torch.enable_grad():
        outputs = tree_map(_leaf, outputs)
        leaves = [leaf for leaf in tensors(outputs) if leaf.requires_grad]
        losses = readout(outputs, y, where).squeeze(1)
        graded = losses.requires_grad
        slopes = torch.autograd.grad(losses.sum(), leaves, allow_unused=True) if graded else ()
    size = max((float(leaf.detach().abs().max()) for leaf in leaves if leaf.numel()), default=0.0)
    return {
        "start": start,
        "data": digest((x, y)),
        "losses": losses.detach().double().tolist(),
        "slope": sum(float(slope.double().square().sum()) for slope in slopes if slope is not None),
        "rounding": 16 * torch.finfo(losses.dtype).eps * size,  # of a loss that is the difference of large outputs
        "tolerance": tolerance(losses.dtype),
    }


def _leaf(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().requires_grad_()
    return value


def check_sample(stored: list[dict[str, Any]] | None, sample: list[dict[str, Any]], path: object, where: str) -> None:
    """Refuse a loss with other values or derivatives than the store was begun with.

    Where the data are others, that is what is told, by the checks of blocks.
    """
    if stored is None:
        got = "a store of an earlier version, which kept none"
        raise input_error(where, f"losses of a few samples in the store at {path}", got, "Choose another path")
    for old, new in zip(stored, sample, strict=False):
        if old["start"] != new["start"] or old["data"] != new["data"]:
            return
    scale = max(abs(loss) for new in sample for loss in new["losses"])
    steepest = max(new["slope"] for new in sample)
    for old, new in zip(stored, sample, strict=True):
        pairs = enumerate(zip(old["losses"], new["losses"], strict=True))
        far = [k for k, (a, b) in pairs if not abs(a - b) <= new["tolerance"] * scale + new["rounding"]]
        steep = abs(old["slope"] - new["slope"]) > 2 * new["tolerance"] * steepest + new["rounding"] ** 2
        if far or steep:
            place = new["start"] + (far[0] if far else 0)
            was, now = (each["losses"][far[0]] if far else each["slope"] for each in (old, new))
            what = "" if far else " for the squared derivative by the outputs"
            expected = f"the loss the store at {path} was begun with, {was:.6g}{what} at sample {place}"
            raise input_error(where, expected, f"{now:.6g}", "Choose another path, or pass that loss")
