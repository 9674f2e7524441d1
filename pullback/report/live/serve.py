"""Serves the pages until it is stopped."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pullback._checks import input_error
from pullback.report.live.app import LOOPBACK, MOST, make_app
from pullback.report.live.folders import Folders

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


def bounded(most: int) -> type[H11Protocol]:
    """The protocol of a server that holds so many connections at once, also silent ones; others are answered 503."""

    class Bounded(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.write(TOO_MANY)
                transport.close()
                return
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

    return Bounded


def serve(given: Sequence[str | Path], host: str, port: int, say: Callable[[str], object]) -> None:
    """Serve the pages of runs until the process is interrupted.

    Args:
        given: folders of runs, and folders with runs at any depth.
        host: address to bind; where it is none of this machine's own, requests must show a token, which is made here.
        port: to bind; 0 takes a free one.
        say: told the address once it answers.

    Raises:
        InputError: no folder; an address that cannot be bound.
    """
    folders = Folders(given)
    bound = _bound(host, port)
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    app = make_app(folders, host, token)
    # No request is logged: addresses may hold the token.
    config = uvicorn.Config(
        app, http=bounded(MOST), ws="none", loop="asyncio", access_log=False, log_level="error", server_header=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    with bound:
        say(address(host, bound.getsockname()[1], token))
        uvicorn.Server(config).run(sockets=[bound])


def address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    try:
        named = ipaddress.ip_address(host)
    except ValueError:
        name = host
    else:
        name = socket.gethostname() if named.is_unspecified else (f"[{host}]" if named.version == 6 else host)
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except (OSError, OverflowError) as error:
        remedy = "Pass another port=, 0 for any that is free, or another host="
        raise input_error("watch", f"an address to bind, {host}:{port}", str(error), remedy) from None
