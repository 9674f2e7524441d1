"""Plans of kernels past one machine: writes the table of ``docs/scale.md`` from shapes and stated rates.

Nothing is measured and nothing is allocated: all models are on the meta device. Takes a few minutes, for models of
tens of billions of parameters. Needs ``transformers``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.environment import RESULTS
from benchmarks.methods import models
from benchmarks.studies.scale.check import PAGE, fill
from pullback import InputError
from pullback._text import count, duration
from pullback.kernels.plan.rates import Rates
from pullback.kernels.plan_store import plan_store
from pullback.kernels.store.footprint import SMALLEST_TILE

CORE = Rates(gemm=1e11, bmm=8e10, stream=6e9, wire=1e9)  # a core of the machine of ``benchmarks/README.md``
A100 = Rates(gemm=0.5 * 312e12, bmm=0.25 * 312e12, stream=2e11, wire=50e9)  # half of bfloat16's peak, NVLink or HDR
CE = nn.CrossEntropyLoss(reduction="sum")


@dataclass(frozen=True)
class Row:
    """One plan.

    Args:
        name: of the model.
        build: makes it and two samples.
        covered: what of it the kernel is of.
        wanted: whether a parameter of that name is.
        num_samples: N.
        workers: W.
        rates: of one.
        memory_limit: bytes a worker has for the kernel.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    covered: str
    wanted: Callable[[str], bool]
    num_samples: int
    workers: int
    rates: Rates
    memory_limit: int


class CausalLM(nn.Module):
    """Scores of the next token, (N, V, T); with the mask in full, which the model then need not read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool).tril().expand(len(tokens), 1, T, T)
        return self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.transpose(1, 2)


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    return models.mlp()[0], torch.zeros(2, models.MLP_WIDTHS[0]), torch.zeros(2, dtype=torch.long)


def gpt2() -> tuple[nn.Module, Tensor, Tensor]:
    import transformers

    tokens = torch.zeros(2, 1024, dtype=torch.long)
    return CausalLM(transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()), tokens, tokens


def llama(length: int, hidden: int, inner: int, layers: int, heads: int) -> tuple[nn.Module, Tensor, Tensor]:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128256,
        head_dim=128,
        use_cache=False,
    )
    tokens = torch.zeros(2, length, dtype=torch.long)
    return CausalLM(transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()), tokens, tokens


def small(length: int) -> Callable[[], tuple[nn.Module, Tensor, Tensor]]:
    return lambda: llama(length, 4096, 14336, 32, 32)


def large(length: int) -> Callable[[], tuple[nn.Module, Tensor, Tensor]]:
    return lambda: llama(length, 8192, 28672, 80, 64)


def everything(name: str) -> bool:
    return True


def norms(name: str) -> bool:
    return "norm" in name


def last_output(name: str) -> bool:
    return name.endswith("layers.79.self_attn.o_proj.weight")


MILLION, CARD = 10**6, 80 * 10**9
ROWS = (
    Row("MLP 3072-128x5-10", mlp, "all", everything, 50_000, 1, CORE, 2 * 10**9),
    Row("MLP 3072-128x5-10", mlp, "all", everything, MILLION, 64, CORE, 2 * 10**9),
    Row("MLP 3072-128x5-10", mlp, "all", everything, MILLION, 8, A100, CARD),
    Row("GPT-2 (124 M), T = 1024", gpt2, "all", everything, 50_000, 8, A100, CARD),
    Row("GPT-2 (124 M), T = 1024", gpt2, "all", everything, MILLION, 1024, A100, CARD),
    Row("Llama 8 B, T = 512", small(512), "all", everything, MILLION, 1024, A100, CARD),
    Row("Llama 70 B, T = 512", large(512), "all", everything, MILLION, 1024, A100, CARD),
    Row("Llama 70 B, T = 4096", large(4096), "all", everything, MILLION, 1024, A100, CARD),
    Row("Llama 70 B, T = 4096", large(4096), "last output projection", last_output, MILLION, 1024, A100, CARD),
    Row("Llama 70 B, T = 4096", large(4096), "all norms", norms, MILLION, 1024, A100, CARD),
)


def main() -> None:
    found = []
    for row in ROWS:
        found.append(planned(row))
        print(found[-1]["name"], found[-1]["num_samples"], duration(found[-1]["seconds"]), flush=True)
    path = RESULTS / "scale_plans.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    text = table(found)
    fill(PAGE, "scale_plans", text)
    print(text)


def planned(row: Row) -> dict[str, Any]:
    """The numbers of one plan; with the smallest tiles a store chooses by itself, where none keeps the limit."""
    with torch.device("meta"):
        model, x, y = row.build()
    params = [name for name, _ in model.named_parameters() if row.wanted(name)]
    options: dict[str, Any] = {"num_samples": row.num_samples, "workers": row.workers, "rates": row.rates}
    try:
        scale = plan_store(model, CE, x, y, params=params, memory_limit=row.memory_limit, **options)
        fits = True
    except InputError as error:
        if "memory_limit" not in str(error):
            raise
        scale = plan_store(model, CE, x, y, params=params, tile=SMALLEST_TILE, **options)
        fits = False
    size = sum(p.numel() for name, p in model.named_parameters() if name in set(params))
    numbers = asdict(scale) | {"seconds": scale.seconds, "flops": scale.flops, "wire_bytes": scale.wire_bytes}
    return {"name": row.name, "covered": row.covered, "parameters": size, "fits": fits} | numbers


def table(rows: list[dict[str, Any]]) -> str:
    """All plans, in Markdown."""
    head = ["model", "of it", "N", "workers", "tile", "FLOP, passes", "FLOP, tiles", "captures a sample"]
    head += ["disk in all", "peak a worker", "to and from disk, a worker", "passes", "time"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * 2 + " ---: |" * (len(head) - 2)]
    for row in rows:
        passes = row["forward_flops"] + row["backward_flops"] + row["check_flops"]
        cells = [row["name"], f"{row['covered']}, {count(row['parameters'], '')}", f"{row['num_samples']:,}"]
        cells += [str(row["workers"]), str(row["tile"]), count(passes, ""), count(row["tile_flops"], "")]
        cells += [count(row["capture_bytes"], "B"), count(row["disk_bytes"], "B")]
        cells += [count(row["peak_bytes"], "B") + ("" if row["fits"] else " (!)"), count(row["wire_bytes"], "B")]
        cells += [f"{row['passes']:.3g}", duration(row["seconds"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
