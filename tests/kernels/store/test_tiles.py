"""``kernel_to_store`` against the loop, and what can be read from a store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import pullback as pb
from pullback import reference
from pullback.gradients.rows.outer import GhostPiece
from pullback.kernels.gram.squares import Summed
from pullback.kernels.store import tile as store_tile
from pullback.kernels.store.kernel_to_store import kernel_to_store, open_store
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
CE = nn.CrossEntropyLoss()


def mlp(n: int = 11, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    model, loss_fn, x, y = build(CASES[0], n, dtype)
    return model, loss_fn, (x, y)


def make(path: Path, *args: Any, **options: Any) -> Any:
    return kernel_to_store(*(args or mlp()), path, **{"progress": False} | options)


@pytest.mark.parametrize("case", thinned(CASES))
def test_equals_the_loop(case: Case, tmp_path: Path) -> None:
    """Total and every layer's summary; with a last block that is smaller, and with one of a single sample."""
    model, loss_fn, x, y = build(case, 7)
    total = reference.total_kernel(model, loss_fn, x, y)
    layers = reference.layer_kernels(model, loss_fn, x, y)
    size = max(float(total.abs().max()), 1e-12)
    for tile in (4, 3):
        store = make(tmp_path / str(tile), model, loss_fn, (x, y), tile=tile)
        assert store.shape == (7, 7)
        assert_same(store.to_dense(), total, scale=size)
        assert set(store.layers) == set(layers)
        blocks = [layers[layer] for layer in store.layers]
        inner = torch.stack([torch.stack([(a * b).sum() for a in blocks]) for b in blocks])
        assert_same(store.layer_inner_products(), inner, scale=49 * size**2)
        assert_same(store.layer_diagonals(), torch.stack([b.diagonal() for b in blocks]), scale=size)
        assert store.trace == pytest.approx(float(total.trace()), abs=1e-10 * size)
        assert store.sum == pytest.approx(float(total.sum()), abs=1e-9 * size)
        assert store.frobenius_norm == pytest.approx(float(total.norm()), abs=1e-7 * size)
        for layer, block in layers.items():
            assert store.layers[layer].trace == pytest.approx(float(block.trace()), abs=1e-10 * size)
            assert store.layers[layer].sum == pytest.approx(float(block.sum()), abs=1e-9 * size)
            # the norm is the root of an inner product: what rounding leaves of a zero is larger
            assert store.layers[layer].frobenius_norm == pytest.approx(float(block.norm()), abs=1e-7 * size)


