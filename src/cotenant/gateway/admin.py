"""What an operator asks and orders: models, devices, decisions, logs.

    GET  /api/models                     GET  /api/models/NAME/why
    GET  /api/models/NAME                GET  /api/models/NAME/logs?tail=N&follow=1
    POST /api/models/NAME/load|unload|pin|unpin (?wait=0 returns at once)
    GET  /api/devices    GET  /api/events    POST /api/reload

Slashes in names are written %2F; where nothing is ambiguous they may stand as they are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from cotenant.clock import Clock
from cotenant.domain.decisions import ModelStatus
from cotenant.domain.errors import (
    BadRequest,
    BadSetting,
    CotenantError,
    MethodNotAllowed,
    Unauthorized,
    UnknownModel,
    UnknownRoute,
)
from cotenant.gateway.asgi import TEXT_TYPE, Header, Receive, Scope, Send, send_body, send_json
from cotenant.gateway.catalogue import admin_model, find_model
from cotenant.gateway.engine_logs import MAX_LINES, LogReader
from cotenant.gateway.live import LiveStreams
from cotenant.gateway.problems import BROKEN_CONFIGURATION, send_problem
from cotenant.gateway.story import Story
from cotenant.gateway.timing import Timing
from cotenant.gateway.waiting import STREAM_HEADERS
from cotenant.interfaces import Operator, Router

_log = logging.getLogger("cotenant.gateway")

PREFIX: Final = "/api/"
_MODELS: Final = "/api/models"
_LINES: Final = 100
_LOOKS: Final = frozenset({"why", "logs"})
_ORDERS: Final = frozenset({"load", "unload", "pin", "unpin"})
_READ: Final[Header] = (b"allow", b"GET, HEAD")
_WRITE: Final[Header] = (b"allow", b"POST")

Answer = Callable[[], Awaitable[None]]


class Admin:
    """Answers under /api. Without an operator it only lists the router's models."""

    def __init__(
        self, router: Router, operator: Operator | None, streams: LiveStreams, clock: Clock, timing: Timing
    ) -> None:
        self._router = router
        self._operator = operator
        self._streams = streams
        self._story = Story(clock)
        self._timing = timing
        self._orders: set[asyncio.Task[None]] = set()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises UnknownRoute, MethodNotAllowed, UnknownModel and what orders raise."""
        path: str = scope["path"]
        ask = _Ask(scope, receive, send)
        name, action = _split(scope)
        if action in _ORDERS:
            await self._write(ask, partial(self._order, ask, name, action))
        elif path == "/api/reload":
            await self._write(ask, partial(self._reload, ask))
        elif action == "why":
            await _read(ask, partial(self._why, ask, name))
        elif action == "logs":
            await _read(ask, partial(self._logs, ask, name))
        elif path == "/api/events":
            await _read(ask, partial(self._events, ask))
        elif path == "/api/devices":
            await _read(ask, partial(self._devices, ask))
        elif path == _MODELS:
            await _read(ask, partial(self._list, ask))
        elif name:
            await _read(ask, partial(self._one, ask, name))
        else:
            raise UnknownRoute(
                f"there is nothing at {path!r}", hint="The operator's API begins at /api/models."
            )

    def close(self) -> None:
        """Give up orders that nobody waits for."""
        for order in self._orders:
            order.cancel()

    # Reading.

    async def _list(self, ask: _Ask) -> None:
        statuses = self._statuses()
        models = [_described(admin_model(model), statuses.get(model.name)) for model in self._router.models()]
        await send_json(ask.send, 200, {"models": models})

    async def _one(self, ask: _Ask, name: str) -> None:
        await self._send_status(ask, 200, name)

    async def _devices(self, ask: _Ask) -> None:
        devices = [asdict(device) for device in self._needed(ask).devices()]
        await send_json(ask.send, 200, {"devices": devices})

    async def _why(self, ask: _Ask, name: str) -> None:
        name = find_model(name, self._router.models()).name
        decisions = self._needed(ask).why(name)
        if ask.wants_text:
            await send_body(ask.send, 200, self._story.as_text(decisions).encode(), TEXT_TYPE)
        else:
            told = [self._story.as_json(decision) for decision in decisions]
            await send_json(ask.send, 200, {"model": name, "decisions": told})

    async def _logs(self, ask: _Ask, name: str) -> None:
        operator = self._needed(ask)
        name = find_model(name, self._router.models()).name
        tail = ask.whole("tail", _LINES, MAX_LINES)
        follow = ask.switch("follow", False)
        if operator.log_path(name) is None:
            raise UnknownRoute(
                f"{name} has no log yet", hint="Its engine writes one when the model is loaded."
            )

        reader = LogReader(partial(_log_path, operator, name), tail)
        if follow and ask.method == "GET":
            await self._streams.run(
                ask.receive, ask.send, [TEXT_TYPE], reader.follow(self._timing.log_poll_s)
            )
            return
        try:
            text = await asyncio.to_thread(reader.read)
        finally:
            reader.close()
        await send_body(ask.send, 200, text, TEXT_TYPE)

    async def _events(self, ask: _Ask) -> None:
        if ask.method == "HEAD":
            await send_body(ask.send, 200, b"", *STREAM_HEADERS)
            return
        events = self._story.as_events(self._needed(ask).decisions())
        await self._streams.run(ask.receive, ask.send, STREAM_HEADERS, events, self._timing.heartbeat_s)

    # Ordering.

    async def _order(self, ask: _Ask, name: str, action: str) -> None:
        operator = self._needed(ask)
        name = find_model(name, self._router.models()).name
        wait = ask.switch("wait", True)
        if action in ("pin", "unpin"):
            operator.pin(name, action == "pin")
        else:
            work = operator.load(name) if action == "load" else operator.unload(name)
            if not wait:
                self._set_about(work, f"{action} {name}")
                await self._send_status(ask, 202, name)
                return
            await work
        await self._send_status(ask, 200, name)

    def _set_about(self, work: Any, what: str) -> None:
        """Do what nobody waits for; how it ends is in the model's story and in the log."""

        async def see_through() -> None:
            try:
                await work
            except CotenantError as error:
                _log.warning("%s failed: %s", what, error.message)

        order = asyncio.create_task(see_through())
        self._orders.add(order)
        order.add_done_callback(self._orders.discard)

    async def _reload(self, ask: _Ask) -> None:
        try:
            changed = await self._needed(ask).reload()
        except BadSetting as error:
            whole = BadSetting("; ".join(error.complaints), hint=error.hint)
            await send_problem(ask.send, whole, problem=BROKEN_CONFIGURATION)
            return
        await send_json(ask.send, 200, {"changed": list(changed)})

    async def _write(self, ask: _Ask, answer: Answer) -> None:
        if ask.method != "POST":
            await refuse_method(ask.method, ask.path, _WRITE, ask.send)
            return
        ask.check_origin()
        await answer()

    # What both need.

    def _needed(self, ask: _Ask) -> Operator:
        if self._operator is None:
            raise UnknownRoute(
                f"there is nothing at {ask.path!r} while one model is served by itself",
                hint="Serve several models from a configuration to load, unload and watch them.",
            )
        return self._operator

    def _statuses(self) -> Mapping[str, ModelStatus]:
        return {} if self._operator is None else {status.name: status for status in self._operator.statuses()}

    async def _send_status(self, ask: _Ask, status: int, name: str) -> None:
        model = find_model(name, self._router.models())
        described = _described(admin_model(model), self._statuses().get(model.name))
        await send_json(ask.send, status, described)


