"""Stores of sketched kernels: the estimates of ``sketch_kernel``, tile by tile, whichever run made them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.kernels.sketch import sketched_rows
from pullback.kernels.sketch.project import project_matrix
from pullback.kernels.sketch.sketched_rows import SketchFactor
from pullback.kernels.store import sketching as store_sketch
from pullback.kernels.store.fill_tiles import Filler
from pullback.kernels.store.kernel_to_store import kernel_to_store, open_store
from pullback.kernels.store.sketching import Sketching
from tests.cases import CASES, Case, build
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SMALL = pb.Sketch(4, 5, 3, "smaller")
CHEAPER = pb.Sketch(4, 8, 1)


def wide(n: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """Positions, and layers of which two are dear enough to be sketched."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 48), nn.LayerNorm(48), nn.Linear(48, 2))
    return model.to(dtype), nn.MSELoss(), (torch.randn(n, 30, 64, dtype=dtype), torch.randn(n, 30, 2, dtype=dtype))


def make(path: Path, model: nn.Module, loss_fn: Any, data: Any, **options: Any) -> Any:
    defaults: dict[str, Any] = {"progress": False, "sketch": CHEAPER}
    return kernel_to_store(model, loss_fn, data, path, **defaults | options)


def contents(path: Path) -> dict[str, bytes]:
    """Every array file of a store."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if "c" in f.parts and f.is_file()}


@pytest.mark.parametrize("case", thinned(CASES))
def test_equals_sketch_kernel(case: Case, tmp_path: Path) -> None:
    """Total and every layer's summary; the last block is smaller."""
    model, loss_fn, x, y = build(case, 7)
    kernel = pb.sketch_kernel(model, loss_fn, x, y, size=4, repeats=5, seed=3, exact="smaller")
    store = make(tmp_path, model, loss_fn, (x, y), tile=4, sketch=SMALL)
    size = max(float(kernel.total.abs().max()), 1e-12)
    assert_same(store.to_dense(), kernel.total, scale=size)
    assert store.exact_layers == kernel.exact_layers
    assert list(store.layers) == list(kernel.layers)
    assert_same(store.layer_diagonals(), torch.stack([k.diagonal() for k in kernel.layers.values()]), scale=size)
    for name, layer in kernel.layers.items():
        assert store.layers[name].trace == pytest.approx(float(layer.trace()), abs=1e-9 * size)
        assert store.layers[name].sum == pytest.approx(float(layer.sum()), abs=1e-9 * size)
        # the norm is the root of an inner product: what rounding leaves of a zero is larger
        assert store.layers[name].frobenius_norm == pytest.approx(float(layer.norm()), abs=1e-6 * size)


@pytest.mark.parametrize("case", thinned(CASES))
def test_a_sample_alone(case: Case, tmp_path: Path) -> None:
    """As the last block and as every block, against the kernel between all samples and that one."""
    model, loss_fn, x, y = build(case, 7)
    tile = (3, 1)[CASES.index(case) % 2]
    last = [torch.utils._pytree.tree_map(lambda t: t[-1:], batch) for batch in (x, y)]
    kernel = pb.sketch_kernel(model, loss_fn, x, y, x2=last[0], y2=last[1], size=4, repeats=5, seed=3, exact="smaller")
    store = make(tmp_path, model, loss_fn, (x, y), tile=tile, sketch=SMALL)
    assert_same(store.rows(slice(None))[:, -1:], kernel.total, scale=max(float(kernel.total.abs().max()), 1e-12))


