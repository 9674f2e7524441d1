"""What a loop shows at every step: every number comes back, in few bytes, whatever befalls the file."""

from __future__ import annotations

import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pullback as pb
from pullback.runs import RunWriter, load_run
from pullback.runs.course_block import HEADER, MAGIC, blocks, encoded
from pullback.runs.course_file import COURSE_FILE, Course
from pullback.runs.course_writer import BLOCK, PART, CourseWriter

NONE: dict[str, float] = {}


def write(folder: Path, given: dict[int, dict[str, float]], resume: int | None = None) -> Path:
    with RunWriter(folder, {}, resume=resume) as writer:
        for step, values in given.items():
            writer.course.add(step, values)
    return folder


def told(folder: Path, name: str = "loss") -> tuple[list[int], list[float]]:
    steps, values = load_run(folder).course(name)
    assert (steps.dtype, values.dtype) == (np.int64, np.float64)
    return steps.tolist(), values.tolist()


def test_every_step_of_a_short_run_to_the_last_digit(tmp_path: Path) -> None:
    losses = {step: 1 / step for step in range(1, 60)}
    folder = write(tmp_path / "run", {step: {"loss": loss} for step, loss in losses.items()})
    assert told(folder) == (list(losses), list(losses.values()))
    assert told(folder, "gradient_norm") == ([], [])


def test_a_run_without_any(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {})
    assert told(folder) == ([], [])
    assert not (folder / COURSE_FILE).exists()
    assert load_run(folder).courses.names() == []


def test_what_is_no_finite_number_is_not_what_was_not_given(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "run",
        {1: {"loss": math.nan}, 2: NONE, 3: {"loss": math.inf}, 7: {"loss": -math.inf}, 90: {"loss": 0.0}},
    )
    steps, values = load_run(folder).course("loss")
    assert steps.tolist() == [1, 3, 7, 90]
    np.testing.assert_array_equal(values, [math.nan, math.inf, -math.inf, 0.0])


def test_series_need_not_have_the_same_steps(tmp_path: Path) -> None:
    given = {s: {"loss": 1.0} if s % 3 else {"learning_rate": 0.1, "learning_rate.1": 0.2} for s in range(1, 40)}
    folder = write(tmp_path / "run", given)
    assert told(folder)[0] == [s for s in given if s % 3]
    assert told(folder, "learning_rate.1") == ([s for s in given if not s % 3], [0.2] * 13)
    assert load_run(folder).courses.names() == ["loss", "learning_rate", "learning_rate.1"]


@pytest.mark.parametrize("large", [1e300, 1e-300, 3.5e38, 5e-324])
def test_beyond_single_precision(tmp_path: Path, large: float) -> None:
    losses = np.random.default_rng(0).random(3 * BLOCK)
    losses[2 * BLOCK] = large
    folder = write(tmp_path / "run", {s: {"loss": float(loss)} for s, loss in enumerate(losses, start=1)})
    values = load_run(folder).course("loss")[1]
    assert values[2 * BLOCK] == large
    np.testing.assert_allclose(values, losses, rtol=2.0**-24)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2**40), st.floats(width=32)), min_size=1, max_size=300),
    st.sampled_from(["loss", "learning_rate.12"]),
)
def test_what_single_precision_holds_comes_back_to_the_bit(drawn: list[tuple[int, float]], name: str) -> None:
    steps = np.cumsum([step for step, _ in drawn])
    values = np.array([value for _, value in drawn])
    found = Course(encoded(name, steps, values)).of(name)
    np.testing.assert_array_equal(found[0], steps)
    np.testing.assert_array_equal(found[1], values)


