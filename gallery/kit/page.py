"""What a page of the gallery is: a script that recomputes a published figure and holds its numbers to the paper's.

A page fills a ``Page`` through ``build(page)`` and ends in ``run(build)`` of ``kit.run``. Its numbers go to one table,
"paper, here, tolerance"; the run fails if one does not hold. A page is run at one of two sizes, "small" or "full".
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

import pullback as pb
from pullback import measure
from pullback._text import digits
from pullback.charts.chart import Chart, Table

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Row:
    """One number of a page beside the paper's.

    Attributes:
        quantity: what the number is.
        paper: the paper's number, or the bound that follows from its words, as shown.
        here: the number found.
        tolerance: what was allowed, as shown.
        holds: whether ``here`` is within it.
        source: where the paper's number comes from: a figure, a printed line, a closed form.
        not_reproduced: the reason, for a row that is known not to hold; empty for all others.
        computed: whether ``paper`` holds a number that the library computes by another route, and no printed one.
    """

    quantity: str
    paper: str
    here: float
    tolerance: str
    holds: bool
    source: str
    not_reproduced: str = ""
    computed: bool = False

    @property
    def verdict(self) -> str:
        """A word for the last column."""
        if self.not_reproduced:
            return "holds after all" if self.holds else "not reproduced"
        return "holds" if self.holds else "FAILS"

    @property
    def wrong(self) -> bool:
        """Whether the page must fail: a number is off, or one said to be off is not."""
        return self.holds == bool(self.not_reproduced)


class Page:
    """What a page says, draws and checks while its script runs.

    Args:
        name: of the script, without its ending.
        text: its docstring: the title in the first line, then claim and figure number, then definitions.
        preset: "small" (a processor, under a minute, run by CI) or "full".
    """

    def __init__(self, name: str, text: str, preset: str = "small") -> None:
        self.name, self.preset = name, preset
        title, _, self.text = inspect.cleandoc(text).partition("\n\n")
        self.title = title.rstrip(".")
        self.rows: list[Row] = []
        self.charts: list[Chart] = []
        self.tables: list[Table] = []
        self.settings: dict[str, Any] = {}
        self.seconds = math.nan

    def pick(self, *, small: Choice, full: Choice) -> Choice:
        """The value that belongs to the preset."""
        return full if self.preset == "full" else small

    def set(self, **settings: Any) -> None:
        """Note settings (seeds, sizes, rates), which are shown and stored with the numbers."""
        self.settings |= settings

    def row(
        self,
        quantity: str,
        paper: float,
        here: float,
        within: float,
        *,
        relative: bool = False,
        source: str = "",
        not_reproduced: str = "",
        computed: bool = False,
    ) -> None:
        """Compare a number with the paper's: ``|here - paper| <= within``, times ``|paper|`` if ``relative``.

        With ``computed`` the number is not the paper's but the library's own, by another route.
        """
        paper, here = float(paper), float(here)
        holds = abs(here - paper) <= (within * abs(paper) if relative else within)  # false for NaN
        shown = f"±{within:.2g} relative" if relative else (f"±{within:.2g}" if within else "exact")
        row = Row(quantity, digits(paper), here, shown, holds, source, not_reproduced, computed)
        self.rows.append(row)

    def measured(
        self,
        quantity: str,
        theory: float,
        value: float,
        stderr: float,
        *,
        at_most: float,
        relative: bool = True,
        floor: float = 0.0,
        source: str = "",
    ) -> None:
        """Compare a mean over networks with theory, within three standard errors that are not too wide to tell.

        Args:
            quantity: as of ``row``.
            theory: computed by the library.
            value: measured.
            stderr: its standard error.
            at_most: three standard errors may be, as a share of ``theory`` if ``relative``: beyond, nothing is shown.
            relative: whether it is a share.
            floor: what rounding leaves, where the standard error is smaller.
            source: as of ``row``.
        """
        theory, value, within = float(theory), float(value), max(3 * float(stderr), floor)
        holds = abs(value - theory) <= within and within <= at_most * (abs(theory) if relative else 1)
        shown = f"±{within:.2g}, at most {at_most:g}{' relative' if relative else ''}"
        self.rows.append(Row(quantity, digits(theory), value, shown, holds, source, computed=True))

    def at_most(
        self, quantity: str, limit: float, here: float, *, source: str = "", not_reproduced: str = "",
        computed: bool = False,
    ) -> None:  # fmt: skip
        """Hold a number to an upper bound."""
        holds = float(here) <= limit
        self.rows.append(Row(quantity, f"≤ {limit:g}", float(here), "bound", holds, source, not_reproduced, computed))

    def at_least(
        self, quantity: str, limit: float, here: float, *, source: str = "", not_reproduced: str = "",
        computed: bool = False,
    ) -> None:  # fmt: skip
        """Hold a number to a lower bound."""
        holds = float(here) >= limit
        self.rows.append(Row(quantity, f"≥ {limit:g}", float(here), "bound", holds, source, not_reproduced, computed))

    def mostly(
        self,
        what: str,
        pairs: Sequence[tuple[measure.Profile, Sequence[float]]],
        *,
        at_most: float,
        relative: bool = True,
        source: str = "",
    ) -> None:
        """Hold the share of measured numbers within three standard errors of theory to 95 percent.

        Args:
            what: the numbers, a plural.
            pairs: measurements, and theory of the same shape.
            at_most: three standard errors may be in the median, as a share of theory if ``relative``.
            relative: whether it is a share.
            source: as of ``row``.
        """
        known = torch.cat([torch.as_tensor(each, dtype=torch.float64).flatten() for _, each in pairs])
        value, stderr = (
            torch.cat([getattr(found, name).flatten() for found, _ in pairs]) for name in ("value", "stderr")
        )
        share = float(((value - known).abs() <= 3 * stderr).double().mean())  # NaN is not within
        width = float((3 * stderr / (known.abs() if relative else 1)).median())
        quantity = f"share of {len(known)} {what} within 3 standard errors"
        shown = f"bound; errors ±{width:.2g}, at most {at_most:g}{' relative' if relative else ''}"
        holds = share >= 0.95 and width <= at_most
        self.rows.append(Row(quantity, "≥ 0.95", share, shown, holds, source, computed=True))

    def draw(self, chart: Chart) -> None:
        """Add a figure; ``charts.py`` makes the usual ones."""
        self.charts.append(chart)

    def facts(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> None:
        """Add a table of facts, which are shown and not checked."""
        self.tables.append(Table(caption, tuple(header), [list(row) for row in rows]))

    def check(self) -> None:
        """Assert every row.

        Raises:
            SelfCheckError: a row does not hold, or one said not to be reproduced holds; or there are no rows.
        """
        if not self.rows:
            message = f"{self.name}: expected at least one number to check, got none. Add a row."
            raise pb.SelfCheckError(message)
        for row in self.rows:
            if row.wrong:
                expected = "no agreement" if row.not_reproduced else f"{row.paper} ({row.tolerance})"
                message = (
                    f"{self.name}: expected {expected} for {row.quantity!r}, got {row.here:.10g}. "
                    "Compare the page's other rows to find what is off."
                )
                raise pb.SelfCheckError(message)
