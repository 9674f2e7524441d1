"""Turns results into the tables of README.md, so that no number is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import BUSY

MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def table(result: dict[str, Any]) -> str:
    """One case: its methods, its targets and its environment, in Markdown."""
    rows = {method: result["methods"][method] for method in result["reported"]}
    with_memory = any("peak_bytes" in row for row in rows.values())
    first = next(iter(rows.values()))
    head = ["method", "median, s", "least, s", "calls", "time, relative"]
    head += ["peak memory, MB", "memory, relative"] if with_memory else []
    lines = [result["title"] + ".", "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for method, row in rows.items():
        cells = [
            method,
            f"{row['median_seconds']:.3g}",
            f"{row['min_seconds']:.3g}",
            str(len(row["seconds"])),
        ]
        cells.append(f"{row['median_seconds'] / first['median_seconds']:.3g}")
        if with_memory:
            peak, least = row.get("peak_bytes"), first.get("peak_bytes")
            cells.append("" if peak is None else f"{peak / 1e6:.0f}")
            cells.append("" if peak is None or least is None else f"{peak / least:.3g}")
        lines.append(_line(cells))
    lines += ["", *_notes(result), "", _line(["to reach", "reached", ""]), _line(["---", "---", "---"])]
    words = {True: "met", False: "**not met**", None: ""}
    lines += [_line([t["text"], t["reached"], words[t["met"]]]) for t in result["targets"]]
    return "\n".join([*lines, "", _environment(result["environment"])])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(result: dict[str, Any]) -> list[str]:
    notes, rows = [], {method: result["methods"][method] for method in result["reported"]}
    if result["scale"] != 1:
        notes.append(f"Number of samples scaled by {result['scale']:g}: a trial run, not a result.")
    if "gemm" in result["methods"] and "gemm_flops" in result:
        flops = result["gemm_flops"]
        rate = flops / result["methods"]["gemm"]["median_seconds"]
        notes.append(f"`gemm`: {flops / 1e9:.3g} GFLOP at {rate / 1e9:.3g} GFLOP/s.")
    if (others := max(row.get("others", 0) for row in result["methods"].values())) > BUSY:
        notes.append(f"Disturbed: other work took up to {others:.0%} of the machine during timed calls.")
        spent = {m: row["median_processor_seconds"] for m, row in rows.items() if "median_processor_seconds" in row}
        if spent:
            shown = ", ".join(f"`{method}` {seconds:.3g} s" for method, seconds in spent.items())
            notes.append(f"Processor time, median: {shown}.")
    whole = {m: row["process_peak_bytes"] for m, row in result["methods"].items() if "process_peak_bytes" in row}
    if whole:
        shown = ", ".join(f"`{method}` {peak / 1e6:.0f} MB" for method, peak in whole.items())
        notes.append(f"Highest resident memory of the whole process, imports and data included: {shown}.")
    for method, row in result["methods"].items():
        if "skipped" in row:
            notes.append(f"`{method}` was skipped: {row['skipped']}.")
        elif "residual" in row:
            notes.append(_accuracy(method, row, reported=method in result["reported"]))
        elif method not in result["reported"]:
            notes.append(f"Slower variant: {method}, {row['median_seconds']:.3g} s.")
    return ["- " + note for note in notes]


def _accuracy(method: str, row: dict[str, Any], *, reported: bool) -> str:
    missed = "" if row["reached"] else ", **missed**"
    products = "" if row["num_products"] is None else f", {row['num_products']} products"
    seconds = "" if reported else f", {row['median_seconds']:.3g} s"
    return f"{method}: residual {row['residual']:.1e}{missed}{products}{seconds}."


def _environment(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    return (
        f"Measured {facts['date']} at commit {facts['commit']} on {facts['cpu']}, {facts['cores']} cores, "
        f"{facts['threads']} threads, {facts['memory_gb']} GB; load before: {facts['load_before']}. "
        f"Python {facts['python']}, {packages}."
    )


def write_readme(results: Path, readme: Path) -> None:
    """Fill every ``<!-- table:NAME -->`` block from NAME.json; runs at another scale are not published."""

    def filled(match: re.Match[str]) -> str:
        path = results / f"{match[2]}.json"
        if match[2] in ("watching", "remedies"):  # written by their own scripts
            return match[0]
        text = table(json.loads(path.read_text())) if path.exists() else "Not measured yet."
        return f"{match[1]}{text}\n{match[3]}"

    readme.write_text(MARKED.sub(filled, readme.read_text()))
