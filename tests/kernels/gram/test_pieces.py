"""Small parts by themselves: sums in pieces, sides of tiles, signs of projections, workers that are gone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pullback._text import DAY, count, duration, multiple
from pullback.gradients.capture.captured import _along
from pullback.gradients.rows.contract import Products
from pullback.gradients.rows.outer import OuterFactor
from pullback.kernels.gram.parts import Sums
from pullback.kernels.group.ranks import WorkerError
from pullback.kernels.group.workers import Workers
from pullback.kernels.plan.make import tile_rows
from tests.compare import assert_same


def test_sums_of_pieces_in_the_order_of_their_places() -> None:
    sums = Sums()
    last, first, alone = torch.tensor([3.0]), torch.tensor([1.0, 2.0]), torch.tensor([4.0])
    sums.add([("w", 2, last), ("b", 0, alone)])
    sums.add([("w", 0, first)])
    whole = sums.by_parameter()
    assert whole["w"].tolist() == [1.0, 2.0, 3.0]
    assert whole["b"] is alone


def test_shapes_of_blocks() -> None:
    shapes = [Products.of(2, 3, 4, contract).shape for contract in ("full", "trace", "diagonal")]  # type: ignore[arg-type]
    assert shapes == [(8, 12), (2, 3), (4, 2, 3)]


@pytest.mark.parametrize(
    ("samples", "outputs", "positions", "form", "contract", "triangle", "rows"),
    [
        (100, 1, 1, "materialise", "full", True, 64),  # the smallest with which products are fast
        (800, 1, 1, "materialise", "full", True, 100),  # eight along a side
        (8000, 1, 1, "materialise", "full", True, 512),
        (100, 1, 1, "materialise", "full", False, 512),
        (100, 4, 1, "materialise", "full", False, 256),  # 1024 rows, where a sample has several
        (100, 4, 1, "materialise", "trace", False, 512),
        (100, 3000, 1, "materialise", "full", False, 1),
        (8000, 1, 10, "ghost", "full", True, 102),  # 1024 positions
        (8000, 1, 10, "shift", "full", True, 102),
        (8000, 1, 10, "materialise", "full", True, 512),
        (8000, 1, 2000, "ghost", "full", True, 1),
        (8000, 1, 1, "ghost", "full", True, 512),
    ],
)
def test_sides_of_tiles(
    samples: int, outputs: int, positions: int, form: Any, contract: Any, triangle: bool, rows: int
) -> None:
    inputs, gradients = torch.zeros(samples, positions, 1, 1), torch.zeros(samples, outputs, positions, 1, 1)
    factor = OuterFactor(inputs, gradients, "w", None, torch.Size([1, 1]))
    assert tile_rows(factor, form, outputs if contract == "full" else 1, triangle=triangle) == rows


def test_projections_take_every_number_once_with_a_sign() -> None:
    """Signs alone: of unit vectors they are read off; along any axis, and a sum of tensors is one of projections."""
    for size in (1, 5, 64):
        signs = torch.stack([_along(0, [row.unsqueeze(0)]) for row in torch.eye(size)]).flatten()
        assert set(signs.tolist()) <= {-1.0, 1.0}
        assert size < 64 or 16 < int((signs > 0).sum()) < 48
        assert signs.dtype == torch.float64
    x, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    for axis in range(3):
        moved = x.movedim(axis, 0).flatten(1)
        assert_same(_along(axis, [x]), _along(0, [moved]), 1e-14)
        assert_same(_along(axis, [x, y]), _along(axis, [x]) + _along(axis, [y]), 1e-13, scale=1.0)
    assert _along(0, [torch.tensor([2.0, -3.0])]).abs().tolist() == [2.0, 3.0]


class Line:
    """What the workers of one process say to each other: texts by rank, or an error for one that is gone."""

    def __init__(self, texts: dict[int, str | None]) -> None:
        self.texts, self.sent = texts, dict[int, str]()

    def recv(self, buffer: torch.Tensor, rank: int, group: Any) -> None:
        text = self.texts[rank]
        if text is None:
            raise RuntimeError("Connection closed by peer\nat line 3")
        data = list(text.encode())
        buffer[: len(data)] = torch.tensor(data, dtype=torch.uint8)

    def send(self, buffer: torch.Tensor, rank: int, group: Any) -> None:
        if self.texts[rank] == "deaf":
            raise RuntimeError("Broken pipe")
        self.sent[rank] = bytes(buffer.tolist()).rstrip(b"\0").decode()


@pytest.mark.parametrize(
    ("texts", "own", "verdict", "told"),
    [
        ({1: "", 2: ""}, "", "", [1, 2]),
        ({1: "", 2: "OSError: full"}, "", "an error in worker 2: OSError: full", [1, 2]),
        ({1: "A: a", 2: "B: b"}, "", "an error in worker 1: A: a", [1, 2]),
        ({1: "A: a", 2: ""}, "C: c", "an error in worker 0: C: c", [1, 2]),
        ({1: None, 2: "B: b"}, "", "worker 1 gone (Connection closed by peer)", [2]),
        ({1: "A: a", 2: None}, "", "an error in worker 1: A: a", [1]),
    ],
)
def test_the_first_worker_tells_all_what_went_wrong(
    texts: dict[int, str | None], own: str, verdict: str, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, workers = Line(texts), Workers("fill", "Begin again")
    workers.count, workers._group = 3, object()
    monkeypatch.setattr(dist, "recv", line.recv)
    monkeypatch.setattr(dist, "send", line.send)
    assert workers._meet(own) == verdict
    if verdict and not own:
        with (
            pytest.raises(WorkerError, match="fill: expected all 3 workers to finish, got ") as caught,
            workers.phase(),
        ):
            pass
        assert str(caught.value).endswith(f"got {verdict}. Begin again.")
    assert line.sent == dict.fromkeys(told, verdict)


def test_the_others_tell_the_first_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers("fill", "Begin again")
    workers.count, workers.rank, workers._group = 3, 2, object()
    for text, said in (
        ("", ""),
        ("an error in worker 1: A", "an error in worker 1: A"),
        (None, "worker 0 gone (Connection closed by peer)"),
    ):
        line = Line({0: text})
        monkeypatch.setattr(dist, "recv", line.recv)
        monkeypatch.setattr(dist, "send", line.send)
        assert workers._meet("mine") == said
        assert line.sent == {0: "mine"}


def test_long_messages_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    line, workers = Line({0: ""}), Workers("fill", "")
    workers.count, workers.rank, workers._group = 2, 1, object()
    monkeypatch.setattr(dist, "recv", line.recv)
    monkeypatch.setattr(dist, "send", line.send)
    workers._meet("x" * 3000)
    assert line.sent == {0: "x" * 2048}


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.034, "0.034"), (3.44, "3.4"), (99.4, "99"), (99.6, "100"), (544.0, "540"), (55_499.0, "55,000"),
        (1e6, "more than a million"), (float("inf"), "more than a million"),
    ],
)  # fmt: skip
def test_multiples(ratio: float, text: str) -> None:
    assert multiple(ratio) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.00012, "0.12 ms"),
        (0.1, "100 ms"),
        (0, "0 s"),
        (3.21, "3.2 s"),
        (600, "10.0 min"),
        (2.5 * DAY, "60.0 h"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (3 * DAY, "3 days"),
        (999.4 * DAY, "999 days"),
        (1000 * DAY, "2.74 years"),
        (1e10, "317 years"),
        (119, "119.0 s"),
        (120, "2.0 min"),
        (7199, "120.0 min"),
        (7200, "2.0 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (0.5, "0.5 B"), (999, "999 B"), (1000, "1 kB"), (2.5e12, "2.5 TB"), (1e6, "1 MB")]
)
def test_counts_with_a_prefix(number: float, text: str) -> None:
    assert count(number, "B") == text
