"""The ASGI application: dispatches requests by path, and turns errors into responses."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from cotenant.asgi import App, Receive, Scope, Send, send_body, send_json
from cotenant.clock import Clock, SystemClock
from cotenant.domain import errors
from cotenant.domain.alerts import AlertKind
from cotenant.domain.errors import CotenantError, Forbidden, ShuttingDown, UnknownRoute
from cotenant.domain.keys import ApiKey, KeyScope
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import WaitProgress
from cotenant.gateway.access.access_control import SESSION, AccessControl, described
from cotenant.gateway.access.cors import Cors, answer_preflight, is_preflight
from cotenant.gateway.http.limits import Limits, Timing
from cotenant.gateway.http.model_list import find_model, openai_model, served_name, with_variants
from cotenant.gateway.http.problems import send_problem
from cotenant.gateway.http.request import ApiRequest, require
from cotenant.gateway.http.routes import Reply, Route, RouteTable, dispatch, refuse_method
from cotenant.gateway.http.tunnel import tunnel_of
from cotenant.gateway.inference.dialects import (
    TARGETS,
    ErrorForm,
    ErrorTranslator,
    anthropic_error,
    ollama_error,
)
from cotenant.gateway.inference.paths import form_of_unknown, hint_for_unknown, is_browser, tidy
from cotenant.gateway.inference.proxy import Exchange
from cotenant.gateway.inference.request_log import RequestLog
from cotenant.gateway.inference.shared import Proxy
from cotenant.gateway.inference.upstream import UPSTREAM, upstream_target
from cotenant.gateway.ollama.api import BLOBS, READING, OllamaApi
from cotenant.gateway.operator.advice import AdviceRoutes
from cotenant.gateway.operator.decisions import DecisionRoutes
from cotenant.gateway.operator.doctor import DoctorRoutes
from cotenant.gateway.operator.keys import KeyBook, KeyRoutes
from cotenant.gateway.operator.leases import LeaseRoutes
from cotenant.gateway.operator.models import NAME, ModelRoutes
from cotenant.gateway.operator.moves import MoveRoutes
from cotenant.gateway.operator.nodes import Machines, NodeRoutes
from cotenant.gateway.operator.schema import (
    AudioModelsResponse,
    HealthResponse,
    OpenAiModelResponse,
    OpenAiModelsResponse,
)
from cotenant.gateway.plans.routes import PlanRoutes
from cotenant.gateway.services.routes import GpuConfigRoutes
from cotenant.gateway.telemetry.history import History
from cotenant.gateway.telemetry.metrics import Metrics
from cotenant.gateway.websocket.exchange import WebSocketExchange
from cotenant.interfaces import (
    AdvisorBook,
    AlertBook,
    Lessor,
    Mover,
    Operator,
    Planner,
    Puller,
    Router,
    WorkloadAdviser,
)
from cotenant.services.operator import Services

_log = logging.getLogger("cotenant.gateway")

_API: Final = "/api/"
_OPENAI: Final = "/v1"
_HEALTH: Final = "/health"
_RECHECK_S: Final = 1.0


class Pages(Protocol):
    """The console. Its pages need no key: they request their data from the gateway as their caller."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        ...

    def serves(self, scope: Scope) -> bool:
        """Whether something is at the path of a request."""
        ...

    def end_streams(self) -> None:
        """End the responses that do not end by themselves."""
        ...