class Forked(nn.Module):
    """A layer whose use is not seen in batches with large inputs: its rows are formed there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.max() < 10:
            return self.layer(x)
        return torch.sin(torch.asin((x.unsqueeze(-2) * self.layer.weight).sum(-1) / 100)) * 100 + self.layer.bias


def test_blocks_that_are_written_down_in_two_ways(tmp_path: Path) -> None:
    """A weight with its bias in one, without it in the other, would have other projections."""
    model, x, y = Forked().double(), torch.randn(7, 20).double(), torch.randn(7, 10).double()
    x[-1, 0] = 20  # the last block
    templates: list[set[str]] = []
    choose = Sketching.choose.__func__  # type: ignore[attr-defined]

    def noting(cls: Any, settings: Any, captured: Any, count: int) -> Any:
        templates.extend({type(factor).__name__ for factor in each.factors} for each in captured)
        return choose(cls, settings, captured, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sketching, "choose", classmethod(noting))
        store = make(tmp_path, model, nn.MSELoss(), (x, y), tile=3, sketch=SMALL)
    assert templates[0] == {"OuterFactor"}
    assert templates[1] == {"DenseFactor"}
    settings: Any = {"size": 4, "repeats": 5, "seed": 3, "exact": "smaller"}
    kernel = pb.sketch_kernel(model, nn.MSELoss(), x[:-1], y[:-1], x2=x[-1:], y2=y[-1:], **settings)
    assert_same(store.rows(slice(0, 6))[:, -1:], kernel.total)
    dense = store.to_dense()
    assert float(torch.linalg.eigvalsh(dense).min()) > -1e-10 * float(dense.trace())  # one projection for all


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_default_choice_of_exact_layers(dtype: torch.dtype, tmp_path: Path) -> None:
    """By operations of the whole kernel, both kinds being there; blocks of two alone would be exact."""
    model, loss_fn, (x, y) = wide(12, dtype)
    assert len(pb.sketch_kernel(model, loss_fn, x[:2], y[:2], size=4, repeats=8).exact_layers) == 4
    store = make(tmp_path, model, loss_fn, (x, y), tile=2)
    kernel = pb.sketch_kernel(model, loss_fn, x, y, size=4, repeats=8, seed=1)
    assert store.exact_layers == kernel.exact_layers == ("3", "4")
    assert store.dtype == dtype
    assert_same(store.to_dense(), kernel.total)
    dense = store.to_dense()
    assert torch.equal(dense, dense.T)


def test_estimates_the_exact_kernel(tmp_path: Path) -> None:
    """Mean over seeds within four standard errors of it, and each seed within its interval at about the nominal rate.

    The errors are those ``sketch_kernel`` finds with the same settings, which the store does not keep.
    """
    model, loss_fn, (x, y) = wide(6)
    exact = reference.total_kernel(model, loss_fn, x, y)
    found, squares, inside = [], [], []
    for seed in range(6):
        found.append(
            make(tmp_path / str(seed), model, loss_fn, (x, y), tile=4, sketch=pb.Sketch(8, 16, seed, "smaller"))
        )
        kernel = pb.sketch_kernel(model, loss_fn, x, y, size=8, seed=seed, exact="smaller")
        low, high = kernel.interval()
        assert_same(found[-1].to_dense(), kernel.total)  # so that the interval is the store's too
        squares.append(kernel.stderr**2)
        inside.append((low <= exact) & (exact <= high))
    estimates = torch.stack([store.to_dense() for store in found])
    error = torch.stack(squares).mean(0).sqrt() / len(found) ** 0.5
    assert ((estimates.mean(0) - exact).abs() <= 4 * error).all()
    assert_different(estimates[0], exact, 1e-3)
    assert 0.85 <= float(torch.stack(inside).double().mean()) <= 0.99


def test_errors_of_some_samples(tmp_path: Path) -> None:
    """``sketch_kernel`` of some samples has the store's entries of these."""
    model, loss_fn, (x, y) = wide(9)
    store = make(tmp_path, model, loss_fn, (x, y), tile=4, sketch=SMALL)
    few = slice(2, 7)
    kernel = pb.sketch_kernel(model, loss_fn, x[few], y[few], size=4, repeats=5, seed=3, exact="smaller")
    assert_same(store.rows(few)[:, few], kernel.total)
    assert float(kernel.stderr.min()) > 0


def test_what_a_store_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = wide(12)
    make(tmp_path / "sketched", *arguments, tile=5, progress=True)
    said = "an estimate: 8 sketches of 4 x 4 (seed 1) of 2 of 4 layers"
    assert said in capsys.readouterr().err
    store = open_store(tmp_path / "sketched")
    assert store.sketch == CHEAPER
    assert repr(store) == (
        "KernelStore(12 x 12, torch.float64, cpu, an estimate by Sketch(size=4, repeats=8, seed=1, exact='cheaper'))"
    )
    assert said in str(store.plan)
    plain = make(tmp_path / "exact", *arguments, tile=5, sketch=None)
    assert plain.sketch is None
    assert plain.exact_layers == tuple(plain.layers) == ("0", "2", "3", "4")
    assert "estimate" not in repr(plain) + str(plain.plan)


