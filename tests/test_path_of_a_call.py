"""A reader's way through the package does not get longer by itself."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.path_of_a_call import CALLS, counted, way

# Files met and returns to one that had been left, of the whole way and the inner one. Who shortens a way lowers them.
AT_MOST = {
    "backward_kernel": ((37, 57), (23, 28)),
    "backward_kernel in batches": ((42, 63), (25, 32)),
    "curvature_spectrum": ((39, 69), (25, 42)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_way_is_no_longer_than_it_was(name: str) -> None:
    for inner, most in zip((False, True), AT_MOST[name], strict=True):
        files, returns = counted(way(CALLS[name], inner=inner))
        assert files <= most[0], inner
        assert returns <= most[1], inner


def test_each_function_is_read_once() -> None:
    """A file that is met twice counts as one file and one return; a function that is called again as nothing."""
    assert counted(["a", "b", "a", "c"]) == (3, 1)
    stays = way(CALLS["backward_kernel"])
    assert stays[0] == "kernels/backward.py"
    assert all(a != b for a, b in pairwise(stays))
