"""The changes that ``tests/mutations.py`` draws from: what they are, and what they leave alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutation.mutants import draw, mutants_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("x = a <= b", ["x = (a > b)"]),
        ("x = 0 < n", ["x = (0 >= n)", "x = 1 < n"]),
        ("x = len(a) < n", ["x = (len(a) >= n)", "x = (len(a) <= n)"]),
        ("x = a and not b", ["x = (a or not b)", "x = a and (b)"]),
        ("x = a + b * 2", ["x = (a - b * 2)", "x = a + (b / 2)", "x = a + b * 3"]),
        ("x = min(a.any(), 0.5)", ["x = max(a.any(), 0.5)", "x = min(a.all(), 0.5)", "x = min(a.any(), 1.0)"]),
        ("x = 1e-6, 40, True", ["x = 0.0001, 40, True", "x = 1e-6, 80, True", "x = 1e-6, 40, False"]),
        ("call(a)", ["pass"]),
        ("a.b += c", ["pass"]),
        ("a.b = c", ["pass"]),
        ("if ready: pass", ["if not (ready): pass"]),
        ('raise ValueError(f"{1 + 1}")', ["pass"]),
    ],
)
def test_changes_of_a_line(line: str, changes: list[str]) -> None:
    source = f"def f():\n    {line}\n"
    found = [mutant.applied(source).splitlines()[1].strip() for mutant in mutants_of("pullback/f.py", source)]
    assert sorted(found) == sorted(changes)


@pytest.mark.parametrize(
    "text",
    [
        '"""Of 3 words."""',
        "import a.b",
        "Batch = Tensor | dict",
        "x: Literal[1, 2]",
        'x = input_error(where, "at least 1", f"{n + 1}", "Pass 1")',
        'x = {"width": 3, "color": 1}',
        "@wrapped(3)\ndef f(a: int) -> int: ...",
        'if __name__ == "__main__":\n    main()',
    ],
)
def test_words_types_and_looks_are_left_alone(text: str) -> None:
    assert mutants_of("pullback/f.py", text + "\n") == []


def test_what_returns_a_number_or_a_truth_returns_a_constant() -> None:
    source = "def f() -> bool:\n    return g\n\n\ndef h() -> float:\n    return g\n"
    assert [mutant.after for mutant in mutants_of("pullback/f.py", source)] == ["False", "True", "0.0"]


def test_a_constant_is_watched_where_it_is_read_and_a_default_in_its_function() -> None:
    source = "LIMIT = 0.5\n\n\ndef f(n=3):\n    a(n)\n    b(n)\n"
    constant, default, *_ = mutants_of("pullback/f.py", source)
    assert (constant.uses, default.uses) == ("LIMIT", None)
    assert default.watch == range(5, 7)


@pytest.mark.slow
def test_a_draw_is_of_its_seed_and_every_change_can_be_compiled() -> None:
    first, again, other = (draw(ROOT, 40, seed, ["runs", "report"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({(mutant.path, mutant.line) for mutant in first}) == 40
    for mutant in first:
        source = (ROOT / mutant.path).read_text()
        assert ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    assert {mutant.package for mutant in first} == {"runs", "report"}
