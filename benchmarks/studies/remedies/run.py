"""Draws set-ups, tells what is wrong with each by outcome, and tries what ``pb.diagnose`` says to do.

Usage: python -m benchmarks.studies.remedies.run [--preset small|full|fresh] [--count K] [--out FOLDER]
       [--records FOLDER] [--leave-out] [--render]

Results are kept by set-up, so that a run that was stopped goes on where it stood; what the rules say is asked anew once
the package has changed, and what came of trainings is kept until the benchmark itself has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import environment
from benchmarks.studies.remedies import score
from benchmarks.studies.remedies.faults import FAULTS
from benchmarks.studies.remedies.setups import Drawn, draw, tiny
from benchmarks.studies.remedies.truth import Outcomes, truth
from benchmarks.studies.remedies.watching import Records, row

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FULL, FRESH = 300, 40
LOOKED_AT = 300  # set-ups, from the first, whose records were looked at when rules were changed
NOT_RECORDING = {"advisor", "controllers", "report", "theory"}  # parts of the package that no record depends on
TRAINING = ("setups", "faults", "data", "networks", "training")  # the files that say what a training is
MARK, END = "<!-- table:remedies -->", "<!-- /table -->"

Row = dict[str, Any]
Known = dict[str, dict[str, float]]


def digest(paths: Iterable[Path]) -> str:
    """Of sources: what they make is made anew when they change."""
    state = hashlib.sha256()
    for path in sorted(paths):
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def sources() -> dict[str, str]:
    """Digests of what trainings depend on, and of what else a row does."""
    training = [HERE / f"{name}.py" for name in TRAINING]
    others = [path for folder in (environment.ROOT / "pullback", HERE) for path in folder.rglob("*.py")]
    recorded = [
        *training,
        *(path for path in (environment.ROOT / "pullback").rglob("*.py") if not NOT_RECORDING & {*path.parts}),
    ]
    return {"trained_by": digest(training), "recorded_by": digest(recorded), "made_by": digest(others)}


def set_ups(preset: str, number: int, fresh_from: int = LOOKED_AT) -> list[Drawn]:
    first = fresh_from if preset == "fresh" else 0
    return tiny() if preset == "small" else [draw(each, FAULTS) for each in range(first, first + number)]


def result(drawn: Drawn, known: Known, records: Records | None = None) -> tuple[Row, Known]:
    """The row of a set-up, and what came of its trainings."""
    outcomes = Outcomes(known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what the monitor says on stderr is in the record too
        return row(drawn, truth(drawn, outcomes), outcomes, records), outcomes.known


def made(
    drawn: list[Drawn], known: dict[str, Known], processes: int, records: Records | None
) -> Iterator[tuple[Row, Known]]:
    """Results as they come; one thread a process."""
    tasks = [(each, known.get(str(each.number), {}), records) for each in drawn]
    if processes == 1:
        yield from map(_result, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_result, tasks)


def _result(task: tuple[Drawn, Known, Records | None]) -> tuple[Row, Known]:
    return result(*task)


def read(path: Path, now: dict[str, str]) -> tuple[dict[int, Row], dict[str, Known], float]:
    """Rows and outcomes that still hold with the sources as they are, and the minutes they took."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    known = kept.get("outcomes", {}) if kept.get("trained_by") == now["trained_by"] else {}
    rows = kept.get("rows", []) if known and kept.get("made_by") == now["made_by"] else []
    return {row["number"]: row for row in rows}, known, kept.get("minutes", 0.0) if known else 0.0


def write(path: Path, facts: Row, rows: dict[int, Row], known: dict[str, Known]) -> None:
    """All at once, so that a run that is stopped leaves a whole file."""
    kept = facts | {
        "rows": [rows[number] for number in sorted(rows)],
        "outcomes": {number: known[number] for number in sorted(known, key=int)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1) + "\n")
    part.replace(path)


