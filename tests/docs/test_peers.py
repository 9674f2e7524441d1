"""The page beside the peers shows what the benchmarks stored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def peers() -> object:
    spec = importlib.util.spec_from_file_location("peers", ROOT / "docs" / "hooks" / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_stored_results(peers) -> None:  # type: ignore[no-untyped-def]
    shown = peers.MARKED.search(peers.PAGE.read_text(encoding="utf-8"))
    assert shown[0] == f"{shown[1]}{peers.table()}\n{shown[2]}"


def test_a_line_compares_the_fastest_with_the_fastest(peers, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    methods = {
        "pullback.backward_kernel": {"median_seconds": 2.0, "peak_bytes": 100},
        "ordinary gradient": {"median_seconds": 0.1, "peak_bytes": 1},
        "NNGeometry GramMatrix": {"median_seconds": 3.0, "peak_bytes": 400},
        "slow[chunks of 3]": {"median_seconds": 8.0, "peak_bytes": 200},
        "left out": {"skipped": "it cannot"},
        "variant": {"median_seconds": 0.5},
    }
    run = {"methods": methods, "reported": list(methods)[:5]}
    (tmp_path / "mlp_kernel.json").write_text(json.dumps(run))
    assert peers.table(tmp_path).splitlines()[2:] == [
        "| backward kernel, MLP, 2,048 samples | 2 | NNGeometry GramMatrix | 3 | 1.5 | 2 |",
        "| the same, beside ways that give all layers too | 2 | slow | 8 | 4 | 2 |",
    ]
    (tmp_path / "unknown.json").write_text(json.dumps(run))
    with pytest.raises(KeyError, match="unknown"):
        peers.table(tmp_path)
