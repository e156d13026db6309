"""The ASGI application: which path means what, and every fault as an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from cotenant.clock import Clock, SystemClock
from cotenant.domain.errors import CotenantError, ShuttingDown, UnknownRoute
from cotenant.gateway.admin import PREFIX, Admin, refuse_method
from cotenant.gateway.asgi import TEXT_TYPE, Receive, Scope, Send, send_body, send_json
from cotenant.gateway.auth import KeyRing
from cotenant.gateway.catalogue import find_model, openai_model
from cotenant.gateway.limits import Limits
from cotenant.gateway.live import LiveStreams
from cotenant.gateway.metrics import Metrics
from cotenant.gateway.problems import send_problem
from cotenant.gateway.proxy import Exchange, Proxy
from cotenant.gateway.timing import Timing
from cotenant.interfaces import Operator, Router

_log = logging.getLogger("cotenant.gateway")

_WELCOME: Final = (
    b"Cotenant serves language models behind an OpenAI-compatible API at /v1; /v1/models lists them.\n"
)
_PROXIED: Final = {
    path: path.encode() for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
}
_ONE_OPENAI_MODEL: Final = "/v1/models/"
_HEALTH: Final = "/health"
_METRICS: Final = "/metrics"
_READ: Final = (b"allow", b"GET, HEAD")
_WRITE: Final = (b"allow", b"POST")


class Gateway:
    """Serves a router's models and, given an operator, what it shows and may be told.

    One instance belongs to one event loop. `clock` is the one by which the operator dates its decisions.
    """

    def __init__(
        self,
        router: Router,
        operator: Operator | None = None,
        *,
        api_keys: Sequence[str] = (),
        limits: Limits | None = None,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.limits = limits or Limits()
        timing = timing or Timing()
        self._router = router
        self._operator = operator
        self._keys = KeyRing(api_keys)
        self._proxy = Proxy(router, self.limits, timing)
        self._streams = LiveStreams()
        self._admin = Admin(router, operator, self._streams, clock or SystemClock(), timing)
        self._metrics = Metrics(self._proxy.meters, operator)
        self._counting: asyncio.Task[None] | None = None
        self._lists: dict[str, Callable[[], dict[str, Any]]] = {
            _HEALTH: self._health,
            "/v1/models": self._openai_models,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange: Exchange | None = None
        try:
            headers = scope["headers"]
            path = scope["path"]
            self.limits.check_head(headers)
            if path != _HEALTH:
                self._keys.check(headers)
            target = _PROXIED.get(path)
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
            if exchange is None or not exchange.started:
                await send_problem(send, ShuttingDown("the daemon is shutting down"))
            raise
        except Exception as error:
            _log.exception("request failed unexpectedly: path=%s", scope["path"])
            if exchange is None or not exchange.started:
                await send_problem(send, error)

    def open(self) -> None:
        """Begin to count what the operator decides."""
        if self._operator is not None:
            self._counting = asyncio.get_running_loop().create_task(self._count(self._operator))

    def end_streams(self) -> None:
        """End the responses that would never end by themselves: feeds and followed logs."""
        self._streams.end()

    def close(self) -> None:
        """Close what connections to engines are idle, and stop counting."""
        self._proxy.pool.close()
        self._admin.close()
        if self._counting is not None:
            self._counting.cancel()

    async def _count(self, operator: Operator) -> None:
        async with contextlib.AsyncExitStack() as stack:
            decisions = operator.decisions()
            close = getattr(decisions, "aclose", None)
            if close is not None:
                stack.push_async_callback(close)
            async for decision in decisions:
                self._proxy.meters.count(decision)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is no request to a model. Raises UnknownRoute, UnknownModel and what orders raise."""
        path = scope["path"]
        if path.startswith(PREFIX):
            await self._admin.answer(scope, receive, send)
        elif path == _METRICS:
            await self._send_metrics(scope, send)
        else:
            await self._read(scope["method"], path, send)

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

    def _openai_models(self) -> dict[str, Any]:
        return {"object": "list", "data": [openai_model(model) for model in self._router.models()]}

    def _openai_model(self, name: str) -> dict[str, Any]:
        return openai_model(find_model(name, self._router.models()))
