"""The ASGI application: two kinds of pages to read, for those who may, and nothing else."""

from __future__ import annotations

import hmac
import ipaddress
import math
import socket
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from pullback.charts.document import served_scripts
from pullback.report.live.feed import GONE, Feed
from pullback.report.live.folders import Folders
from pullback.report.live.pages import Pages, path_of

MOST = 32  # connections at once
LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "pullback-watch"
RESTING = "x-pullback-resting"  # milliseconds for which no newer page will be made
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",  # the page's own stands in it
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def make_app(folders: Folders, host: str = "127.0.0.1", token: str | None = None, most: int = MOST) -> Any:
    """The application.

    ``/`` is the list of runs, or the run where only one was given; ``/run/NAME`` the page of one, ``/script/NAME`` a
    script of the pages. With ``?since=VERSION`` a page's address answers 204 while it is of that version.

    Args:
        folders: what may be read.
        host: address it is bound to. Requests must name it, or this machine, in their Host header: a page elsewhere
            whose name was made to lead here has another one.
        token: what requests must show, as ``?token=`` or in the cookie that this sets; None asks for none.
        most: requests at once; more are answered 503.
    """
    pages = Pages(folders)

    def home(request: Request) -> Response:
        only = pages.only()
        return _answer(request, pages.list) if only is None else RedirectResponse(f"/run/{path_of(only)}", 307)

    def run(request: Request) -> Response:
        feed = pages.of(request.path_params["name"])
        return PlainTextResponse("No run has this name.", 404) if feed is None else _answer(request, feed)

    def script(request: Request) -> Response:
        text = served_scripts().get(request.path_params["name"])
        if text is None:
            return PlainTextResponse("No script has this name.", 404)
        return Response(text, media_type="text/javascript", headers={"cache-control": "private, max-age=86400"})

    def in_thread(answer: Callable[[Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(answer, request)

        return endpoint

    addresses = {"/": home, "/run/{name:path}": run, "/script/{name}": script}
    app = Starlette(routes=[Route(address, in_thread(answer)) for address, answer in addresses.items()])
    app.router.redirect_slashes = False
    return _Guard(app, host, token, most)


def _answer(request: Request, feed: Feed) -> Response:
    """A page, or what is new of it, and when to ask again."""
    shown, since = feed.current(), request.query_params.get("since")
    if since is None:
        return HTMLResponse(shown.html) if shown.html else PlainTextResponse(shown.trouble, 404)
    if shown.trouble:
        return PlainTextResponse(shown.trouble, 410 if shown.trouble == GONE else 409)
    headers = {RESTING: str(math.ceil(1000 * feed.resting))}
    known = shown.version == since
    return Response(status_code=204, headers=headers) if known else HTMLResponse(shown.html, headers=headers)


class _Guard:
    """Lets requests through that read, name this server, show the token, and are not too many."""

    def __init__(self, app: Any, host: str, token: str | None, most: int) -> None:
        self.app, self.host, self.token, self.most = app, host, token, most
        self._names = set(LOOPBACK) | ({host.lower(), socket.gethostname().lower()} if host not in LOOPBACK else set())
        self._active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            request = Request(scope)
            self._active += 1
            try:
                response = self._refusal(request) or self._welcome(request) or self.app
                await response(scope, receive, _with_headers(send))
            finally:
                self._active -= 1
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, request: Request) -> Response | None:
        if self._active > self.most:
            return PlainTextResponse(f"At most {self.most} requests at once.", 503, {"retry-after": "1"})
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Nothing can be changed here.", 405, {"allow": "GET, HEAD"})
        if not self._is_named(request.headers.get("host", "")):
            return PlainTextResponse("The Host header names another server.", 421)
        given = request.query_params.get("token", request.cookies.get(COOKIE, ""))
        if self.token is not None and not hmac.compare_digest(given.encode(), self.token.encode()):
            return PlainTextResponse("Open the address that `pullback watch` printed, with its token.", 403)
        return None

    def _is_named(self, host: str) -> bool:
        """Whether this server goes by the name; bound elsewhere also by any address, which is no name."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = name.lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.host not in LOOPBACK

    def _welcome(self, request: Request) -> Response | None:
        """The token leaves the address, where others might read it, for a cookie."""
        if self.token is None or "token" not in request.query_params:
            return None
        response = RedirectResponse(request.url.path, 303)
        response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        return response


def _with_headers(send: Any) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            own = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
            message = message | {"headers": [*given, *own]}
        await send(message)

    return sending