class _Ask:
    """One request to the operator's API."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.receive = receive
        self.send = send
        self._headers = dict(scope["headers"])
        self._query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)

    @property
    def wants_text(self) -> bool:
        """Whether the client prefers plain text to JSON."""
        accept: bytes = self._headers.get(b"accept", b"")
        return accept.startswith(b"text/plain")

    def switch(self, name: str, default: bool) -> bool:
        """Read `?name=0` or `=1`. Raises BadRequest."""
        text: str = self._query.get(name, [str(int(default))])[-1]
        if text not in ("0", "1"):
            raise BadRequest(f"{name}={text[:40]!r} is not 0 or 1")
        return text == "1"

    def whole(self, name: str, default: int, most: int) -> int:
        """Read `?name=N`, at most `most`. Raises BadRequest."""
        text = self._query.get(name, [str(default)])[-1]
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise BadRequest(f"{name}={text[:40]!r} is not a whole number")
        return min(int(text), most)

    def check_origin(self) -> None:
        """Refuse a browser's page of another site: where no key is set, it could order for its reader.

        Raises Unauthorized.
        """
        origin = self._headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != self._headers.get(b"host"):
            raise Unauthorized(
                f"a page of {origin.decode('latin-1')[:80]} may not give orders here",
                hint="Use the console at this address, or the command line.",
            )


def _split(scope: Scope) -> tuple[str, str]:
    """Return the model that a path names, decoded, and what is asked of it; either may be empty."""
    raw: str = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    rest = raw.removeprefix(_MODELS + "/")
    if rest == raw:
        return "", ""
    name, _, action = rest.rpartition("/")
    if name and action in _LOOKS | _ORDERS:
        return unquote(name), action
    return unquote(rest), ""


def _described(model: dict[str, Any], status: ModelStatus | None) -> dict[str, Any]:
    """Join what a model is with how it does. Seconds without end are None, as JSON has no infinity."""
    if status is None:
        return model
    facts = asdict(status)
    for name, value in facts.items():
        if isinstance(value, float) and not math.isfinite(value):
            facts[name] = None
    return {**model, **facts}


def _log_path(operator: Operator, name: str) -> Any:
    try:
        return operator.log_path(name)
    except UnknownModel:  # removed while its log is followed
        return None


async def _read(ask: _Ask, answer: Answer) -> None:
    if ask.method in ("GET", "HEAD"):
        await answer()
    else:
        await refuse_method(ask.method, ask.path, _READ, ask.send)


async def refuse_method(method: str, path: str, allow: Header, send: Send) -> None:
    """Say that a path does not take a method, and which it takes."""
    error = MethodNotAllowed(f"{path} does not take {method}", hint=f"Use {allow[1].decode()}.")
    await send_problem(send, error, (allow,))