def test_eight_bytes_a_step(tmp_path: Path) -> None:
    """Losses that fill their digits, gradient norms over decades, a rate that changes at every step.

    Blocks are all alike, so that a tenth of a million steps tells of a million: 8 MB.
    """
    count, rng = 100_000, np.random.default_rng(0)
    losses = np.exp(-np.arange(count) / 3e4) + 0.1 * rng.random(count)  # of a loop in double precision
    norms = np.exp(rng.normal(size=count)).astype(np.float32)
    rates = 0.05 * (1 + np.cos(np.arange(count) * math.pi / count))
    parts = []
    for start in range(0, count, BLOCK):
        part = slice(start, start + BLOCK)
        steps = np.arange(count)[part] + 1
        for name, values in (("loss", losses), ("gradient_norm", norms), ("learning_rate", rates)):
            parts.append(encoded(name, steps, values[part].astype(np.float64)))
    content = b"".join(parts)
    assert len(content) <= 8 * count
    steps, values = Course(content).of("loss")
    np.testing.assert_array_equal(steps, np.arange(count) + 1)
    np.testing.assert_allclose(values, losses, rtol=2.0**-24)
    np.testing.assert_array_equal(Course(content).of("gradient_norm")[1], norms)
    # what a reader does for each block is done by NumPy and zlib; it is the number of blocks that Python sees
    assert len(parts) == 3 * -(-count // BLOCK)


def test_blocks_grow_with_the_run_up_to_their_size(tmp_path: Path) -> None:
    """Of a killed process at most an eighth of the steps are lost, and at most ``BLOCK``; blocks are few."""
    writer, made, sizes = CourseWriter(tmp_path), 0, []
    for step in range(1, 12 * BLOCK):
        writer.add(step, {"loss": 0.5})
        written = sum(block.count for block, _ in blocks((tmp_path / COURSE_FILE).read_bytes())) if step < 200 else made
        assert step - written <= min(BLOCK, step / PART)
        made = step
    for block, _ in blocks((tmp_path / COURSE_FILE).read_bytes()):
        sizes.append(block.count)
    assert sizes == sorted(sizes)
    assert sizes[-1] == BLOCK
    assert len(sizes) < 80
    writer.close()
    assert Course.read(tmp_path).of("loss")[0].tolist() == list(range(1, 12 * BLOCK))


@pytest.mark.parametrize("cut", [1, 7, 21])
def test_a_torn_tail_is_cut(tmp_path: Path, cut: int) -> None:
    folder = write(tmp_path / "run", {step: {"loss": float(step)} for step in range(1, 8)})
    file = folder / COURSE_FILE
    os.truncate(file, file.stat().st_size - cut)
    assert told(folder) == ([1, 2, 3, 4, 5, 6], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    write(folder, {7: {"loss": 70.0}, 8: {"loss": 80.0}}, resume=6)
    assert told(folder) == ([1, 2, 3, 4, 5, 6, 7, 8], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0, 80.0])
    content = file.read_bytes()
    assert content.count(MAGIC) == sum(1 for _ in blocks(content))  # nothing is left of what was torn


def test_a_damaged_block_does_not_take_the_others_along(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {step: {"loss": float(step)} for step in range(1, 8)})
    content = bytearray((folder / COURSE_FILE).read_bytes())
    end = [end for _, end in blocks(bytes(content))][2]
    content[end - 1] ^= 1  # in what the third block holds
    (folder / COURSE_FILE).write_bytes(content)
    assert told(folder)[0] == [1, 2, 4, 5, 6, 7]
    content[end + len(MAGIC) + HEADER.size - 1] = 255  # the length of the fourth one's name
    (folder / COURSE_FILE).write_bytes(content)
    assert told(folder)[0] == [1, 2, 5, 6, 7]


def test_until_and_resumed_runs(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {step: {"loss": 1.0, "gradient_norm": 5.0} for step in range(1, 7)})
    write(folder, {step: {"loss": 2.0} for step in range(5, 7)}, resume=4)
    write(folder, {3: {"loss": 3.0}}, resume=2)
    assert told(folder) == ([1, 2, 3], [1.0, 1.0, 3.0])
    assert told(folder, "gradient_norm") == ([1, 2], [5.0, 5.0])
    assert load_run(folder).until(2).course("loss")[0].tolist() == [1, 2]
    assert load_run(folder).until(0).course("loss")[0].tolist() == []
    write(folder, {1: {"loss": 9.0}}, resume=0)
    assert told(folder) == ([1], [9.0])


def test_a_writer_that_is_not_closed_loses_nothing_and_a_forked_one_writes_nothing(tmp_path: Path) -> None:
    writer = CourseWriter(tmp_path)
    for step in range(1, 107):
        writer.add(step, {"loss": 1.0})
    assert len(Course.read(tmp_path).of("loss")[0]) < 106
    child = os.fork()
    if not child:
        writer.__del__()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(Course.read(tmp_path).of("loss")[0]) < 106
    del writer
    assert Course.read(tmp_path).of("loss")[0].tolist() == list(range(1, 107))


def test_a_run_is_read_as_it_stands(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.course.add(1, {"loss": 1.0})
        before = load_run(tmp_path / "run")
        writer.course.add(2, {"loss": 2.0})
        assert told(tmp_path / "run") == ([1, 2], [1.0, 2.0])
        assert before.course("loss")[0].tolist() == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_takes_it_later(tmp_path: Path) -> None:
    child = os.fork()
    if not child:  # the limit holds for a whole process
        os._exit(_full_then_not(tmp_path))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Course.read(tmp_path).of("loss")[0].tolist() == [1, 2, 3, 4]


def _full_then_not(folder: Path) -> int:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = CourseWriter(folder)
    writer.add(1, {"loss": 1.0})
    size = (folder / COURSE_FILE).stat().st_size
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, most))
    refused = 0
    for step in (2, 3):
        try:
            writer.add(step, {"loss": float(step)})
        except OSError:
            refused += (folder / COURSE_FILE).stat().st_size == size  # a part of a block is taken back
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    writer.add(4, {"loss": 4.0})
    writer.close()
    writer.close()
    return int(refused != 2)


def test_nothing_of_it_is_executed_or_trusted(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {1: {"loss": 1.0}})
    rng: Any = np.random.default_rng(0)
    for content in (b"", MAGIC, MAGIC * 9, rng.bytes(4000), MAGIC + rng.bytes(400)):
        (folder / COURSE_FILE).write_bytes(content)
        assert told(folder) == ([], [])
    assert pb.load_run(folder).records == ()
