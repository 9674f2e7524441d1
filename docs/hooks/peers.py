"""The table of docs/peers.md, from what the benchmarks stored: ``python docs/hooks/peers.py`` writes it anew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "peers.md"
MARKED = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)

# What each case is, in the page's words. A case with a peer that is not named here is an error.
CASES = {
    "mlp_kernel": "backward kernel, MLP, 2,048 samples",
    "conv_kernel": "backward kernel, three convolutions, 128 samples",
    "resnet_kernel": "backward kernel, ResNet-18, 256 samples",
    "gpt_kernel": "backward kernel, a small GPT-2",
    "mlp_tangent": "full tangent kernel, MLP, 512 samples",
    "conv_tangent": "trace tangent kernel, three convolutions, 128 samples",
    "hessian_product": "ten Hessian products, MLP",
    "gauss_newton_product": "ten Gauss-Newton products, MLP",
    "gpt_hessian": "Hessian products, a small GPT-2",
    "gauss_newton_eigs": "20 largest eigenpairs of Gauss-Newton, MLP",
    "fisher_spectrum": "whole spectrum of the empirical Fisher matrix, MLP",
    "self_influence": "influence of every sample on itself, conv net",
}
TOTAL_ALONE = ("NNGeometry",)  # has no blocks of layers, where ours are made too
FLOORS = ("gemm", "ordinary gradient", "eigvalsh", "eigh")  # parts of the work, no other way to do it


def table(results: Path = ROOT / "benchmarks" / "results") -> str:
    """A line a case: the fastest of our ways, the fastest peer, the leanest, and what theirs take of ours."""
    lines = [
        "| what | here, s | fastest peer | s | time, theirs over ours | memory, leanest peer's over ours |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for path in sorted(results.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        rows = {name: run["methods"][name] for name in run.get("reported", ())}
        ours = {name: row for name, row in rows.items() if name.startswith("pullback.")}
        peers = {name: row for name, row in rows.items() if name not in ours and not name.startswith(FLOORS)}
        peers = {name: row for name, row in peers.items() if "skipped" not in row}
        if not (ours and peers):
            continue
        lines.append(_line(CASES[path.stem], ours, peers))
        if "kernel" in path.stem and min(peers, key=lambda name: _seconds(peers[name])).startswith(TOTAL_ALONE):
            alike = {name: row for name, row in peers.items() if not name.startswith(TOTAL_ALONE)}
            lines.append(_line("the same, beside ways that give all layers too", ours, alike))
    return "\n".join(lines)


def _line(words: str, ours: dict[str, Any], peers: dict[str, Any]) -> str:
    mine = min(ours.values(), key=_seconds)
    fastest = min(peers, key=lambda name: _seconds(peers[name]))
    ratio = _seconds(peers[fastest]) / _seconds(mine)
    peaks = [row["peak_bytes"] for row in peers.values() if row.get("peak_bytes")]
    lean = f"{min(peaks) / mine['peak_bytes']:.2g}" if peaks and mine.get("peak_bytes") else ""
    name = re.sub(r"\[.*", "", fastest)
    return f"| {words} | {_seconds(mine):.3g} | {name} | {_seconds(peers[fastest]):.3g} | {ratio:.3g} | {lean} |"


def _seconds(row: dict[str, Any]) -> float:
    """Of the processor where that was measured, which other work on the machine changes little."""
    return float(row.get("median_processor_seconds", row["median_seconds"]))


if __name__ == "__main__":
    PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", PAGE.read_text(encoding="utf-8")))
