"""``pullback watch``: the report of a run while it is written, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PORTS = 2**16  # of TCP


def command(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders with runs at any depth.")],
    host: Annotated[
        str, typer.Option(help="Address to bind; but for this machine alone, the page asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 takes a free one.")] = 7474,
) -> None:
    """Serve the report page of a run, or a list of runs, as they are written."""
    from pullback._checks import input_error

    if not 0 <= port < PORTS:
        raise input_error(
            "watch", f"a `--port` from 0 to {PORTS - 1}", str(port), "Pass another, 0 for any that is free"
        )
    try:
        from pullback.report.live.serve import serve
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("starlette", "uvicorn", "h11", "anyio"):
            raise
        remedy = "pip install 'pullback[watch]'"
        raise input_error("watch", f"the package {package}", "no such package", remedy) from None

    def say(address: str) -> None:
        typer.echo(f"Watching {', '.join(map(str, runs))} at {address}\nStop with Ctrl-C.")

    serve(runs, host, port, say)
