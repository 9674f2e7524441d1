"""Stores that were killed, damaged or begun with something else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.kernels.store.disk_format import Folder
from pullback.kernels.store.factor_files import load
from pullback.kernels.store.fill_tiles import Filler
from pullback.kernels.store.kernel_to_store import KernelStore, kernel_to_store, open_store
from tests.compare import assert_same
from tests.kernels.store.child import TILE, arguments
from tests.thinned import thinned

NUM_TILES = 10


def fill(path: Path, **options: Any) -> KernelStore:
    return kernel_to_store(*arguments(), path, **{"progress": False} | options)


def contents(path: Path) -> dict[str, bytes]:
    """Every array file of a store."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if "c" in f.parts and f.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed") / "store"
    fill(path, tile=TILE)
    return contents(path)


class Counter:
    """Counts the tiles that are computed and the blocks that are captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tiles = self.blocks = 0
        tile, capture = Filler._tile, Filler._capture

        def counting_tile(filler: Filler, *args: Any) -> Any:
            self.tiles += 1
            return tile(filler, *args)

        def counting_capture(filler: Filler, *args: Any) -> Any:
            self.blocks += 1
            return capture(filler, *args)

        monkeypatch.setattr(Filler, "_tile", counting_tile)
        monkeypatch.setattr(Filler, "_capture", counting_capture)


@pytest.mark.parametrize(
    ("when", "blocks", "tiles"),
    [
        pytest.param("torn:4", 3, 0, marks=pytest.mark.slow),
        ("draft:20", 4, 7),
        pytest.param("draft:1", 0, 0, marks=pytest.mark.slow),
        pytest.param("record:3", 2, 0, marks=pytest.mark.slow),
        pytest.param("torn:9", 4, 4, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(
    when: str,
    blocks: int,
    tiles: int,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL at any moment: what is in the ledger is not done again, and the bytes are those of a quiet run."""
    path = tmp_path / "store"
    command = [sys.executable, "-m", "tests.kernels.store.child", str(path), when]
    killed = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=600, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with pytest.raises(pb.InputError, match=rf"a finished store at .*, got {tiles} of 10 tiles\. Call `kernel_to_st"):
        open_store(path)
    counter = Counter(monkeypatch)
    fill(path)  # the tile size is the store's
    assert (counter.blocks, counter.tiles) == (4 - blocks, NUM_TILES - tiles)
    assert contents(path) == undisturbed
    left = {f.name for f in path.iterdir()}
    assert left == {"store.json", "zarr.json", "ledger-0.jsonl", "total", "diagonal", "losses"}