@pytest.mark.parametrize("case", thinned(CASES))
def test_squares_do_not_matter(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles made of several squares of unequal sides, rows formed or not."""
    model, loss_fn, x, y = build(case, 7)
    form = ("ghost", "materialise")[CASES.index(case) % 2]
    monkeypatch.setattr("pullback.kernels.gram.squares.TILE_ROWS", 2)
    monkeypatch.setattr("pullback.kernels.plan.make.TILE_ROWS", 3)
    monkeypatch.setattr("pullback.kernels.plan.make.TILE_POSITIONS", 5)
    total = reference.total_kernel(model, loss_fn, x, y)
    size = max(float(total.abs().max()), 1e-12)
    monkeypatch.setattr(
        "pullback.kernels.plan.make.cheapest_form",
        lambda factor, *args: form if form in factor.forms else factor.forms[0],
    )
    store = make(tmp_path / form, model, loss_fn, (x, y), tile=5)
    assert_same(store.to_dense(), total, scale=size)
    norm = sum(float(b.norm() ** 2) for b in reference.layer_kernels(model, loss_fn, x, y).values())
    assert float(store.layer_inner_products().trace()) == pytest.approx(norm, rel=1e-9)


def test_float32(tmp_path: Path) -> None:
    store = make(tmp_path, *mlp(dtype=torch.float32), tile=4)
    model, loss_fn, (x, y) = mlp()
    assert store.dtype == torch.float32
    assert_same(store.to_dense(), reference.total_kernel(model, loss_fn, x, y))


def test_half_precision_is_summed_in_single(tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp(dtype=torch.bfloat16)
    store = make(tmp_path, model, loss_fn, (x, y), tile=4)
    assert store.dtype == torch.float32
    assert_same(store.to_dense(), pb.backward_kernel(model, loss_fn, x, y).total, 1e-5)


def test_under_autocast(tmp_path: Path) -> None:
    """Captured in the precision of autocast, multiplied in that of the factors."""
    model, loss_fn, (x, y) = mlp(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        store = make(tmp_path, model, loss_fn, (x, y), tile=4)
        expected = pb.backward_kernel(model, loss_fn, x, y).total
    assert store.dtype == expected.dtype == torch.float32
    assert_same(store.to_dense(), expected, 1e-5)


def test_symmetric_to_the_bit(tmp_path: Path) -> None:
    dense = make(tmp_path, *mlp(dtype=torch.float32), tile=3).to_dense()
    assert torch.equal(dense, dense.T)


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_samples(n: int, tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp(n)
    assert_same(make(tmp_path, model, loss_fn, (x, y)).to_dense(), reference.total_kernel(model, loss_fn, x, y))


def test_tiles_of_one_sample(tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp(4)
    store = make(tmp_path, model, loss_fn, (x, y), tile=1)
    assert_same(store.to_dense(), reference.total_kernel(model, loss_fn, x, y))


def test_chosen_parameters(tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp()
    store = make(tmp_path, model, loss_fn, (x, y), tile=4, params=["3"])
    assert list(store.layers) == ["3"]
    assert store.num_params == 35
    assert_same(store.to_dense(), reference.layer_kernels(model, loss_fn, x, y)["3"])


class Items(Dataset[Any]):
    """A map-style data set of whatever items it is given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_data_sets_are_the_same_as_pairs(tmp_path: Path) -> None:
    """Items are collated in order; inputs may be dicts."""
    model, loss_fn, (x, y) = mlp()
    expected = make(tmp_path / "pair", model, loss_fn, (x, y), tile=4).to_dense()
    for name, data in (("tensors", TensorDataset(x, y)), ("list", [(x[i], y[i]) for i in range(11)])):
        assert torch.equal(make(tmp_path / name, model, loss_fn, data, tile=4).to_dense(), expected)
    model, loss_fn, x, y = build(next(case for case in CASES if case.name == "two_inputs"), 5)
    items = Items([({k: v[i] for k, v in x.items()}, y[i]) for i in range(5)])
    store = make(tmp_path / "dicts", model, loss_fn, items, tile=2)
    assert_same(store.to_dense(), reference.total_kernel(model, loss_fn, x, y))
    # a pair and a data set of the same numbers are the same data
    make(tmp_path / "pair", *mlp()[:2], TensorDataset(*mlp()[2]))


def test_data_that_is_none(tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp()
    for data, message in (
        (iter([(x, y)]), r"`dataset` to be a tuple \(x, y\) or a map-style data set with a length, got list_iterator"),
        ((x, y[:5]), "`x` and `y` of the same length, got 11 and 5 samples"),
        ([], "`dataset` with at least one sample, got no data"),
        ((x[:0], y[:0]), "`y` with at least one sample, got no data"),
        (Items([x[0], x[1]]), r"items \(x, y\) from the data set, got Tensor"),
        (Items([(x[0], y[0], y[0])]), r"items \(x, y\) from the data set, got 3 parts"),
    ):
        with pytest.raises(pb.InputError, match=message):
            make(tmp_path / "store", model, loss_fn, data)
    spoilt = x.clone()
    spoilt[7, 0, 0] = float("nan")
    with pytest.raises(
        pb.InputError, match="this in samples 6 to [78], counted from the first of them: .* in sample 1"
    ):
        make(tmp_path / "store", model, loss_fn, (spoilt, y), tile=3)


def test_blocks_on_different_paths_are_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if float(x.sum()) > 0 else self.b(x)

    x = torch.cat([torch.ones(4, 2), -torch.ones(4, 2)])
    with pytest.raises(
        pb.InputError, match="all blocks of samples to take the same path .*, got another one for samples 4"
    ):
        make(tmp_path, Branching(), CE, (x, torch.zeros(8, dtype=torch.long)), tile=4)


def test_what_can_be_read(tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp()
    made = make(tmp_path, model, loss_fn, (x, y), tile=4)
    total = reference.total_kernel(model, loss_fn, x, y)
    store = open_store(tmp_path)
    assert store.layers == made.layers
    assert store.plan == made.plan
    assert (store.tile_size, store.num_params) == (4, sum(p.numel() for p in model.parameters()))
    assert_same(store.tile(2, 1), total[8:, 4:8])
    assert_same(store.tile(1, 2), total[4:8, 8:])
    assert_same(store.rows(slice(3, 9, 2)), total[3:9:2])
    assert_same(store.rows(slice(-1, None)), total[-1:])
    assert store.rows(slice(0, 0)).shape == (0, 11)
    assert_same(store.diagonal(), total.diagonal())
    assert_same(store.losses, torch.stack([loss_fn(model(x[i : i + 1]), y[i : i + 1]) for i in range(11)]).detach())
    vectors = torch.randn(11, 2, dtype=torch.float64)
    assert_same(store @ vectors, total @ vectors)
    assert_same(store.T @ vectors[:, 0], total @ vectors[:, 0])
    alignment = store.layer_alignment()
    assert_same(alignment.diagonal(), torch.ones(3, dtype=torch.float64))
    blocks = [reference.layer_kernels(model, loss_fn, x, y)[layer] for layer in store.layers]
    assert float(alignment[0, 2]) == pytest.approx(
        float((blocks[0] * blocks[2]).sum() / blocks[0].norm() / blocks[2].norm())
    )
    with pytest.raises(pb.InputError, match=r"KernelStore.tile: expected block numbers from 0 to 2, got \(3, 0\)"):
        store.tile(3, 0)
    with pytest.raises(pb.InputError, match="a matrix of at most 100 bytes, got 968"):
        store.to_dense(memory_limit=100)


def test_eigenvalues_of_a_store(tmp_path: Path) -> None:
    model, loss_fn, (x, y) = mlp()
    pairs = pb.eigenvalues(make(tmp_path, model, loss_fn, (x, y), tile=4), 3, tol=1e-10)
    expected = torch.linalg.eigvalsh(reference.total_kernel(model, loss_fn, x, y)).flip(0)[:3]
    assert_same(pairs.values, expected)


def test_it_is_a_zarr_group(tmp_path: Path) -> None:
    """Anyone's Zarr reads it; what is above the diagonal of tiles is NaN, not zero."""
    store = make(tmp_path, tile=4)
    group = zarr.open_group(tmp_path, mode="r")
    total = np.asarray(group["total"])
    assert group["total"].chunks == (4, 4)
    dense = store.to_dense().numpy()
    assert np.array_equal(total[4:8, :8], dense[4:8, :8])
    assert np.array_equal(total[8:], dense[8:])
    assert np.isnan(total[:4, 4:]).all()
    assert np.array_equal(np.asarray(group["diagonal"]), store.layer_diagonals().numpy())
    assert np.array_equal(np.asarray(group["losses"]), store.losses.numpy())


def test_nothing_is_disturbed(tmp_path: Path) -> None:
    model, loss_fn, data = mlp()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.random.get_rng_state()
    make(tmp_path, model, loss_fn, data, tile=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_wrong_tile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of tiles are compared with ordinary gradients: a layer that is a little too large does not pass."""
    monkeypatch.setattr("pullback.kernels.plan.make.choose_form", lambda *_: "ghost")  # whatever the machine's rates
    tile = GhostPiece.tile

    def wrong(piece: GhostPiece, out: Tensor, *args: Any, **options: Any) -> None:
        tile(piece, out, *args, **options)
        if piece.factor.weight == "3.weight":
            out *= 1.001

    monkeypatch.setattr(GhostPiece, "tile", wrong)
    with pytest.raises(
        pb.SelfCheckError, match="expected the summed kernel of `3` to agree with the ordinary gradient"
    ):
        make(tmp_path, tile=4)


@pytest.mark.parametrize("error", [1e-3, 1e-6])
def test_wrong_rows_are_found(error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of rows too, parameter by parameter, once a block; in float64 by a millionth."""
    check = store_tile.SumChecks.add_totals
    model, loss_fn, data = mlp()
    model, data = model.double(), (data[0].double(), data[1])

    def wrong(self: Any, factor: Any, captured: Any, totals: dict[str, Tensor], bound: Tensor) -> None:
        check(self, factor, captured, {name: (1 + error) * total for name, total in totals.items()}, bound)

    monkeypatch.setattr("pullback.kernels.store.tile.SumChecks.add_totals", wrong)
    with pytest.raises(pb.SelfCheckError, match="expected the summed gradient of `"):
        make(tmp_path, model, loss_fn, data, tile=4)


def test_what_backward_kernel_refuses_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(pb.UnsupportedError, match="kernel_to_store: .*, got batch norm in train mode"):
        make(tmp_path, model, CE, (torch.randn(6, 4), torch.arange(6) % 3))
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode in layer ``"):
        make(tmp_path, nn.LSTM(3, 4, num_layers=2, dropout=0.3), CE, (torch.randn(2, 5, 3), torch.zeros(2)))
    with pytest.raises(pb.InputError, match="`tile` above 0, got 0"):
        make(tmp_path, tile=0)
    assert list(tmp_path.iterdir()) == []


def test_threads_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads make squares side by side: the same bytes, and torch has its threads back.

    Layers that are made whole are shared out by torch, whose sums may depend on the threads: here there are none.
    """
    monkeypatch.setattr("pullback.kernels.plan.make.choose_form", lambda *_: "ghost")
    monkeypatch.setattr("pullback.kernels.gram.squares.TILE_ROWS", 2)
    arguments = mlp(dtype=torch.float32)
    names: set[str] = set()
    make_square = Summed.write

    def noting(*args: Any) -> None:
        names.add(threading.current_thread().name)
        assert len(names) == 1 or torch.get_num_threads() == 1
        make_square(*args)

    monkeypatch.setattr(Summed, "write", noting)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = make(tmp_path / "alone", *arguments, tile=6)
        assert names == {"MainThread"}
        torch.set_num_threads(3)
        together = make(tmp_path / "together", *arguments, tile=6)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert len(names) > 1
    assert torch.equal(together.to_dense(), alone.to_dense())
    assert together.layers == alone.layers
