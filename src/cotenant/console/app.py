"""The console as an ASGI application: pages by path, their fragments and streams, the login, static files."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from cotenant.asgi import App, Header, Receive, Scope, Send, send_head, send_stream
from cotenant.console import analyse, gpu_configuration, keys, model, overview
from cotenant.console.api import Api, ApiFault, Refused, Reply, ResponseCache, SignedOut
from cotenant.console.live_updates import STREAM_HEADERS, Part, Rows, View, events_of
from cotenant.console.memory_bar import Palette
from cotenant.console.page_request import PageRequest, first_values
from cotenant.console.rendering import render, render_part
from cotenant.console.responses import (
    PREFIX,
    accepts_gzip,
    assets,
    send_body,
    send_html,
    send_redirect,
    version,
)
from cotenant.console.view_data import decision_part

Show = Callable[[PageRequest], Awaitable[View]]


async def _events(request: PageRequest) -> View:
    """Show decisions, newest first, and alerts. Raises ApiFault."""
    decisions = (await request.api.get("/api/decisions?limit=300"))["decisions"]
    alerts = await request.api.find("/api/alerts", {"active": [], "recent": []})
    recent = [
        Part(f"was-{number}", "alert_row.html", {"alert": alert})
        for number, alert in reversed(list(enumerate(alerts["recent"])))
    ]
    return View(
        "events.html",
        {"kinds": sorted({str(each["kind"]) for each in decisions})},
        {
            "events": Rows("events", [decision_part(each, "e") for each in reversed(decisions)]),
            "alerts": Rows("alert-history", recent),
        },
    )


async def _doctor(request: PageRequest) -> View:
    """Show the page; the findings take seconds and are requested separately."""
    return View("doctor.html", {"node": request.query.get("node", "")})


async def _doctor_findings(request: PageRequest) -> View:
    """Check a machine, or the daemon's, and show the findings by area, the worst first. Raises ApiFault."""
    node = request.query.get("node", "")
    path = f"/api/nodes/{quote(node, safe='')}/doctor" if node else "/api/doctor"
    report = await request.api.get(path)
    areas: dict[str, list[Mapping[str, Any]]] = {finding["area"]: [] for finding in report["findings"]}
    levels = ("problem", "warning", "unknown", "ok")
    for finding in sorted(report["findings"], key=lambda each: levels.index(each["level"])):
        areas[finding["area"]].append(finding)
    return View("doctor_findings.html", {"counts": report["counts"], "areas": areas.items()})


@dataclass(frozen=True, slots=True)
class Page:
    """A page: `path` may end in `{name}`, which matches the rest, including slashes.

    `label` is its entry in the navigation, None for none. `show` is called for the page and, for every open
    tab, once a second for its live parts.
    """

    path: str
    label: str | None
    show: Show


PAGES: Final[tuple[Page, ...]] = (
    Page("/", "Overview", overview.show),
    Page("/models/{name}", None, model.show),
    Page("/analyse", "Analyse", analyse.show),
    Page("/gpu-configuration", "GPU configuration", gpu_configuration.show),
    Page("/keys", "Keys", keys.show),
    Page("/events", "Events", _events),
    Page("/doctor", "Doctor", _doctor),
)

FRAGMENTS: Final[dict[tuple[str, str], Show]] = {
    ("GET", "/ui/fragments/doctor"): _doctor_findings,
    ("POST", "/ui/fragments/analyse"): analyse.plan,
    ("GET", "/ui/fragments/advice"): analyse.advice,
    ("POST", "/ui/fragments/advice"): analyse.advice,
    ("POST", "/ui/fragments/keys"): keys.add,
    ("POST", "/ui/fragments/gpu-configuration"): gpu_configuration.change,
    **{
        ("POST", f"/ui/fragments/gpu-configuration/{order}"): gpu_configuration.order
        for order in gpu_configuration.ORDERS
    },
}
"""Parts that pages load separately, by method and path; the parts of their View are not updated."""


def find_page(raw_path: str) -> tuple[Page, str] | None:
    """Return the page at an undecoded path, and the name in the path; None if there is none."""
    for page in PAGES:
        prefix, has_name, _ = page.path.partition("{name}")
        if raw_path == page.path or (has_name and raw_path.startswith(prefix) and raw_path != prefix):
            return page, unquote(raw_path.removeprefix(prefix))
    return None


_STREAM: Final = "/ui/stream"
_LOGIN: Final = "/login"
_LOGOUT: Final = "/logout"


