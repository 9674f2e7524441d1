"""Plans of models on the meta device, and of kernels made by many workers."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from benchmarks.studies.scale.plans import CausalLM
from pullback._text import count
from pullback.functional import ModelView
from pullback.functional.readout import loss_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.kernels.group.workers import Workers
from pullback.kernels.plan.rates import Rates
from pullback.kernels.store.count_passes import count_passes
from pullback.kernels.store.grid import Grid
from pullback.kernels.store.kernel_to_store import kernel_to_store
from pullback.kernels.store.share import Share
from tests.cases import CASES, Case, build
from tests.thinned import thinned

RATES = Rates(gemm=1e11, bmm=5e10, stream=5e9, wire=1e9)
CE = nn.CrossEntropyLoss()
BY_TOKENS = ("tokens", "tied", "bags", "one_dict")  # how many tokens differ is not known from shapes
FUSED = ("sequence_first", "cross_attention", "recurrent", "gated")  # the CPU has calls of its own, which save more


def on_meta(case: Case) -> tuple[nn.Module, object, object, object]:
    with torch.device("meta"):
        return build(case, 3)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("case", thinned(CASES))
def test_meta_is_as_the_cpu(case: Case) -> None:
    """The same layers, forms, operations and bytes from shapes alone; where tokens decide, an upper bound."""
    options = {"num_samples": 1000, "workers": 3, "tile": 128, "rates": RATES}
    model, loss_fn, x, y = build(case, 3)
    real = pb.plan_kernel(model, loss_fn, x, y, num_samples=1000, rates=RATES)
    shapes = pb.plan_kernel(*on_meta(case), num_samples=1000, rates=RATES)
    for a, b in zip(real.layers, shapes.layers, strict=True):
        assert (a.parameters, a.rule, a.form) == (b.parameters, b.rule, b.form)
        assert a.flops == b.flops or (case.name in BY_TOKENS and a.flops < b.flops)
        if case.name not in BY_TOKENS:
            assert a.held_bytes == b.held_bytes
    assert real.block_bytes == shapes.block_bytes == 1000**2 * 8
    cpu, meta = pb.plan_store(model, loss_fn, x, y, **options), pb.plan_store(*on_meta(case), **options)
    assert cpu.forward_flops == meta.forward_flops > 0
    assert cpu.check_flops == meta.check_flops
    assert cpu.backward_flops == pytest.approx(meta.backward_flops, rel=0.1 if case.name in FUSED else 1e-12)
    if case.name in BY_TOKENS:
        assert cpu.capture_bytes <= meta.capture_bytes
        assert cpu.tile_flops <= meta.tile_flops
        return
    for name in ("tile_flops", "capture_bytes", "disk_bytes", "written_bytes", "read_bytes", "tile_bytes", "passes"):
        assert getattr(cpu, name) == getattr(meta, name), name
    assert cpu.tile_seconds == pytest.approx(meta.tile_seconds)
    if case.name not in FUSED:
        assert shapes.graph_bytes == pytest.approx(real.graph_bytes, rel=0.02)


def test_numbers_may_be_passed_with_shapes() -> None:
    """Real tokens and labels for a model on the meta device; one sample alone stands for many."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 3))
    x, y = torch.randint(50, (1, 6)), torch.tensor([1])
    plan = pb.plan_kernel(model, CE, x, y, num_samples=100, rates=RATES)
    assert plan.samples == (100, 100)
    assert [layer.rule for layer in plan.layers] == ["embedding", "linear"]
    assert plan.layers[0].flops == 100**2 * 6 * 8  # every token may be another one
    assert x.device.type == "cpu"


