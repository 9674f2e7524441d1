"""One worker of a store: ``python -m tests.kernels.group.child PATH [HOW]``, RANK and WORLD_SIZE being set.

HOW is ``given`` (the caller has initialised torch.distributed, and worker 1 is always late), ``weights`` (worker 1 has
others), or a rank and an event of ``tests.kernels.store.child`` at which that worker kills itself, as in
``1/record:4``. An error is printed as its class and text.
"""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist

import pullback as pb
from pullback.kernels.store.fill_tiles import Filler
from pullback.kernels.store.kernel_to_store import kernel_to_store
from tests.kernels.store.child import TILE, arguments, arm


def late(step: str) -> None:
    """Begin a step of the work when the other worker has done its share."""
    work = getattr(Filler, step)

    def waiting(self: Filler) -> None:
        time.sleep(0.5)
        work(self)

    setattr(Filler, step, waiting)


def main(path: str, how: str) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    model, loss_fn, data = arguments()
    if how == "given":
        dist.init_process_group("gloo")
        if rank == "1":
            late("capture")
            late("fill")
    elif how == "weights" and rank == "1":
        with torch.no_grad():
            model[1].weight.mul_(2)
    elif how.startswith(rank + "/"):
        arm(how.partition("/")[2])
    try:
        store = kernel_to_store(model, loss_fn, data, path, tile=TILE, progress=False)
    except pb.PullbackError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(3)
    sys.stdout.write(f"finished {store.shape} {dist.is_initialized()}\n")
    if how == "given":
        dist.barrier()  # still usable
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