class Gateway:
    """Serves a router's models, and the operator's API.

    One instance belongs to one event loop. `clock` is the clock of the operator's decisions. `hosts` are
    allowed host names in addition to those of local networks, `media_hosts` those from which engines may
    fetch images, and `cors_origins` those whose pages may ask models. `wait_progress` says how
    streams are told of their wait. `console` makes the pages, given the gateway.
    `examine` runs the doctor's checks, in a thread. Files that clients send are kept in `upload_folder`.
    """

    def __init__(
        self,
        router: Router,
        operator: Operator,
        *,
        mover: Mover,
        lessor: Lessor,
        alerts: AlertBook,
        puller: Puller,
        planner: Planner,
        keys: KeyBook,
        console: Callable[[App], Pages],
        nodes: Machines | None = None,
        services: Services | None = None,
        advisor: AdvisorBook | None = None,
        adviser: WorkloadAdviser | None = None,
        examine: Callable[[], Mapping[str, Any]] | None = None,
        request_log: RequestLog | None = None,
        api_keys: Sequence[ApiKey] = (),
        hosts: Sequence[str] = (),
        media_hosts: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
        wait_progress: WaitProgress = WaitProgress.OFF,
        upload_folder: Path | None = None,
        limits: Limits | None = None,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.limits = limits or Limits(upload_folder=upload_folder)
        timing, clock = timing or Timing(), clock or SystemClock()
        self._router = router
        self._operator = operator
        self._alerts = alerts
        self._access = AccessControl(api_keys, hosts, clock)
        self._cors = Cors(cors_origins) if cors_origins else None
        self._console = console(self)
        self._proxy = Proxy(router, self.limits, timing, request_log, media_hosts, wait_progress)
        self._closing = asyncio.Event()
        self._ollama = OllamaApi(self._proxy, operator, puller)
        self._error_forms: dict[str, ErrorForm] = {
            **{path: anthropic_error for path, target in TARGETS.items() if target.in_anthropic},
            **dict.fromkeys(self._ollama.routes, ollama_error),
        }
        self._history = History(self._proxy.counters, operator)
        usages = self._proxy.usages
        self._metrics = Metrics(self._proxy.counters, operator, alerts, lessor, advisor, usages, nodes)
        self._keys = KeyRoutes(keys, self._proxy.usages)
        self._models = ModelRoutes(router, operator, lessor, timing)
        self._table = RouteTable(
            self,
            self._models,
            MoveRoutes(router, mover),
            NodeRoutes(nodes),
            LeaseRoutes(lessor),
            self._keys,
            DecisionRoutes(router, operator, lessor, alerts, services, clock, timing),
            self._history,
            self._access,
            DoctorRoutes(examine),
            AdviceRoutes(adviser),
            PlanRoutes(planner, router, clock, self.limits),
            GpuConfigRoutes(services),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._document: dict[str, Any] | None = None

    @property
    def routes(self) -> Sequence[Route]:
        """All routes, except those of requests to models and of Ollama's API."""
        return self._table.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange: Exchange | None = None
        if scope["path"] not in TARGETS:
            tidy(scope)
        path = scope["path"]
        if self._cors is not None and self._is_for_clients(path):
            admitted = self._cors.admit(scope, send)
            if admitted is not None:
                send = admitted
                if is_preflight(scope):
                    await answer_preflight(scope, send)
                    return
        form = self._error_forms.get(BLOBS if path.startswith(BLOBS) else path)
        if form is None and path not in TARGETS:
            form = form_of_unknown(scope)
        if form is not None:
            send = ErrorTranslator(send, form)
        try:
            headers = scope["headers"]
            target = TARGETS.get(path)
            upstream = path.startswith(UPSTREAM)
            has_files = upstream or (target is not None and target.has_files)
            self.limits.check_head(headers, has_files=has_files)
            if upstream:
                key = self._access.check(scope, is_open=False)
                require(key, KeyScope.OPERATE)
                proxy, tunnel = self._proxy.of(key), tunnel_of(scope)
                own = upstream_target(scope, proxy.router)
                if tunnel is not None:
                    ended = partial(self._ended, scope, key)
                    await WebSocketExchange(proxy, own, headers, tunnel, ended).run()
                    return
                exchange = Exchange(proxy, own, headers, receive, send)
                await exchange.run()
            elif target is None:
                await self._handle(scope, receive, send)
            else:
                key = self._access.check(scope, is_open=False)
                if scope["method"] == "POST":
                    exchange = Exchange(self._proxy.of(key), target, headers, receive, send)
                    await exchange.run()
                else:
                    await refuse_method(scope["method"], path, ("POST",), send)
        except CotenantError as error:
            await send_problem(send, error)
        except asyncio.CancelledError:
            if not _has_begun(scope, exchange, send):
                await send_problem(send, ShuttingDown("the daemon is shutting down"))
            raise
        except Exception as error:
            _log.exception("request failed unexpectedly: path=%s", scope["path"])
            if not _has_begun(scope, exchange, send):
                await send_problem(send, error)

    def _is_for_clients(self, path: str) -> bool:
        """Whether pages of other origins may be let in at a path: not where operators act."""
        return path in TARGETS or path in READING or path == _HEALTH or path.startswith(f"{_OPENAI}/models")

    def set_api_keys(self, keys: Sequence[ApiKey]) -> None:
        """Accept these keys from now on; what others began in a browser ends."""
        self._access.set_keys(keys)

    def open(self) -> None:
        """Start to count decisions, to record the history and the use of keys, and the request log."""
        loop = asyncio.get_running_loop()
        work = self._history.run(), self._count_decisions(), self._keys.run()
        self._tasks = [*map(loop.create_task, work)]
        if self._proxy.request_log is not None:
            self._tasks.append(loop.create_task(self._proxy.request_log.run()))

    def end_streams(self) -> None:
        """End the responses that do not end by themselves: feeds, followed logs, open pages."""
        self._closing.set()
        self._console.end_streams()

    def close(self) -> None:
        """Close idle connections to engines, and stop all background tasks."""
        self._proxy.pool.close()
        self._models.close()
        for task in self._tasks:
            task.cancel()
        self._keys.record()
        if self._proxy.request_log is not None:
            self._proxy.request_log.close()

    async def _count_decisions(self) -> None:
        async for decision in self._operator.decisions():
            self._proxy.counters.count(decision)

    async def _ended(self, scope: Scope, key: ApiKey | None) -> CotenantError:
        """Return why, when the daemon closes, or the request's key or session is no longer what it was."""
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _RECHECK_S)
            try:
                if self._access.check(scope, is_open=False) != key:
                    return Forbidden("the rights of the API key have changed", hint="Ask again.")
            except CotenantError as error:
                return error
        return ShuttingDown("the daemon is shutting down")

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that is not for a model. Raises UnknownRoute and what handlers raise."""
        path = scope["path"]
        handlers, name = self._table.find(scope)
        if path in self._ollama.routes or path.startswith(BLOBS):
            handlers = self._ollama.routes[BLOBS if path.startswith(BLOBS) else path]
        is_page = handlers is None and not path.startswith((_API, _OPENAI))
        is_page = is_page and (self._console.serves(scope) or is_browser(scope))
        key: ApiKey | None = None
        if path != _HEALTH:
            key = self._access.check(scope, is_open=is_page or path == SESSION)
        if handlers is not None:
            address = (scope.get("client") or ("",))[0]
            ended = partial(self._ended, scope, key)
            request = ApiRequest(scope, receive, send, ended, name, described(address, key), key)
            await dispatch(request, handlers)
        elif is_page:
            await self._console(scope, receive, send)
        else:
            raise UnknownRoute(f"there is nothing at {path[:200]!r}", hint=hint_for_unknown(path))

    @Route(
        f"GET {_HEALTH}",
        "Return whether the daemon can serve; needs no key",
        Reply(HealthResponse, "ok or degraded"),
        other_replies=(Reply(HealthResponse, "unhealthy", status=503),),
        scope=KeyScope.INFER,
    )
    async def _health(self, request: ApiRequest) -> object:
        """Return states but no names: this response needs no key."""
        models = Counter(model.state for model in self._router.models() if not model.members)
        lost = sum(alert.kind is AlertKind.CARD_LOST for alert in self._alerts.active())
        if self._operator.devices() and not lost:
            return {"status": "ok", "models": models}
        left = len(self._operator.devices())
        reason = (
            f"{lost} of {left + lost} devices lost" if left else "no device is left that models can run on"
        )
        status = "degraded" if left or models["ready"] else "unhealthy"
        body = {"status": status, "models": models, "reason": reason}
        await send_json(request.send, 503 if status == "unhealthy" else 200, body)
        return None

    @Route(
        "GET /metrics",
        "Metrics for Prometheus",
        Reply(None, "metrics", content_type="text/plain"),
        other_replies=(Reply(None, "the same as OpenMetrics", content_type="application/openmetrics-text"),),
    )
    async def _send_metrics(self, request: ApiRequest) -> None:
        accept = request.header(b"accept") or b""
        body, content_type = await self._metrics.render(accept.decode("latin-1"))
        await send_body(request.send, 200, body, (b"content-type", content_type.encode()))

    @Route(
        "GET /v1/models",
        "List the models served, in OpenAI's form",
        Reply(OpenAiModelsResponse, "models"),
        scope=KeyScope.INFER,
    )
    async def _openai_models(self, request: ApiRequest) -> object:
        models = self._proxy.of(request.key).router.models()
        return {"object": "list", "data": [openai_model(*each) for each in with_variants(models)]}

    @Route(
        "GET /v1/audio/models",
        "List the models that speak, as Open WebUI asks for them",
        Reply(AudioModelsResponse, "models"),
        scope=KeyScope.INFER,
    )
    async def _audio_models(self, request: ApiRequest) -> object:
        models = self._proxy.of(request.key).router.models()
        speaking = (model.name for model in models if model.kind is ModelKind.SPEECH)
        return {"models": [{"id": name, "name": name} for name in speaking]}

    @Route(
        "GET /v1/models/{name}",
        "Return one model, in OpenAI's form",
        Reply(OpenAiModelResponse, "the model"),
        (errors.UnknownModel,),
        (NAME,),
        scope=KeyScope.INFER,
    )
    async def _openai_model(self, request: ApiRequest) -> object:
        router = self._proxy.of(request.key).router
        name, model = served_name(request.name, router), find_model(request.name, router)
        return openai_model(name if name in model.variants else model.name, model)

    @Route("GET /openapi.json", "This document", Reply(dict[str, Any], "OpenAPI 3.1"), scope=KeyScope.INFER)
    async def _openapi(self, request: ApiRequest) -> object:
        if self._document is None:
            # Imported here, since the import is slow and most daemons never need it.
            from cotenant.gateway.openapi.document import document

            self._document = document(self.routes)
        return self._document


def _has_begun(scope: Scope, exchange: Exchange | None, send: Send) -> bool:
    """Whether the response has begun, after which no other can be sent."""
    tunnel = tunnel_of(scope)
    if tunnel is not None and tunnel.is_open:
        return True
    if isinstance(send, ErrorTranslator):
        return send.started
    return exchange is not None and exchange.started