def passes_of(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    readout = loss_readout(loss_fn)
    captured = capture_factors(ModelView.of(model), readout, x, y, "test")
    found = count_passes(captured, readout, x, y, "test")
    return found.forward, found.backward, found.checks


def test_operations_of_an_mlp() -> None:
    """By hand: forwards 2 sum dp; backwards into all layers but the first; sums 2 sum dp and norms 2 sum (d + p)."""
    sizes = [(20, 16), (16, 16), (16, 3)]
    products = sum(2 * d * p for d, p in sizes)
    forward, backward, checks = passes_of(mlp(), CE, torch.randn(2, 20), torch.tensor([0, 1]))
    assert forward == products
    assert backward == 2 * sum(2 * d * p for d, p in sizes[1:])  # weighted and not; weight gradients are probed
    assert checks == products + sum(2 * (d + p) for d, p in sizes)
    scale = pb.plan_store(mlp(), CE, torch.randn(2, 20), torch.tensor([0, 1]), num_samples=400, tile=100, rates=RATES)
    assert scale.forward_flops == (400 + 4 * 4) * products  # of four blocks the first sample, and three again alone
    pair = 2 * sum(d + 1 + p for d, p in sizes)
    assert scale.tile_flops == (6 + 4) * 100**2 * pair  # squares of 100: those on the diagonal are made whole


def test_operations_of_a_convolution() -> None:
    """By hand: 2 T d p forwards, T positions and d = channels times taps."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 2))
    forward, backward, checks = passes_of(model, CE, torch.randn(2, 4, 8, 8), torch.tensor([0, 1]))
    T, d, p = 36, 36, 6
    assert forward == 2 * T * d * p + 2 * 216 * 2
    assert backward >= 2 * 216 * 2
    assert checks == 2 * (2 * T * d * p if T * (d + p) >= 2 * d * p else T * d * p + T * T * (d + p)) + 2 * (
        216 * 2 + 216 + 2
    )


def test_share_is_that_of_the_workers() -> None:
    """The busiest worker's tiles and reads, by the rule that shares them out."""
    grid = Grid(1000, 100)
    order = grid.tiles()
    costs = [0.5 if i == j else 1.0 for i, j in order]
    for W in (1, 2, 3, 7):
        shares = []
        for rank in range(W):
            workers = Workers("test", "")
            workers.rank, workers.count = rank, W
            shares.append(workers.share(order, costs))
        found = Share.of(grid, W)
        most = max(sum(0.5 if i == j else 1.0 for i, j in mine) for mine in shares)
        assert found.off + found.diagonal / 2 == pytest.approx(most)
        assert found.blocks == math.ceil(10 / W)
        assert found.tiles - 10 <= found.reads <= found.tiles + 1
    assert Share.of(grid, 1).tiles == 55
    assert Share.of(grid, 1).reads == 1 + 55 - 5  # one block a tile but on the diagonal of every other row
    many = Share.of(Grid(10**6, 64), 16)  # too many to share out one by one
    assert many.off + many.diagonal == pytest.approx(15625 * 15626 / 2 / 16)
    assert many.reads == many.tiles + 1


def test_the_plan_is_that_of_the_store(tmp_path: Path) -> None:
    """Tiles, bytes on disk and the peak are what ``kernel_to_store`` plans; captures are what it writes."""
    model, x, y = mlp(), torch.randn(300, 20), torch.randint(3, (300,))
    for tile in (None, 64):
        path = tmp_path / str(tile)
        store = kernel_to_store(model, CE, (x, y), path, tile=tile, progress=False)
        scale = pb.plan_store(model, CE, x[:2].clone(), y[:2], num_samples=300, tile=tile)
        counted = {"forward_flops", "backward_flops", "check_flops", "passes", "capture_seconds"}  # by plan_store alone
        for name, value in asdict(store.plan).items():
            if name in counted:
                assert value is None
                assert getattr(scale, name) > 0
            elif name != "peak_bytes":
                assert getattr(scale, name) == value, name
        assert scale.peak_bytes == pytest.approx(store.plan.peak_bytes, rel=0.01)
        entries = [json.loads(line) for file in path.glob("ledger-*") for line in file.read_text().splitlines()]
        written = sum(entry["bytes"] for entry in entries if "block" in entry)
        assert scale.written_bytes == pytest.approx(written, rel=0.25)  # headers weigh something in files this small
        chunks = sum(f.stat().st_size for f in (path / "total").rglob("*") if "c" in f.parts and f.is_file())
        assert scale.tile_bytes == chunks


def test_more_workers_take_less_time() -> None:
    """Halves of the tiles each, and the same bytes on the disk; a slower wire costs."""
    model, x, y = mlp(), torch.randn(2, 20), torch.tensor([0, 1])
    one, two, slow = (
        pb.plan_store(model, CE, x, y, num_samples=10**5, workers=workers, rates=rates)
        for workers, rates in ((1, RATES), (2, RATES), (2, replace(RATES, wire=1e7)))
    )
    assert two.tile_seconds == pytest.approx(one.tile_seconds / 2, rel=0.1)
    assert one.disk_bytes == two.disk_bytes
    assert two.wire_bytes < one.wire_bytes
    assert slow.seconds > 5 * two.seconds
    assert one.seconds == one.start_seconds + one.capture_seconds + one.tile_seconds
    assert one.flops == one.forward_flops + one.backward_flops + one.check_flops + one.tile_flops


def test_what_is_printed() -> None:
    scale = pb.plan_store(mlp(), CE, torch.randn(2, 20), torch.tensor([0, 1]), num_samples=10**6, workers=8)
    text = str(scale)
    assert f"1000000 samples in {scale.num_tiles} tiles of {scale.tile} x {scale.tile} on 8 workers" in text
    assert count(scale.tile_flops, "FLOP") in text
    assert count(scale.peak_bytes, "B") in text
    assert [count(n, "B") for n in (0, 0.5, 999, 2.5e12, 7e24)] == ["0 B", "0.5 B", "999 B", "2.5 TB", "7 YB"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_language_model_allocates_nothing() -> None:
    """A Llama of 32 layers and 2.2 billion parameters, 4.5 GB: planned with less than 300 MB."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=7168,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=128256,
        head_dim=128,
        use_cache=False,
    )
    with torch.device("meta"):
        model = CausalLM(transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval())
    x = torch.zeros(1, 512, dtype=torch.long)
    loss_fn = nn.CrossEntropyLoss(reduction="sum")
    pb.plan_kernel(nn.Linear(2, 1, device="meta"), nn.MSELoss(), torch.zeros(1, 2), torch.zeros(1, 1))
    before = resident()
    plan = pb.plan_kernel(model, loss_fn, x, x, num_samples=10**6, rates=RATES)
    scale = pb.plan_store(model, loss_fn, x, x, num_samples=10**6, workers=1024, tile=16, rates=RATES)
    assert resident() - before < 300e6
    weights = sum(p.numel() for p in model.parameters())
    assert scale.model_bytes == 2 * weights + 256 >= 4e9  # and the frequencies of its positions
    matrices = weights - 128256 * 2048  # the embedding has no products
    attention = 32 * 4 * 512 * 16 * 128  # scores and mixtures, a position
    assert scale.forward_flops / (10**6 + 4 * 62500) / 512 == pytest.approx(2 * matrices + attention, rel=0.02)
    assert len(plan.layers) == 32 * 9 + 3
    assert {layer.rule for layer in plan.layers} <= {"embedding", "linear", "elementwise", "rms_norm"}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_numbers_that_are_not_there() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    x, y = torch.ones(2, 2), torch.ones(2, 1)
    with pytest.raises(
        pb.UnsupportedError, match=r"no numbers, on the meta device, got `return .*` in forward \(test_"
    ):
        pb.plan_kernel(Reads().to("meta"), nn.MSELoss(), x, y)
    with pytest.raises(pb.InputError, match="a model with numbers in it, got tensors on the meta device"):
        pb.plan_kernel(Reads(), nn.MSELoss(), x.to("meta"), y)


def test_arguments_that_do_not_fit() -> None:
    model, x, y = mlp(), torch.randn(2, 20), torch.tensor([0, 1])
    for name in ("num_samples", "workers", "tile"):
        with pytest.raises(pb.InputError, match=f"plan_store: expected `{name}` above 0, got 0"):
            pb.plan_store(model, CE, x, y, **{name: 0})
    with pytest.raises(pb.InputError, match="plan_kernel: expected `num_samples` above 0, got 0"):
        pb.plan_kernel(model, CE, x, y, num_samples=0)
    with pytest.raises(pb.InputError, match="`rates` of the workers for a model on the meta device, got None"):
        pb.plan_store(mlp().to("meta"), CE, x, y, workers=2)
    with pytest.raises(pb.InputError, match=r"`memory_limit` of at least \d+ bytes for tiles of 16 samples, got 1000"):
        pb.plan_store(model, CE, x, y, num_samples=1000, memory_limit=1000)
    with pytest.raises(
        pb.InputError, match=r"at least \d+ bytes for tiles of 100 samples, got 1000. Raise the limit, or"
    ):
        pb.plan_store(model, CE, x, y, num_samples=1000, tile=100, memory_limit=1000)
    with pytest.raises(pb.InputError, match="Rates: expected `wire` above 0, got 0"):
        Rates(1, 1, 1, 0)


def test_an_error_of_the_model_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="same reduction dim"):
        pb.plan_kernel(mlp().to("meta"), CE, torch.randn(2, 19), torch.tensor([0, 1]))
