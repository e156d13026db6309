"""The console as an ASGI application: pages, their streams, the login, and static files."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final
from urllib.parse import quote, urlsplit

from cotenant.console import login
from cotenant.console.api import Api, ApiFault, Shelf
from cotenant.console.assets import PREFIX, assets, version
from cotenant.console.live_updates import View, pieces, send_stream
from cotenant.console.model_colors import Palette
from cotenant.console.page_request import Visit, first_values
from cotenant.console.pages import FRAGMENTS, PAGES, Page, find_page
from cotenant.console.rendering import render, render_part
from cotenant.console.responses import (
    App,
    Receive,
    Scope,
    Send,
    accepts_gzip,
    send_body,
    send_html,
    send_redirect,
)

_log = logging.getLogger("cotenant.console")

_STREAM: Final = "/ui/stream"
_LOGIN: Final = "/login"
_LOGOUT: Final = "/logout"
_FOR_EVER: Final = b"public, max-age=31536000, immutable"


class Console:
    """Answers whoever looks. All that it shows or orders goes through `api`, as what its caller may."""

    def __init__(self, api: App, every_s: float = 1.0) -> None:
        self._api = api
        self._every_s = every_s
        self._shelf = Shelf()
        self._palette = Palette()
        self._closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        if path.startswith(PREFIX):
            await _send_asset(scope, send)
            return
        visit = self._visit(scope, receive)
        try:
            if path == _STREAM:
                await self._stream(visit, send)
            elif path == _LOGIN:
                await login.answer_login(visit, scope, send)
            elif path == _LOGOUT:
                await login.answer_logout(visit, send)
            elif (visit.method, path) in FRAGMENTS:
                await self._fragment(visit, scope, send)
            else:
                await self._page(visit, scope, send)
        except ApiFault as fault:
            if fault.needs_login:
                await send_redirect(send, f"{_LOGIN}?next={quote(visit.here, safe='')}")
            else:
                await self._fault(visit, scope, send, fault)

    def end_streams(self) -> None:
        """End the streams of open tabs, so that none of them holds up a shutdown."""
        self._closing.set()

    def _visit(self, scope: Scope, receive: Receive) -> Visit:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        query = first_values(scope.get("query_string", b"").decode("latin-1"))
        api = Api(self._api, scope, self._shelf)
        return Visit(method, raw_path(scope), query, api, receive, self._palette)

    async def _page(self, visit: Visit, scope: Scope, send: Send) -> None:
        found = find_page(visit.path)
        if found is None:
            raise ApiFault(404, "unknown_route", f"There is no page at {scope['path']}.")
        if visit.method != "GET":
            raise ApiFault(405, "method_not_allowed", "This page is only looked at.")
        page, visit.name = found
        await _learn_session(visit)
        view = await page.show(visit)
        html = render(view.template, self._facts(visit, page, view))
        await send_html(send, view.status, html, packed=accepts_gzip(scope["headers"]))

    def _facts(self, visit: Visit, page: Page | None, view: View) -> dict[str, Any]:
        return {
            "navigation": [(each.path, each.label) for each in PAGES if each.label],
            "current": page.path if page else "",
            "here": visit.here,
            "stream": f"{_STREAM}?at={quote(visit.here, safe='')}" if view.parts else "",
            "csrf": visit.csrf,
            "signed_in": visit.signed_in,
            "query": visit.query,
            "parts": view.parts,
            **view.facts,
        }

    async def _fragment(self, visit: Visit, scope: Scope, send: Send) -> None:
        if visit.method != "GET":
            await visit.read_form()
        try:
            view = await FRAGMENTS[visit.method, scope["path"]](visit)
        except ApiFault as fault:
            if fault.needs_login:
                raise
            view = View("fault_piece.html", {"fault": fault}, status=fault.status)
        html = render(view.template, {"parts": view.parts, "query": visit.query, **view.facts})
        await send_html(send, view.status, html, packed=accepts_gzip(scope["headers"]))

    async def _stream(self, visit: Visit, send: Send) -> None:
        try:
            at = urlsplit(visit.query.get("at", ""))
            found = None if at.netloc else find_page(at.path)
        except ValueError:
            found = None
        if found is None:
            raise ApiFault(404, "unknown_route", "There is no page of that name to follow.")
        page, name = found
        watched = Visit("GET", at.path, first_values(at.query), visit.api, visit.receive, self._palette, name)
        events = pieces(lambda: page.show(watched), render_part, self._every_s)
        await send_stream(visit.receive, send, events, self._closing)

    async def _fault(self, visit: Visit, scope: Scope, send: Send, fault: ApiFault) -> None:
        view = View("fault.html", {"fault": fault}, status=fault.status)
        html = render(view.template, self._facts(visit, None, view))
        await send_html(send, view.status, html, packed=accepts_gzip(scope["headers"]))


def raw_path(scope: Scope) -> str:
    """Return the path as it was sent, so that a slash in a name can be told from one between names."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("latin-1").partition("?")[0]


async def _learn_session(visit: Visit) -> None:
    session = await visit.api.find("/api/session", {})
    visit.csrf = session.get("csrf")
    visit.signed_in = bool(session.get("signed_in"))


async def _send_asset(scope: Scope, send: Send) -> None:
    digest, _, path = scope["path"].removeprefix(PREFIX).partition("/")
    asset = assets().get(path)
    if asset is None:
        await send_body(send, 404, b"", ((b"content-type", b"text/plain"),))
        return
    tag = f'"{version()}"'.encode()
    # A page of an earlier version may name an address that is no more: what is there now is not kept for it.
    keep = _FOR_EVER if digest == version() else b"no-cache"
    head = [(b"etag", tag), (b"cache-control", keep), (b"vary", b"accept-encoding")]
    if any(name == b"if-none-match" and value == tag for name, value in scope["headers"]):
        await send_body(send, 304, b"", head)
        return
    body, head = asset.body, [(b"content-type", asset.content_type.encode()), *head]
    if accepts_gzip(scope["headers"]):
        body, head = asset.packed, [*head, (b"content-encoding", b"gzip")]
    await send_body(send, 200, body, head)