def run(drawn: list[Drawn], path: Path, processes: int, folder: Path | None = None) -> list[Row]:
    """Make what is missing of the set-ups; all their rows."""
    now = sources()  # as they are when the program starts: they may be edited meanwhile
    described = environment.describe(1, ("scikit-learn",))
    rows, known, before = read(path, now)
    start = time.perf_counter()
    missing = [each for each in drawn if each.number not in rows]
    records = None if folder is None else Records(folder, now["recorded_by"])
    for found, outcomes in made(missing, known, processes, records):
        rows[found["number"]], known[str(found["number"])] = found, outcomes
        minutes = round(before + (time.perf_counter() - start) / 60, 1)
        write(path, {"environment": described, **now, "minutes": minutes}, rows, known)
        print(found["number"], told(found), flush=True)
    return [rows[each.number] for each in drawn]


def told(found: Row) -> str:
    """A row in a line."""
    setup, first = found["setup"], found.get("first")
    said = "nothing above info" if first is None else f"{first['name']} {first['change']} -> {found['did']}"
    skill = sum(found["skills"]) / len(found["skills"]) if found["skills"] else float("nan")
    twin = sum(found["twin"]) / len(found["twin"]) if found["twin"] else float("nan")
    where = f"{setup['kind']}, {setup['data']}, {setup['optimizer']} {setup['rate']:.1g}"
    return f"{where}; {found['planted']}: {found['verdict']} ({skill:.2f} of {twin:.2f}); {said}"


def counted(rows: list[Row]) -> str:
    """How many of each verdict."""
    counts: dict[str, int] = {}
    for each in rows:
        counts[each["verdict"]] = counts.get(each["verdict"], 0) + 1
    return ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items(), key=lambda each: -each[1]))


def measured(facts: Row, name: str) -> str:
    return (
        f"Measured {facts['date']} at commit {facts['commit']} on {facts['cpu']}, {facts['cores']} cores, one thread a "
        f"process; Python {facts['python']}, torch {facts['packages']['torch']}. Set-ups: "
        f"`studies/remedies/results/{name}.json`."
    )


def page(rows: list[Row], facts: Row, fresh: Sequence[Path] = ()) -> str:
    """The tables, in Markdown, and what they were measured on; first of set-ups at which nobody had looked."""
    parts = []
    for path in fresh:
        kept = json.loads(path.read_text())
        some: list[Row] = kept["rows"]
        title = f"Set-ups {some[0]['number']} to {some[-1]['number']}, at which nobody had looked"
        parts += [f"{title}: {counted(some)}.", score.summary(some), score.by_fault(some)]
        parts.append(measured(kept["environment"], path.stem))
    parts += [f"The first {len(rows)} set-ups, looked at: {counted(rows)}.", score.summary(rows)]
    return "\n\n".join([*parts, score.left_out(rows), score.by_fault(rows), measured(facts, "full")])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("small", "full", "fresh"), default="small")
    parser.add_argument("--count", type=int, help="set-ups, from the first of the preset")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--records", type=Path, help="keep the records of watched runs, and ask them where they still hold"
    )
    parser.add_argument("--processes", type=int, default=2, help="at once")
    parser.add_argument("--leave-out", action="store_true", help="print each data set and kind, left out in turn")
    parser.add_argument("--render", action="store_true", help="make nothing, only write the tables into README.md")
    parser.add_argument("--first", type=int, default=LOOKED_AT, help="of the set-ups of the preset fresh")
    options = parser.parse_args(arguments)
    later = options.preset == "fresh" and options.first != LOOKED_AT
    path = options.out / (f"fresh_{options.first}.json" if later else f"{options.preset}.json")
    count = options.count or (FRESH if options.preset == "fresh" else FULL)
    if not options.render:
        run(set_ups(options.preset, count, options.first), path, options.processes, options.records)
    kept = json.loads(path.read_text())
    rows, facts = kept["rows"][:count], kept["environment"]
    print(score.left_out(rows) if options.leave_out else page(rows, facts))
    if options.preset != "small" and options.out == RESULTS:
        kept = json.loads((RESULTS / "full.json").read_text())
        latest_first = sorted(RESULTS.glob("fresh*.json"), key=lambda each: each.stem, reverse=True)
        text = page(kept["rows"], kept["environment"], latest_first)
        readme = environment.README
        before, _, rest = readme.read_text().partition(MARK)
        readme.write_text(f"{before}{MARK}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
