"""What an operator asks and orders: models, devices, decisions, logs.

    GET  /api/models                     GET  /api/models/NAME/why
    GET  /api/models/NAME                GET  /api/models/NAME/logs?tail=N&follow=1
    POST /api/models/NAME/load|unload|pin|unpin (?wait=0 returns at once)
    GET  /api/devices    GET  /api/events    POST /api/reload    GET /api/decisions?limit=N
    and what alerts, history, gpu_config, visitors and doctor answer

Slashes in names are written %2F; where nothing is ambiguous they may stand as they are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from cotenant.clock import Clock
from cotenant.domain.decisions import ModelStatus
from cotenant.domain.errors import BadSetting, CotenantError, UnknownModel, UnknownRoute
from cotenant.gateway.http.asgi import TEXT_TYPE, Receive, Scope, Send, send_body, send_json
from cotenant.gateway.http.model_list import admin_model, find_model
from cotenant.gateway.http.problems import BROKEN_CONFIGURATION, send_problem
from cotenant.gateway.http.request import ApiRequest, Routes, dispatch
from cotenant.gateway.http.streams import LiveStreams, merged
from cotenant.gateway.http.timing import Timing
from cotenant.gateway.inference.waiting import STREAM_HEADERS
from cotenant.gateway.operator.alerts import AlertRoutes
from cotenant.gateway.operator.decisions import DecisionFeed
from cotenant.gateway.operator.engine_logs import MAX_LINES, LogReader
from cotenant.gateway.services.responses import apply_events, gpus_response
from cotenant.gateway.services.routes import GpuConfigRoutes
from cotenant.interfaces import AlertBook, Operator, Router
from cotenant.services.operator import Services

_log = logging.getLogger("cotenant.gateway")

PREFIX: Final = "/api/"
_MODELS: Final = "/api/models"
_MODEL: Final = "/api/models/{name}"
_LINES: Final = 100
_DECISIONS: Final = 100
_MAX_DECISIONS: Final = 500
_FACTS: Final = tuple(field.name for field in fields(ModelStatus))
_ACTIONS: Final = frozenset({"why", "logs", "load", "unload", "pin", "unpin"})


class Admin:
    """Answers under /api. Without an operator it only lists the router's models."""

    def __init__(
        self,
        router: Router,
        operator: Operator | None,
        services: Services | None,
        streams: LiveStreams,
        clock: Clock,
        timing: Timing,
        alerts: AlertBook | None = None,
        more: Routes | None = None,
    ) -> None:
        self._router = router
        self._operator = operator
        self._services = services
        self._streams = streams
        self._story = DecisionFeed(clock)
        self._alerts = alerts
        self._told_alerts = AlertRoutes(alerts, self._story)
        self._timing = timing
        self._orders: set[asyncio.Task[None]] = set()
        self.routes: Routes = {
            _MODELS: {"GET": self._list},
            _MODEL: {"GET": self._one},
            f"{_MODEL}/why": {"GET": self._why},
            f"{_MODEL}/logs": {"GET": self._logs},
            f"{_MODEL}/load": {"POST": self._load},
            f"{_MODEL}/unload": {"POST": self._unload},
            f"{_MODEL}/pin": {"POST": partial(self._pin, pinned=True)},
            f"{_MODEL}/unpin": {"POST": partial(self._pin, pinned=False)},
            "/api/decisions": {"GET": self._decisions},
            "/api/devices": {"GET": self._devices},
            "/api/events": {"GET": self._events},
            "/api/reload": {"POST": self._reload},
            "/api/system/gpus": {"GET": self._gpus},
            **self._told_alerts.routes,
            **(more or {}),
            **GpuConfigRoutes(services).routes,
        }

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises UnknownRoute, Unauthorized, UnknownModel and what orders raise."""
        template, name = _split(scope)
        handlers = self.routes.get(template)
        if handlers is None:
            raise UnknownRoute(
                f"there is nothing at {scope['path']!r}", hint="The operator's API begins at /api/models."
            )
        await dispatch(ApiRequest(scope, receive, send, name), handlers)

    def close(self) -> None:
        """Give up orders that nobody waits for."""
        for order in self._orders:
            order.cancel()

    # Reading.

    async def _list(self, request: ApiRequest) -> None:
        statuses = self._statuses()
        models = [_described(admin_model(model), statuses.get(model.name)) for model in self._router.models()]
        await send_json(request.send, 200, {"models": models})

    async def _one(self, request: ApiRequest) -> None:
        await self._send_status(request, 200, request.name)

    async def _devices(self, request: ApiRequest) -> None:
        devices = [asdict(device) for device in self._needed(request).devices()]
        await send_json(request.send, 200, {"devices": devices})

    async def _gpus(self, request: ApiRequest) -> None:
        await send_json(
            request.send, 200, gpus_response(self._needed(request).devices()).model_dump(mode="json")
        )

    async def _why(self, request: ApiRequest) -> None:
        name = find_model(request.name, self._router.models()).name
        decisions = self._needed(request).why(name)
        if request.wants_text:
            await send_body(request.send, 200, self._story.as_text(decisions).encode(), TEXT_TYPE)
        else:
            told = [self._story.as_json(decision) for decision in decisions]
            await send_json(request.send, 200, {"model": name, "decisions": told})

    async def _decisions(self, request: ApiRequest) -> None:
        limit = request.whole("limit", _DECISIONS, _MAX_DECISIONS)
        decisions = self._needed(request).recent()
        told = [self._story.as_json(decision) for decision in decisions[max(0, len(decisions) - limit) :]]
        await send_json(request.send, 200, {"decisions": told})

    async def _logs(self, request: ApiRequest) -> None:
        operator = self._needed(request)
        name = find_model(request.name, self._router.models()).name
        tail = request.whole("tail", _LINES, MAX_LINES)
        follow = request.switch("follow", False)
        path = operator.log_path(name)
        if path is None:
            raise UnknownRoute(
                f"{name} has no log yet", hint="Its engine writes one when the model is loaded."
            )

        if follow and request.method == "GET":
            following = LogReader(partial(_log_path, operator, name), tail)
            await self._streams.run(
                request.receive, request.send, [TEXT_TYPE], following.follow(self._timing.log_poll_s)
            )
            return
        # The operator is asked in the event loop's thread alone.
        reader = LogReader(lambda: path, tail)
        try:
            text = await asyncio.to_thread(reader.read)
        finally:
            reader.close()
        await send_body(request.send, 200, text, TEXT_TYPE)

    async def _events(self, request: ApiRequest) -> None:
        if request.method == "HEAD":
            await send_body(request.send, 200, b"", *STREAM_HEADERS)
            return
        events = self._story.as_events(self._needed(request).decisions())
        if self._services is not None:
            events = merged(events, apply_events(self._services.changes()))
        if self._alerts is not None:
            events = merged(events, self._told_alerts.as_events(self._alerts.follow()))
        await self._streams.run(
            request.receive, request.send, STREAM_HEADERS, events, self._timing.heartbeat_s
        )

    # Ordering.

    async def _load(self, request: ApiRequest) -> None:
        await self._obey(request, "load", lambda operator, name: operator.load(name))

    async def _unload(self, request: ApiRequest) -> None:
        await self._obey(request, "unload", lambda operator, name: operator.unload(name))

    async def _obey(self, request: ApiRequest, what: str, order: Callable[[Operator, str], Any]) -> None:
        operator = self._needed(request)
        name = find_model(request.name, self._router.models()).name
        if request.switch("wait", True):
            await order(operator, name)
            await self._send_status(request, 200, name)
        else:
            self._set_about(order(operator, name), f"{what} {name}")
            await self._send_status(request, 202, name)

    async def _pin(self, request: ApiRequest, pinned: bool) -> None:
        operator = self._needed(request)
        name = find_model(request.name, self._router.models()).name
        operator.pin(name, pinned)
        await self._send_status(request, 200, name)

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

    async def _reload(self, request: ApiRequest) -> None:
        try:
            changed = await self._needed(request).reload()
        except BadSetting as error:
            whole = BadSetting("; ".join(error.complaints), hint=error.hint)
            await send_problem(request.send, whole, problem=BROKEN_CONFIGURATION)
            return
        await send_json(request.send, 200, {"changed": list(changed)})

    # What both need.

    def _needed(self, request: ApiRequest) -> Operator:
        if self._operator is None:
            raise UnknownRoute(
                f"there is nothing at {request.path!r} while one model is served by itself",
                hint="Serve several models from a configuration to load, unload and watch them.",
            )
        return self._operator

    def _statuses(self) -> Mapping[str, ModelStatus]:
        return {} if self._operator is None else {status.name: status for status in self._operator.statuses()}

    async def _send_status(self, request: ApiRequest, status: int, name: str) -> None:
        model = find_model(name, self._router.models())
        described = _described(admin_model(model), self._statuses().get(model.name))
        await send_json(request.send, status, described)


def _split(scope: Scope) -> tuple[str, str]:
    """Return the template of a path, and the model that it names, decoded; empty where it names none."""
    raw: str = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    rest = raw.removeprefix(_MODELS + "/")
    if rest in (raw, ""):
        return scope["path"], ""
    name, _, action = rest.rpartition("/")
    if name and action in _ACTIONS:
        return f"{_MODEL}/{action}", unquote(name)
    return _MODEL, unquote(rest)


def _described(model: dict[str, Any], status: ModelStatus | None) -> dict[str, Any]:
    """Join what a model is with how it does. Seconds without end are None, as JSON has no infinity."""
    if status is None:
        return model
    # As `asdict`, which copies every value: whoever watches hundreds of models asks every second.
    facts = {name: getattr(status, name) for name in _FACTS}
    facts["load"] = status.load and asdict(status.load)
    for name, value in facts.items():
        if isinstance(value, float) and not math.isfinite(value):
            facts[name] = None
    return {**model, **facts}


def _log_path(operator: Operator, name: str) -> Any:
    try:
        return operator.log_path(name)
    except UnknownModel:  # removed while its log is followed
        return None
