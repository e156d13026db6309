"""The ASGI application: which path means what, and every fault as an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from cotenant.clock import Clock, SystemClock
from cotenant.domain.errors import CotenantError, ShuttingDown, UnknownRoute
from cotenant.gateway.access.access_control import SESSION, AccessControl
from cotenant.gateway.access.allowed_hosts import AllowedHosts
from cotenant.gateway.access.api_keys import ApiKeys
from cotenant.gateway.access.sessions import LoginAttempts, Sessions
from cotenant.gateway.http.asgi import TEXT_TYPE, Receive, Scope, Send, send_body, send_json
from cotenant.gateway.http.limits import Limits
from cotenant.gateway.http.model_list import find_model, openai_model
from cotenant.gateway.http.problems import send_problem
from cotenant.gateway.http.request import refuse_method
from cotenant.gateway.http.streams import LiveStreams
from cotenant.gateway.http.timing import Timing
from cotenant.gateway.inference.dialects import (
    TARGETS,
    ErrorForm,
    ErrorTranslator,
    anthropic_error,
    ollama_error,
)
from cotenant.gateway.inference.proxy import Exchange, Proxy
from cotenant.gateway.inference.request_log import RequestLog
from cotenant.gateway.ollama.api import BLOBS, OllamaApi
from cotenant.gateway.operator.doctor import Doctor
from cotenant.gateway.operator.models import PREFIX, Admin
from cotenant.gateway.plans.routes import PlanRoutes
from cotenant.gateway.telemetry.history import History
from cotenant.gateway.telemetry.metrics import Metrics
from cotenant.interfaces import AdvisorBook, AlertBook, Operator, Planner, Puller, Router
from cotenant.services.operator import Services

_log = logging.getLogger("cotenant.gateway")

_WELCOME: Final = (
    b"Cotenant serves language models behind an OpenAI-compatible API at /v1; /v1/models lists them.\n"
)
_ONE_OPENAI_MODEL: Final = "/v1/models/"
_HEALTH: Final = "/health"
_METRICS: Final = "/metrics"
_OPENAPI: Final = "/openapi.json"
_OPENAI: Final = "/v1"
_READ: Final = ("GET",)
_WRITE: Final = ("POST",)


App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Pages(Protocol):
    """What people look at. It needs no key: all it shows it asks of the gateway as its caller may."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        ...

    def end_streams(self) -> None:
        """End the responses that would never end by themselves."""
        ...


