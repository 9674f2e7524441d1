"""The way of a call through the package's files, as one who reads along meets it: ``python -m tests.path_of_a_call``.

Every function is read once, when it is first entered. Counted are the files met, and how often the way goes back to a
file it had left. What is only called again costs a reader nothing, and is not counted.

There are two counts. The whole way leaves out nothing but lambdas and comprehensions, which stand where they are
used. The inner way leaves out ``functional`` (how a model is called, no part of what is made of it) and the methods
Python calls by itself; lambdas are in it. Before the packages had rooms a batch's inner way was 26 files and 55
returns, the nearest to the 26 and 54 by which 16 and 15 were set as an aim; the whole way was 36 and 72. Other counts
(private functions, the ground, lambdas in or out, every entry or only the first) are further from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import pullback as pb
from pullback.kernels.plan import rates
from tests.conftest import RATES

ROOT = str(Path(pb.__file__).parent) + "/"


def way(call: Callable[[], Any], *, inner: bool = False) -> list[str]:
    """Files in the order in which functions that are new to a reader are entered, each stay once."""
    call()  # what is imported on the way is no part of it
    read: set[tuple[str, int]] = set()
    stays: list[str] = []

    def follow(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        here = code.co_filename, code.co_firstlineno
        if event != "call" or not here[0].startswith(ROOT) or here in read:
            return
        if (here[0].startswith(f"{ROOT}functional/") or code.co_name[:2] == "__") if inner else code.co_name[0] == "<":
            return
        read.add(here)
        if not stays or stays[-1] != here[0]:
            stays.append(here[0])

    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        call()
    finally:
        sys.setprofile(before)
    return [file.removeprefix(ROOT) for file in stays]


def counted(stays: list[str]) -> tuple[int, int]:
    """Files, and returns to one that had been left."""
    return len(set(stays)), len(stays) - len(set(stays))


def example(samples: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 70), nn.Tanh(), nn.Linear(70, 3))
    return model, nn.CrossEntropyLoss(), torch.randn(samples, 50), torch.arange(samples) % 3


def limited() -> pb.Kernel:
    """In batches: the least memory that is enough."""
    model, loss_fn, x, y = example(120)
    return pb.backward_kernel(model, loss_fn, x, y, memory_limit=10**6)


CALLS: dict[str, Callable[[], Any]] = {
    "backward_kernel": lambda: pb.backward_kernel(*example(6)),
    "backward_kernel in batches": limited,
    "curvature_spectrum": lambda: pb.curvature_spectrum(*example(6)[:2], example(6)[2:]),
}

if __name__ == "__main__":
    rates._rates = lambda *_: RATES  # type: ignore[assignment]  # as in all tests: a layer's form follows from them
    for name, call in CALLS.items():
        stays, (files, returns) = way(call), counted(way(call, inner=True))
        print(f"{name}: {counted(stays)[0]} files, {counted(stays)[1]} returns; inner: {files}, {returns}")
        print(f"   {' '.join(stays)}")