class Console:
    """Serves the pages. All data comes from the API, requested with the caller's credentials."""

    def __init__(self, api: App, every_s: float = 1.0) -> None:
        self._api = api
        self._every_s = every_s
        self._cache: ResponseCache = {}
        self._palette = Palette()
        self._closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        if path.startswith(PREFIX):
            await _send_asset(scope, send)
            return
        request = self._request(scope, receive)
        try:
            if path == _STREAM:
                await self._stream(request, scope, send)
            elif path == _LOGIN:
                await answer_login(request, scope, send)
            elif path == _LOGOUT:
                await answer_logout(request, send)
            elif (request.method, path) in FRAGMENTS:
                await self._fragment(request, scope, send)
            else:
                await self._page(request, scope, send)
        except SignedOut:
            await send_redirect(send, f"{_LOGIN}?next={quote(request.here, safe='')}")
        except ApiFault as fault:
            await self._send_page(
                request, scope, send, View("fault.html", {"fault": fault}, status=fault.status)
            )

    def serves(self, scope: Scope) -> bool:
        """Whether something is at the path of a request."""
        path = scope["path"]
        if path.startswith(PREFIX) or path in (_STREAM, _LOGIN, _LOGOUT):
            return True
        return (scope["method"], path) in FRAGMENTS or find_page(_raw_path(scope)) is not None

    def end_streams(self) -> None:
        """End the streams of open tabs, so that they do not delay a shutdown."""
        self._closing.set()

    def _request(self, scope: Scope, receive: Receive) -> PageRequest:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = _raw_path(scope)
        query = first_values(scope.get("query_string", b"").decode("latin-1"))
        return PageRequest(method, path, query, Api(self._api, scope, self._cache), receive, self._palette)

    async def _page(self, request: PageRequest, scope: Scope, send: Send) -> None:
        found = find_page(request.path)
        if found is None:
            raise ApiFault(404, "unknown_route", f"There is no page at {scope['path']}.")
        if request.method != "GET":
            raise ApiFault(405, "method_not_allowed", "This page can only be read.")
        page, request.name = found
        request.session = await request.api.find("/api/session", {})
        await self._send_page(request, scope, send, await page.show(request), page.path)

    async def _send_page(
        self, request: PageRequest, scope: Scope, send: Send, view: View, current: str = ""
    ) -> None:
        facts = {
            "navigation": [(each.path, each.label) for each in PAGES if each.label],
            "current": current,
            "here": request.here,
            "stream": f"{_STREAM}?at={quote(request.here, safe='')}" if view.parts else "",
            "csrf": request.session.get("csrf"),
            "signed_in": bool(request.session.get("signed_in")),
            "query": request.query,
            "parts": view.parts,
            **view.facts,
        }
        await send_html(scope, send, render(view.template, facts), view.status)

    async def _fragment(self, request: PageRequest, scope: Scope, send: Send) -> None:
        if request.method != "GET":
            await request.read_form()
        try:
            view = await FRAGMENTS[request.method, scope["path"]](request)
        except ApiFault as fault:
            view = View("fault_piece.html", {"fault": fault}, status=fault.status)
        html = render(view.template, {"parts": view.parts, "query": request.query, **view.facts})
        await send_html(scope, send, html, view.status)

    async def _stream(self, request: PageRequest, scope: Scope, send: Send) -> None:
        try:
            at = urlsplit(request.query.get("at", ""))
            found = None if at.netloc else find_page(at.path)
        except ValueError:
            found = None
        if found is None:
            raise ApiFault(404, "unknown_route", "There is no such page to follow.")
        if scope["method"] == "HEAD":
            await send_head(send, STREAM_HEADERS)
            return
        page, name = found
        watched = replace(request, method="GET", path=at.path, query=first_values(at.query), name=name)
        events = events_of(lambda: page.show(watched), render_part, self._every_s)
        await send_stream(request.receive, send, STREAM_HEADERS, events, self._closing.wait)


def _raw_path(scope: Scope) -> str:
    """Return the undecoded path, in which a slash within a name is still encoded."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("latin-1").partition("?")[0]


async def _send_asset(scope: Scope, send: Send) -> None:
    digest, _, path = scope["path"].removeprefix(PREFIX).partition("/")
    asset = assets().get(path)
    if asset is None:
        await send_body(send, 404, b"", ((b"content-type", b"text/plain"),))
        return
    tag = f'"{version()}"'.encode()
    # A page of an earlier version may use an old URL: it gets the current file, but must not cache it.
    keep = b"public, max-age=31536000, immutable" if digest == version() else b"no-cache"
    head = [(b"etag", tag), (b"cache-control", keep), (b"vary", b"accept-encoding")]
    if any(name == b"if-none-match" and value == tag for name, value in scope["headers"]):
        await send_body(send, 304, b"", head)
        return
    body, head = asset.body, [(b"content-type", asset.content_type.encode()), *head]
    if accepts_gzip(scope["headers"]):
        body, head = asset.packed, [*head, (b"content-encoding", b"gzip")]
    await send_body(send, 200, body, head)


async def answer_login(request: PageRequest, scope: Scope, send: Send) -> None:
    """Show the form, or check the key and redirect to the requested page. Raises ApiFault."""
    wanted = own_page(request.query.get("next", "/"))
    fault: Refused | None = None
    if request.method == "POST":
        await request.read_form()
        wanted = own_page(request.form.get("next", "/"))
        reply = await request.api.send("POST", "/api/session", {"key": request.form.get("key", "")})
        try:
            reply.json()
        except Refused as refused:
            fault = refused
        else:
            await send_redirect(send, wanted, _cookies(reply))
            return
    else:
        session = await request.api.find("/api/session", {})
        if session.get("signed_in") or not session.get("needed", True):
            await send_redirect(send, wanted)
            return
    html = render("login.html", {"fault": fault, "next": wanted})
    await send_html(scope, send, html, fault.status if fault else 200)


async def answer_logout(request: PageRequest, send: Send) -> None:
    """End the session if the form has its token. Raises ApiFault."""
    if request.method != "POST":
        raise ApiFault(405, "method_not_allowed", "Sign out with the button.")
    await request.read_form()
    token = request.form.get("csrf", "").encode("latin-1", "replace")
    reply = await request.api.send("POST", "/api/session/end", headers=[(b"x-cotenant-csrf", token)])
    reply.json()
    await send_redirect(send, "/login", _cookies(reply))


def own_page(text: str) -> str:
    """Return the path to redirect to if it is on this daemon, else that of the overview."""
    sound = text.startswith("/") and not text.startswith(("//", "/\\", "/login", "/logout"))
    return text if sound and text.isprintable() and text.isascii() else "/"


def _cookies(reply: Reply) -> list[Header]:
    return [(name, value) for name, value in reply.headers if name == b"set-cookie"]