def test_captures_are_the_sketched_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan counts their bytes: those of the files but for their headers."""
    sizes: dict[str, int] = {}
    finish = Filler.finish

    def counting(filler: Filler) -> None:
        sizes[filler.folder.path.name] = sum(f.stat().st_size for f in (filler.folder.path / "captures").iterdir())
        finish(filler)

    monkeypatch.setattr(Filler, "finish", counting)
    plans = {}
    for name, sketch in (("exact", None), ("sketched", CHEAPER)):
        plans[name] = make(tmp_path / name, *wide(300), tile=100, sketch=sketch).plan
        waiting = plans[name].disk_bytes - plans[name].finished_bytes
        assert waiting == pytest.approx(sizes[name], rel=0.25)
    assert plans["sketched"].capture_bytes < plans["exact"].capture_bytes / 3


def test_resumed_with_the_layers_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, although the choice of exact layers would come out otherwise now."""
    arguments = wide(12)
    whole = make(tmp_path / "whole", *arguments, tile=3)
    tile, left = Filler._tile, [4]

    def failing(filler: Filler, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return tile(filler, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Filler, "_tile", failing)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut", *arguments, tile=3)
    (tmp_path / "cut" / "captures" / "2.bin").unlink()
    with pytest.raises(pb.InputError, match="a finished store"):
        open_store(tmp_path / "cut")
    monkeypatch.setattr(store_sketch, "exact_parameters", lambda *_: tuple(dict(arguments[0].named_parameters())))
    resumed = make(tmp_path / "cut", *arguments)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert resumed.exact_layers == whole.exact_layers == ("3", "4")


def test_another_sketch_is_refused(tmp_path: Path) -> None:
    arguments = wide(6)
    make(tmp_path / "sketched", *arguments, tile=4)
    make(tmp_path / "exact", *arguments, tile=4, sketch=None)
    for other in (pb.Sketch(5, 8, 1), pb.Sketch(4, 9, 1), pb.Sketch(4, 8, 2), pb.Sketch(4, 8, 1, "smaller"), None):
        message = f"was begun with, {CHEAPER}, got {other}. Choose another path"
        with pytest.raises(pb.InputError, match="expected `sketch` the store at .*" + re.escape(message)):
            make(tmp_path / "sketched", *arguments, sketch=other)
    with pytest.raises(pb.InputError, match=r"expected `sketch` the store at .* was begun with, None, got Sketch"):
        make(tmp_path / "exact", *arguments)


def test_stores_begun_before_there_were_sketches(tmp_path: Path) -> None:
    arguments = wide(6)
    make(tmp_path, *arguments, tile=4, sketch=None)
    about = json.loads((tmp_path / "store.json").read_text())
    del about["sketch"], about["plan"]["sketched"]
    (tmp_path / "store.json").write_text(json.dumps(about))
    assert make(tmp_path, *arguments, sketch=None).sketch is None


@pytest.mark.parametrize("wrong", [64, "64", {"size": 64}, pb.Sketch])
def test_sketches_of_another_type(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match=r"expected `sketch` to be None or a pb.Sketch, got \w+"):
        make(tmp_path / "store", *wide(4), sketch=wrong)
    assert not (tmp_path / "store").exists()


def test_wrong_projections_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are compared with the sketch of the ordinary gradient, which is made apart."""
    wrong = lambda matrix, left, right: project_matrix(matrix, left.flip(1), right)
    monkeypatch.setattr(sketched_rows, "project_matrix", wrong)
    with pytest.raises(pb.SelfCheckError, match="the summed gradient of `0.weight` to agree"):
        make(tmp_path, *wide(6), tile=4)


def test_wrong_tiles_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of the tiles of sketched layers are compared with those of the sketched rows."""
    pieces = SketchFactor.pieces

    def doubled(factor: SketchFactor, *args: Any) -> Any:
        twice = {name: 2 * gradient for name, gradient in factor.gradients.items()}
        return pieces(SketchFactor(twice, covers=factor.covers), *args)

    monkeypatch.setattr(SketchFactor, "pieces", doubled)
    with pytest.raises(pb.SelfCheckError, match="the summed kernel of `0` to agree"):
        make(tmp_path, *wide(6), tile=4)


def test_under_autocast(tmp_path: Path) -> None:
    """Captured in the precision of autocast, sketched and multiplied in that of the factors."""
    model, loss_fn, (x, y) = wide(6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        store = make(tmp_path, model, loss_fn, (x, y), tile=4)
        kernel = pb.sketch_kernel(model, loss_fn, x, y, size=4, repeats=8, seed=1)
    assert store.dtype == kernel.total.dtype == torch.float32
    assert_same(store.to_dense(), kernel.total, 1e-5)


def test_a_memory_limit(tmp_path: Path) -> None:
    """Too small for any tile, it is refused with the bytes needed, those of the sketches on the way counted."""
    with pytest.raises(pb.InputError, match="a `memory_limit` of at least") as sketched:
        make(tmp_path / "a", *wide(30), memory_limit=1000)
    needed = int(str(sketched.value).split("at least ")[1].split()[0])
    store = make(tmp_path / "a", *wide(30), memory_limit=needed)
    assert store.plan.peak_bytes == needed