class Gateway:
    """Serves a router's models and, given operators, what they show and may be told.

    One instance belongs to one event loop. `clock` is the one by which the operator dates its decisions.
    `hosts` are names under which it may be asked beside those of local networks; `console` makes the pages,
    given the gateway to ask; `examine` looks the machine over, in a thread; `planner` plans without
    loading; `request_log` is told of every request to a model.
    """

    def __init__(
        self,
        router: Router,
        operator: Operator | None = None,
        *,
        services: Services | None = None,
        alerts: AlertBook | None = None,
        advisor: AdvisorBook | None = None,
        puller: Puller | None = None,
        api_keys: Sequence[str] = (),
        hosts: Sequence[str] = (),
        console: Callable[[App], Pages] | None = None,
        examine: Callable[[], Mapping[str, Any]] | None = None,
        planner: Planner | None = None,
        request_log: RequestLog | None = None,
        limits: Limits | None = None,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.limits = limits or Limits()
        timing = timing or Timing()
        self._router = router
        self._operator = operator
        now = (clock or SystemClock()).now
        self._visitors = AccessControl(
            ApiKeys(api_keys), AllowedHosts(hosts), Sessions(now), LoginAttempts(now)
        )
        self._console = console(self) if console else None
        self._proxy = Proxy(router, self.limits, timing, request_log)
        self._streams = LiveStreams()
        self._ollama = OllamaApi(self._proxy, operator, self._streams, puller)
        self._error_forms: dict[str, ErrorForm] = {
            **{path: anthropic_error for path, target in TARGETS.items() if target.in_anthropic},
            **dict.fromkeys(self._ollama.routes, ollama_error),
        }
        self._history = History(self._proxy.counters, operator)
        self._admin = Admin(
            router,
            operator,
            services,
            self._streams,
            clock or SystemClock(),
            timing,
            alerts,
            more={
                **self._history.routes,
                **self._visitors.routes,
                **Doctor(examine).routes,
                **PlanRoutes(planner, clock or SystemClock(), self.limits).routes,
            },
        )
        self._metrics = Metrics(self._proxy.counters, operator, alerts, advisor)
        self._tasks: list[asyncio.Task[None]] = []
        self._document: dict[str, Any] | None = None
        self._lists: dict[str, Callable[[], dict[str, Any]]] = {
            _HEALTH: self._health,
            "/v1/models": self._openai_models,
            _OPENAPI: self._openapi,
        }

    @property
    def routes(self) -> Mapping[str, Collection[str]]:
        """The templates of all paths, with their methods; requests to models aside."""
        own = (*self._lists, f"{_ONE_OPENAI_MODEL}{{name}}", _METRICS)
        return {**dict.fromkeys(own, _READ), **self._admin.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange: Exchange | None = None
        path = scope["path"]
        form = self._error_forms.get(BLOBS if path.startswith(BLOBS) else path)
        if form is not None:
            send = ErrorTranslator(send, form)
        try:
            headers = scope["headers"]
            self.limits.check_head(headers)
            target = TARGETS.get(path)
            if target is not None:
                self._visitors.check(scope, is_open=False)
            elif path != _HEALTH:
                self._visitors.check(scope, is_open=path == SESSION or self._is_page(path))
            if target is None:
                await self._answer(scope, receive, send)
            elif scope["method"] == "POST":
                exchange = Exchange(self._proxy, target, headers, receive, send)
                await exchange.run()
            else:
                await refuse_method(scope["method"], path, _WRITE, send)
        except CotenantError as error:
            await send_problem(send, error)
        except asyncio.CancelledError:
            if not _has_begun(exchange, send):
                await send_problem(send, ShuttingDown("the daemon is shutting down"))
            raise
        except Exception as error:
            _log.exception("request failed unexpectedly: path=%s", scope["path"])
            if not _has_begun(exchange, send):
                await send_problem(send, error)

    def open(self) -> None:
        """Begin to count what the operator decides, and to keep the history."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._history.run()))
        if self._proxy.request_log is not None:
            self._tasks.append(loop.create_task(self._proxy.request_log.run(self._router)))
        if self._operator is not None:
            self._tasks.append(loop.create_task(self._count(self._operator)))

    def end_streams(self) -> None:
        """End the responses that would never end by themselves: feeds, followed logs, open pages."""
        self._streams.end()
        if self._console is not None:
            self._console.end_streams()

    def close(self) -> None:
        """Close what connections to engines are idle, and stop counting."""
        self._proxy.pool.close()
        self._admin.close()
        for task in self._tasks:
            task.cancel()
        if self._proxy.request_log is not None:
            self._proxy.request_log.close(self._router)

    async def _count(self, operator: Operator) -> None:
        async with contextlib.AsyncExitStack() as stack:
            decisions = operator.decisions()
            close = getattr(decisions, "aclose", None)
            if close is not None:
                stack.push_async_callback(close)
            async for decision in decisions:
                self._proxy.counters.count(decision)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is no request to a model. Raises UnknownRoute, UnknownModel and what orders raise."""
        path = scope["path"]
        if path in self._ollama.routes or path.startswith(BLOBS):
            await self._ollama.answer(scope, receive, send)
        elif path.startswith(PREFIX):
            await self._admin.answer(scope, receive, send)
        elif self._console is not None and self._is_page(path):
            await self._console(scope, receive, send)
        elif path == _METRICS:
            await self._send_metrics(scope, send)
        else:
            await self._read(scope["method"], path, send)

    def _is_page(self, path: str) -> bool:
        """Whether the console answers what goes to no engine: all that has no address of its own here."""
        return (
            self._console is not None
            and not path.startswith((PREFIX, _OPENAI))
            and path not in (_HEALTH, _METRICS, _OPENAPI)
        )

    async def _send_metrics(self, scope: Scope, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await refuse_method(scope["method"], _METRICS, _READ, send)
            return
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        body, content_type = await self._metrics.render(accept.decode("latin-1"))
        await send_body(send, 200, body, (b"content-type", content_type.encode()))

    async def _read(self, method: str, path: str, send: Send) -> None:
        """Answer what is only looked at. Raises UnknownRoute or UnknownModel."""
        render = self._lists.get(path)
        if render is None:
            if path.startswith(_ONE_OPENAI_MODEL):
                render = partial(self._openai_model, path.removeprefix(_ONE_OPENAI_MODEL))
            elif path != "/":
                raise UnknownRoute(f"there is nothing at {path!r}", hint="OpenAI's API is under /v1.")
        if method not in ("GET", "HEAD"):
            await refuse_method(method, path, _READ, send)
        elif render is None:
            await send_body(send, 200, _WELCOME, TEXT_TYPE)
        else:
            await send_json(send, 200, render())

    def _health(self) -> dict[str, Any]:
        """Tell states and not names: this answer needs no key."""
        return {"status": "ok", "models": Counter(model.state for model in self._router.models())}

    def _openapi(self) -> dict[str, Any]:
        if self._document is None:
            # What it takes to build is not loaded before somebody asks.
            from cotenant.gateway.openapi.document import document

            self._document = document(self.routes)
        return self._document

    def _openai_models(self) -> dict[str, Any]:
        return {"object": "list", "data": [openai_model(model) for model in self._router.models()]}

    def _openai_model(self, name: str) -> dict[str, Any]:
        return openai_model(find_model(name, self._router.models()))


def _has_begun(exchange: Exchange | None, send: Send) -> bool:
    """Whether some of the answer has been sent, after which no other can be."""
    if isinstance(send, ErrorTranslator):
        return send.started
    return exchange is not None and exchange.started