def test_killed_while_it_was_laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr("zarr.open_group", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill(path)
    fill(path)


def test_finished_store_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    fill(path, tile=TILE)
    ledger = (path / "ledger-0.jsonl").read_bytes()
    counter = Counter(monkeypatch)
    fill(path)
    assert (counter.blocks, counter.tiles) == (0, 0)
    assert (path / "ledger-0.jsonl").read_bytes() == ledger


@pytest.mark.parametrize("name", ["total/c/2/1", "total/c/3/3", "diagonal/c/0/1"])
def test_damaged_tile(
    name: str, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit is found by ``verify`` and by the next call, which makes that one tile again."""
    path = tmp_path / "store"
    store = fill(path, tile=TILE)
    damaged = bytearray((path / name).read_bytes())
    damaged[5] ^= 4
    (path / name).write_bytes(damaged)
    tile = (1, 1) if name.startswith("diagonal") else tuple(map(int, name.split("/")[2:]))
    assert store.verify() == [tile]
    assert open_store(path).verify() == [tile]
    counter = Counter(monkeypatch)
    again = fill(path)
    assert (counter.blocks, counter.tiles) == (len(set(tile)), 1)
    assert again.verify() == []
    assert contents(path) == undisturbed
    assert open_store(path).layers == store.layers  # the tile's share is not counted twice


def test_missing_and_short_tiles(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    path = tmp_path / "store"
    store = fill(path, tile=TILE)
    (path / "total/c/1/0").unlink()
    (path / "total/c/3/2").write_bytes((path / "total/c/3/2").read_bytes()[:9])
    assert store.verify() == [(1, 0), (3, 2)]
    with pytest.raises(
        pb.InputError, match=r"KernelStore.tile: expected a readable file for tile \(1, 0\), got an err"
    ):
        store @ torch.ones(11, dtype=torch.float64)
    fill(path)
    assert contents(path) == undisturbed


def test_damaged_captures_are_made_again(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Filler, "fill", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill(path, tile=TILE)
    for block, cut in ((1, None), (2, -1)):
        file = path / "captures" / f"{block}.bin"
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content[:cut])
    (path / "captures" / "3.bin").unlink()
    counter = Counter(monkeypatch)
    fill(path)
    assert counter.blocks == 3
    assert contents(path) == undisturbed


def test_what_was_written_must_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pullback.kernels.store.fill_tiles.load", lambda *args, **options: None)
    with pytest.raises(pb.SelfCheckError, match="to read back what was just written to .*, got other bytes"):
        fill(tmp_path / "store", tile=TILE)


def test_a_block_that_changes_after_its_first_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is compared once; later the sums of the tiles tell."""

    def spoilt(*args, checked: bool, **options):
        tensors = load(*args, checked=checked, **options)
        for name in tensors if checked else ():
            if name.endswith("/gradients"):
                tensors[name] *= 1.5
        return tensors

    monkeypatch.setattr("pullback.kernels.store.fill_tiles.load", spoilt)
    with pytest.raises(pb.SelfCheckError, match="sum"):
        fill(tmp_path / "store", tile=TILE)


def test_missing_lines_are_not_a_finished_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filler, "fill", lambda self: None)
    with pytest.raises(pb.SelfCheckError, match=r"10 tiles in the ledgers, got none for tile \(0, 0\) and 9 others"):
        fill(tmp_path / "store", tile=TILE)


def test_spoilt_ledger_line(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, tile=TILE)
    ledger = path / "ledger-0.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    lines[6] = "{not json\n"
    ledger.write_text("".join(lines))
    with pytest.raises(
        pb.InputError,
        match=r"one JSON object a line in .*ledger-0.jsonl, as stores write them, got line 7, which is none",
    ):
        open_store(path)


def _interrupt(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_other_weights_data_or_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    model, loss_fn, (x, y) = arguments()
    fill(path, tile=TILE)

    def refused(message: str, *args: Any, **options: Any) -> None:
        given = [*args, *(model, loss_fn, (x, y))[len(args) :]]
        with pytest.raises(pb.InputError, match=message):
            kernel_to_store(*given, path, **{"progress": False} | options)

    refused("expected `tile` the store at .* was begun with, 3, got 4", tile=4)
    refused(r"expected the parameters the store at .* was begun with, \[.*\], got \['1\.weight'\]", params=["1.weight"])
    refused("expected the loss .*, got .*label_smoothing", model, nn.CrossEntropyLoss(label_smoothing=0.1))
    refused("expected the number of samples .*, 11, got 10", model, loss_fn, (x[:10], y[:10]))
    refused("expected an empty or new folder with `resume=False`, got a kernel store", resume=False)
    refused("a `memory_limit` of at least [0-9]+ bytes for tiles of 3 samples, got 10", memory_limit=10)
    changed = x.clone()
    changed[4, 0, 0] += 1
    refused("the data this store was begun with, got others in samples 3 to 5", model, loss_fn, (changed, y))
    changed = y.clone()
    changed[10] = (changed[10] + 1) % 4
    refused("the data this store was begun with, got others in samples 9 to 10", model, loss_fn, (x, changed))
    with torch.no_grad():
        model[3].weight[0, 0] += 1e-12
    refused(r"expected the weights the store at .* was begun with, `3\.weight`, got other numbers", model)
    other = nn.Sequential(*list(model)[:3], nn.Linear(7, 5, bias=False).double(), nn.ReLU(), model[5]).eval()
    other[3].weight = nn.Parameter(arguments()[0][3].weight)
    refused("expected the model .*, got ", other)
    kernel_to_store(*arguments(), path, progress=False)  # that one is still there


def test_other_data_before_the_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are captured again are compared too."""
    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Filler, "fill", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill(path, tile=TILE)
    model, loss_fn, (x, y) = arguments()
    with pytest.raises(pb.InputError, match="got others in samples 0 to 2"):
        kernel_to_store(model, loss_fn, (x + 1, y), path, progress=False)


def test_paths_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(pb.InputError, match="an empty or new folder, or a kernel store, got something else at"):
        fill(tmp_path)
    with pytest.raises(pb.InputError, match="something else at .*thesis"):
        fill(tmp_path / "thesis.txt")
    with pytest.raises(pb.InputError, match="a kernel store at .*, got no readable store.json"):
        open_store(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_store_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    about = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(pb.InputError, match="a store of format 1 at .*, got format 99"):
        open_store(path)


def test_a_wrong_byte_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of bytes can fail: a checksum that looks at nothing lets damage through."""
    path = tmp_path / "store"
    monkeypatch.setattr("pullback.kernels.store.ledger.checksum", lambda array: Folder(path).path and 0)
    store = fill(path, tile=TILE)
    assert len(store.verify()) == NUM_TILES


def test_resumed_numbers_are_right(tmp_path: Path) -> None:
    path = tmp_path / "store"
    model, loss_fn, (x, y) = arguments()
    (fill(path, tile=TILE).path / "total/c/1/1").unlink()
    assert_same(fill(path).to_dense(), reference.total_kernel(model, loss_fn, x, y))


def _losses() -> dict[str, tuple[Any, Any]]:
    """Pairs of losses of one name: same weights, data and settings as far as texts tell."""

    class Weighted(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weights = [weight]

        def forward(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.weights[0] * nn.functional.cross_entropy(outputs, y, reduction="none")

    def scaled(factor: float) -> Any:
        return lambda outputs, y: factor * nn.functional.cross_entropy(outputs, y, reduction="none")

    def turned(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # the same values, another derivative
        found = nn.functional.cross_entropy(outputs, y, reduction="none")
        return 3 * found.detach() - 2 * found

    def plain(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, y, reduction="none")

    turned.__qualname__ = plain.__qualname__
    shifted = scaled(1.0)
    return {
        "another factor": (scaled(1.0), scaled(1.001)),
        "settings in a list": (Weighted(1.0), Weighted(2.0)),
        "a constant": (shifted, lambda outputs, y: shifted(outputs, y) + 1e-3),
        "another sign": (plain, lambda outputs, y: -plain(outputs, y)),
        "other classes": (scaled(1.0), lambda outputs, y: plain(outputs, y) * torch.where(y == 3, 1.5, 1.0)),
        "another slope": (plain, turned),
    }


@pytest.mark.parametrize("name", _losses())
@pytest.mark.parametrize("finished", [True, False])
def test_another_loss_of_the_same_name_is_refused(
    name: str, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the values and derivatives of a few samples, whether tiles are missing or none is."""
    first, second = _losses()[name]
    for loss in (first, second):
        if not isinstance(loss, nn.Module):
            loss.__qualname__, loss.__module__ = "loss", "here"
    model, _, data = arguments()
    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(Filler, "fill", _interrupt)
        try:
            kernel_to_store(model, first, data, path, tile=TILE, progress=False)
        except KeyboardInterrupt:
            assert not finished
    expected = "the loss the store at .* was begun with, .* at sample [0-9]+, got .*Choose another path, or pass that"
    with pytest.raises(pb.InputError, match=expected):
        kernel_to_store(model, second, data, path, progress=False)
    kernel_to_store(model, first, data, path, progress=False)


def test_a_store_without_losses_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, tile=TILE)
    about = json.loads((path / "store.json").read_text())
    del about["sample"]
    (path / "store.json").write_text(json.dumps(about))
    with pytest.raises(pb.InputError, match="losses of a few samples in the store at .*, got a store of an earlier"):
        fill(path)
    assert open_store(path).shape == (11, 11)


def _without(key: str) -> Any:
    def spoil(path: Path) -> None:
        about = json.loads((path / "store.json").read_text())
        del about[key]
        (path / "store.json").write_text(json.dumps(about))

    return spoil


def _text(name: str, text: str) -> Any:
    return lambda path: (path / name).write_text(text)


def _folder(name: str) -> Any:
    def spoil(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_text("store.json", "[1, 2]"), "a store of format 1 at .*, got format None. Make the store anew"),
        (_text("store.json", "{"), "a kernel store at .*, got no readable store.json .*Check the path"),
        (_without("tile"), "a whole store.json in .*, got none that can be read of `tile`. Make the store anew"),
        (_without("layers"), "a whole store.json in .*, got none that can be read of `layers`"),
        (_text("ledger-0.jsonl", "17\n"), "one JSON object a line in .*, got line 1, which is none. Delete that line"),
        (_text("ledger-0.jsonl", '{"tile": [0, 0]}\n'), "a line in .*, as stores write them, got line 1"),
        (_text("ledger-0.jsonl", '{"attempt": 0, "block": 0}\n'), "a line in .*, as stores write them, got line 1"),
        (_folder("ledger-0.jsonl"), "to read .*ledger-0.jsonl, got Is a directory. Remove what stands there"),
        (_folder("losses/c/1"), "KernelStore: expected to read .*losses.*, got Is a directory"),
        (_text("losses/c/1", "x"), "KernelStore: expected to read .*losses.*, got 23 bytes missing at the end. Check"),
    ],
)
def test_damage_is_named_when_a_store_is_opened(spoil: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, tile=TILE)
    spoil(path)
    with pytest.raises(pb.InputError, match=message):
        open_store(path)


def test_a_tile_that_is_cut_off_is_no_tile_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = fill(path, tile=TILE)
    (path / "total/c/1/1").write_bytes((path / "total/c/1/1").read_bytes()[:8])
    with pytest.raises(pb.InputError, match=r"a readable file for tile \(1, 1\), got an error .*64 bytes missing"):
        store.tile(1, 1)


@pytest.mark.parametrize(
    ("call", "number"),
    thinned(["replace", "mkdir", "write_text", "os.write", "zarr.open_group", "load"], [28, 13, 5]),
)
def test_errors_of_the_system_name_the_file_and_the_way_on(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call it is that fails; once it no longer does, the same call goes on."""
    remedy = {28: "Make room, then call again", 13: "Allow it to this", 5: "Check the disk"}[number]

    def failing(*args: object, **options: object) -> None:
        raise OSError(number, "the system's words")

    path = tmp_path / "store"
    target = {
        "os.write": "pullback.kernels.store.disk_format.os.write",
        "zarr.open_group": "zarr.open_group",
        "load": "pullback.kernels.store.fill_tiles.load",
    }.get(call, f"pathlib.Path.{call}")
    with monkeypatch.context() as patch:
        patch.setattr(target, failing)
        with pytest.raises(pb.InputError, match=f"kernel_to_store: expected to .*, got the system's words. {remedy}"):
            fill(path, tile=TILE)
    assert fill(path, tile=TILE).verify() == []


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pb.InputError, match="kernel_to_store: expected to .*, got Not a directory. Choose another"):
        fill(tmp_path / "file" / "store")
