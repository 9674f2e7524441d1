"""What calls return: an answer together with its error, and how it looks. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pullback._checks import input_error
from pullback._hooks import viewers

ROOM = 300  # characters of a result in one line
WORD = 60  # of one of its values


class Shown:
    """What calls return: short as text, a card in a notebook.

    The card is drawn above, in ``pullback.views``, by the class; a class that has no drawing there lists its fields.
    """

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # a dataclass would write one that prints every tensor in full
            cls.__repr__ = Shown.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return brief(self)

    def _repr_html_(self) -> str:
        return viewers[0](self).html()


class Drawn(Shown):
    """A result with a picture."""

    __slots__ = ()

    def plot(self) -> Any:
        """The picture, a ``plotly.graph_objects.Figure``: notebooks draw it, ``.show()`` opens it in a browser."""
        return viewers[0](self).figure()


def brief(result: Any) -> str:
    """A dataclass in a line: its fields, each in a word, as far as there is room for them."""
    named = [each.name for each in fields(result) if each.repr] if is_dataclass(result) else []
    told, room = [], ROOM
    for name in named:
        told.append(f"{name}={word(getattr(result, name))}")
        room -= len(told[-1]) + 2
        if room < 0:
            told[-1:] = ["…"]
            break
    return f"{type(result).__name__}({', '.join(told)})"


def word(value: Any) -> str:
    """A value in a word: numbers as they are, what holds many by its size."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | int | str):
        return _cut(repr(value))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _cut(describe(value))
    if isinstance(value, Mapping):
        return f"{{{len(value)} entries}}"
    if isinstance(value, Sequence | set | frozenset):
        few = len(value) <= 4 and all(each is None or isinstance(each, bool | int | float | str) for each in value)
        return _cut(f"({', '.join(word(each) for each in value)})") if few else f"({len(value)} entries)"
    return f"{type(value).__name__}(…)"


def _cut(text: str) -> str:
    return text if len(text) <= WORD else f"{text[: WORD - 1]}…"


def to_frame(where: str, columns: Mapping[str, Iterable[Any]]) -> Any:
    """Columns as a ``pandas.DataFrame``.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise input_error(where, "pandas", "no such package", "Run `pip install 'pullback[pandas]'`") from None
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


@dataclass(frozen=True)
class Estimate(Drawn):
    """A random estimate with its standard error.

    Attributes:
        value: the estimate, a number or a tensor.
        stderr: its standard error, of the same shape. With few probes it is widened by Student's distribution, so that
            three of it cover what three of a normal standard error would.
        num_matvecs: products with the operator that were used.

    Example:
        >>> print(Estimate(12.3456, 0.0123, 40))
        12.346 ± 0.012 (40 products)
    """

    value: Any
    stderr: Any
    num_matvecs: int

    def __str__(self) -> str:
        cost = f"({self.num_matvecs} products)"
        if not isinstance(self.value, float):
            return f"{describe(self.value)} ± {describe(self.stderr)} {cost}"
        return f"{rounded(self.value, self.stderr)} ± {self.stderr:.2g} {cost}"


@dataclass(frozen=True)
class Solution(Shown):
    """The solution of a linear system with its error.

    Attributes:
        x: (n,), or (n, K) for K right-hand sides; of the right-hand side's kind (tensor or NumPy array).
        residual: |b - A x| / |b|, recomputed from x; the largest one of several right-hand sides.
        iterations: made; one product each (and one more for ``residual``).
        converged: whether ``residual`` reached the tolerance that was asked for.
        history: |b - A x| / |b| before the first and after every iteration, (iterations + 1,) or (iterations + 1, K).
        curvature: p^T A p / p^T p <= 0 of the search direction it stopped at with ``indefinite="stop"``; else None.

    Example:
        >>> print(Solution(x=None, residual=3.2e-7, iterations=12, converged=True, history=None))
        converged in 12 iterations, relative residual 3.2e-07
    """

    x: Any
    residual: float
    iterations: int
    converged: bool
    history: Any
    curvature: float | None = None

    def __str__(self) -> str:
        how = "converged in" if self.converged else "not converged after"
        return f"{how} {self.iterations} iterations, relative residual {self.residual:.2g}"


def rounded(value: float, stderr: float) -> str:
    """A number to the second digit of its standard error."""
    if not 0 < stderr < float("inf"):
        return f"{value:.6g}"
    places = 1 - int(f"{stderr:e}".split("e")[1])
    return f"{value:.{places}f}" if 0 <= places <= 12 else f"{value:.6g}"


def describe(values: Any) -> str:
    """A tensor in a word: its shape."""
    return f"tensor{tuple(values.shape)}"
