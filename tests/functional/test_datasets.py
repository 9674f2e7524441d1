"""Data without downloads, and what is said of broken files. S0-44."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pullback as pb
from pullback._rng import make_generator
from pullback.functional import datasets, load_cifar10, load_digits, load_npz
from pullback.functional.datasets import CIFAR_RECORD_BYTES


def write_cifar(folder: Path, labels: int = 10) -> None:
    """Six files of the documented layout, mostly zeros (sparse on disk)."""
    for name in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
        with (folder / name).open("wb") as file:
            record = np.zeros(CIFAR_RECORD_BYTES, dtype=np.uint8)
            record[0], record[1], record[-1] = 3, 255, 51
            file.write(record.tobytes())
            file.write(bytes([labels - 1]))
            file.truncate(datasets.CIFAR_RECORDS * CIFAR_RECORD_BYTES)


def test_cifar10_binary_files(tmp_path: Path) -> None:
    """S0-44: pixels in [-1, 1] as 2 x - 1, channel planes, 98 batches of 512."""
    write_cifar(tmp_path)
    data = load_cifar10(tmp_path)
    assert data.x_train.shape == (50_000, 3, 32, 32)
    assert data.x_test.shape == (10_000, 3, 32, 32)
    assert data.num_batches(512) == 98
    assert data.x_train.min() == -1
    assert data.x_train.max() == 1
    assert data.y_train[0] == 3
    assert data.y_train[1] == 9
    assert data.x_train[0, 0, 0, 0] == 1
    assert data.x_train[0, 2, 31, 31] == pytest.approx(2 * 51 / 255 - 1)


def test_cifar10_missing_and_truncated(tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match=r"load_cifar10\(data_batch_1.bin\): expected a file of CIFAR-10's binary"):
        load_cifar10(tmp_path)
    write_cifar(tmp_path)
    with (tmp_path / "data_batch_4.bin").open("r+b") as file:
        file.truncate(3073 * 500)
    with pytest.raises(pb.InputError, match="expected 30730000 bytes, got 1536500, a truncated"):
        load_cifar10(tmp_path)


def test_cifar10_labels(tmp_path: Path) -> None:
    write_cifar(tmp_path, labels=100)
    with pytest.raises(pb.InputError, match="labels from 0 to 9, got 99"):
        load_cifar10(tmp_path)


def test_digits() -> None:
    data = load_digits(seed=1)
    assert data.num_classes == 10
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert data.x_train.min() == -1
    assert data.x_train.max() == 1
    assert len(data.x_train) + len(data.x_test) == 1797
    again = load_digits(seed=1)
    assert torch.equal(data.y_test, again.y_test)
    assert not torch.equal(data.y_test, load_digits(seed=2).y_test)


def test_batches_cover_every_sample_once() -> None:
    data = load_digits()
    batches = list(data.batches(512, make_generator(0)))
    assert [len(x) for x, _ in batches] == [512, 512, 414]
    assert sorted(torch.cat([x for x, _ in batches]).sum((1, 2, 3)).tolist()) == sorted(
        data.x_train.sum((1, 2, 3)).tolist()
    )


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20) % 4)
    data = load_npz(path)
    assert (data.name, data.num_classes, data.num_features) == ("mine", 4, 3)
    assert len(data.x_train) == 16
    assert data.x_train.dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, r"arrays `x` and `y`, got \['x'\]"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, dtype=int)}, "one length above 1, got 4 and 3"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "labels `y` as integers"),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, dtype=int)}, "finite numbers in `x`"),
        ({"x": np.array([{"a": 1}] * 4), "y": np.zeros(4, dtype=int)}, "a readable .npz of plain numbers"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(pb.InputError, match=message):
        load_npz(path)


def test_npz_files(tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match="expected a file, got nothing at"):
        load_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(pb.InputError, match="a readable .npz of plain numbers"):
        load_npz(tmp_path / "text.npz")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(pb.InputError, match=r"pip install 'pullback\[demo\]'"):
        load_digits()
