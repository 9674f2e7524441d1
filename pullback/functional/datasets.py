"""Data sets that need no download: scikit-learn's digits, CIFAR-10's binary files, and arrays from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown
from pullback._rng import make_generator

CIFAR_RECORDS = 10_000  # per file
CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes, row by row


@dataclass(frozen=True)
class Dataset(Shown):
    """Training and test samples of a classification problem.

    Args:
        name: shown in reports.
        x_train: float32 (N, *shape); images are scaled to [-1, 1].
        y_train: int64 labels (N,), 0 to ``num_classes - 1``.
        x_test: as ``x_train``.
        y_test: as ``y_train``.
        num_classes: C.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int

    @property
    def num_features(self) -> int:
        """d, numbers per sample."""
        return self.x_train[0].numel()

    def num_batches(self, batch_size: int) -> int:
        """Batches in an epoch, the last one possibly smaller."""
        return -(-len(self.x_train) // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled training batches."""
        for index in torch.randperm(len(self.x_train), generator=generator, device=generator.device).split(batch_size):
            yield self.x_train[index], self.y_train[index]


def load_digits(seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits that scikit-learn ships, 8 x 8 pixels, a fifth of them for testing.

    Example:
        >>> data = load_digits()
        >>> data.num_features, len(data.x_train) + len(data.x_test), data.x_train.min().item()
        (64, 1797, -1.0)
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ModuleNotFoundError:
        raise input_error(
            "load_digits",
            "scikit-learn, which ships the digits",
            "no such package",
            "pip install 'pullback[demo]'",
        ) from None
    x, y = sklearn_digits(return_X_y=True)
    images = torch.tensor(x / 8.0 - 1.0, dtype=torch.float32).view(-1, 1, 8, 8)  # pixels run from 0 to 16
    return _split("digits", images, torch.tensor(y, dtype=torch.int64), seed)


def load_npz(path: str | Path, seed: int = 0) -> Dataset:
    """Arrays ``x`` (N, ...) and integer labels ``y`` (N,) from an ``.npz`` file; a fifth is kept for testing."""
    path = Path(path)
    where = f"load_npz({path.name})"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"x", "y"} - set(arrays)
            if missing:
                raise input_error(where, "arrays `x` and `y`", f"{sorted(arrays)}", "Save it with np.savez(x=…, y=…)")
            x, y = arrays["x"], arrays["y"]
    except FileNotFoundError:
        raise input_error(where, "a file", f"nothing at {path}", "Check the path") from None
    except (OSError, ValueError, EOFError) as error:
        if "expected arrays" in str(error):
            raise
        raise input_error(where, "a readable .npz of plain numbers", str(error), "Save it with np.savez") from None
    if len(x) != len(y) or len(x) < 2:
        raise input_error(where, "`x` and `y` of one length above 1", f"{len(x)} and {len(y)}", "Save them together")
    if y.ndim != 1 or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise input_error(where, "labels `y` as integers from 0, (N,)", f"{y.dtype} {y.shape}", "Encode the classes")
    if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        raise input_error(where, "finite numbers in `x`", f"{x.dtype} with NaN or text", "Clean the array")
    return _split(path.stem, torch.tensor(x, dtype=torch.float32), torch.tensor(y.astype(np.int64)), seed)


def load_cifar10(root: str | Path) -> Dataset:
    """CIFAR-10 from its binary version (``data_batch_1.bin`` … ``test_batch.bin``), pixels scaled to [-1, 1]."""
    root = Path(root)
    folder = root / "cifar-10-batches-bin" if (root / "cifar-10-batches-bin").is_dir() else root
    train = [_cifar_file(folder / f"data_batch_{k}.bin") for k in range(1, 6)]
    x_test, y_test = _cifar_file(folder / "test_batch.bin")
    x_train, y_train = torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])
    return Dataset("CIFAR-10", x_train, y_train, x_test, y_test, 10)


def _cifar_file(path: Path) -> tuple[Tensor, Tensor]:
    where, expected = f"load_cifar10({path.name})", CIFAR_RECORDS * CIFAR_RECORD_BYTES
    remedy = "Unpack cifar-10-binary.tar.gz and point --data-root at its folder"
    if not path.is_file():
        raise input_error(where, "a file of CIFAR-10's binary version", f"nothing at {path}", remedy)
    if (size := path.stat().st_size) != expected:
        raise input_error(where, f"{expected} bytes", f"{size}, a truncated or different file", remedy)
    records = torch.from_numpy(np.fromfile(path, dtype=np.uint8).reshape(CIFAR_RECORDS, CIFAR_RECORD_BYTES))
    if int(records[:, 0].max()) > 9:
        raise input_error(where, "labels from 0 to 9", f"{int(records[:, 0].max())}", remedy)
    images = records[:, 1:].to(torch.float32).div_(127.5).sub_(1).view(-1, 3, 32, 32)
    return images, records[:, 0].long()


def _split(name: str, x: Tensor, y: Tensor, seed: int) -> Dataset:
    order = torch.randperm(len(x), generator=make_generator(seed), device="cpu")
    test, train = order[: max(1, len(x) // 5)], order[max(1, len(x) // 5) :]
    return Dataset(name, x[train], y[train], x[test], y[test], int(y.max()) + 1)
