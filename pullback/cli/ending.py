"""The end of a training in the terminal: what it came to, what was looked for, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pullback.cli.headline import HEADLINE, formatted

if TYPE_CHECKING:
    import pullback as pb

TOPICS = (
    "the data, the loop, the initial weights, the learning rate, the gradients of samples and of layers, the units, "
    "the batch size and how the loss falls"
)


def numbers_of(run: pb.Run) -> list[str]:
    """The last loss, and the diagnostics at the last measurement, a line each."""
    lines = []
    made, losses = run.course("loss")
    if len(losses):
        lines.append(f"Loss of the last step, {made[-1]}: {formatted(float(losses[-1]))}")
    lines.append("At the last measurement:")
    for name, label in HEADLINE.items():
        probe, _, metric = name.partition(".")
        steps, values = run.series(probe, metric)
        if values:
            lines.append(f"  {label:28} {formatted(values[-1]):>12}  (step {steps[-1]})")
    return lines


def verdict_of(run: pb.Run, findings: list[pb.Finding]) -> list[str]:
    """The findings, causes first and what follows from one beneath it, what they come to, and what was looked for."""
    from pullback.advisor import verdict
    from pullback.advisor.rules import RULES

    steps = len({record.step for record in run.of("cost")}) or len(run.steps)
    looked = f"Looked for {len(RULES)} kinds of fault in {steps} measurements: of {TOPICS}."
    told = [f"{'    ' if finding.because else '  '}{finding}" for finding in findings]
    return [*told, f"Verdict: {verdict(run, findings)}.", looked]


def next_command(context: typer.Context, out: Path, findings: list[pb.Finding]) -> str:
    """What to type next: the same call with the first cause's change in a folder of its own, where it is an option.

    Of a training without a fault, one that goes wrong, to see what is said of it.
    """
    wrong = [finding for finding in findings if finding.severity != "info"]
    if not wrong:
        return call_of(context, {"optimizer": "sgd", "lr": 3.0, "out": _beside(out, "too-fast")})
    option = changed_option(wrong[0].change, context.params)
    if not option:
        return f"pullback diagnose {shlex.quote(str(out))}"
    return call_of(context, {**option, "out": _beside(out, "changed")})


def changed_option(change: pb.Change | None, now: dict[str, Any]) -> dict[str, Any]:
    """A change as an option of the demo and its value; nothing where it has no such option."""
    if change is None:
        return {}
    match change.kind:
        case "learning_rate":
            return {"lr": float(f"{now['lr'] * change.value:.2g}")}
        case "activation" | "normalisation":
            return {change.kind: change.value}
        case "initialisation" if change.value != "critical":
            return {"init": change.value}
        case "residual":
            return {"residual": True}
    return {}


def call_of(context: typer.Context, changed: dict[str, Any]) -> str:
    """The call that was made, with other values of some options."""
    words = ["pullback", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE" and name != "force"
        if name in changed or given:
            value = changed.get(name, context.params.get(name))
            flag = parameter.opts[0]
            words += [flag] if value is True else [flag, shlex.quote(str(value))]
    return " ".join(words)


def _beside(out: Path, what: str) -> Path:
    """A free folder beside the run's."""
    places = (out.with_name(f"{out.name}-{what}{number}") for number in ("", *range(2, 1000)))
    return next(place for place in places if not place.exists())
