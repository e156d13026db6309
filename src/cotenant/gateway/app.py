"""The ASGI application: which path means what, and every fault as an answer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from cotenant.domain.errors import (
    CotenantError,
    MethodNotAllowed,
    ShuttingDown,
    UnknownRoute,
)
from cotenant.domain.requests import ServedModel
from cotenant.gateway.asgi import TEXT_TYPE, Header, Receive, Scope, Send, send_body, send_json
from cotenant.gateway.auth import KeyRing
from cotenant.gateway.catalogue import admin_model, find_model, openai_model
from cotenant.gateway.limits import Limits
from cotenant.gateway.problems import send_problem
from cotenant.gateway.proxy import Exchange, Proxy
from cotenant.interfaces import Router

_log = logging.getLogger("cotenant.gateway")

_WELCOME: Final = (
    b"Cotenant serves language models behind an OpenAI-compatible API at /v1; /v1/models lists them.\n"
)
_PROXIED: Final = {
    path: path.encode() for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
}
_ONE_OPENAI_MODEL: Final = "/v1/models/"
_ONE_ADMIN_MODEL: Final = "/api/models/"
_HEALTH: Final = "/health"
_READ: Final = (b"allow", b"GET, HEAD")
_WRITE: Final = (b"allow", b"POST")


class Gateway:
    """Serves a router's models. One instance belongs to one event loop."""

    def __init__(self, router: Router, *, api_keys: Sequence[str] = (), limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._router = router
        self._keys = KeyRing(api_keys)
        self._proxy = Proxy(router, self.limits)
        self._lists: dict[str, Callable[[], dict[str, Any]]] = {
            _HEALTH: self._health,
            "/v1/models": self._openai_models,
            "/api/models": self._admin_models,
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
                await self._read(scope["method"], path, send)
            elif scope["method"] == "POST":
                exchange = Exchange(self._proxy, target, headers, receive, send)
                await exchange.run()
            else:
                await _refuse_method(scope["method"], path, _WRITE, send)
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

    def close(self) -> None:
        """Close what connections to engines are idle."""
        self._proxy.pool.close()

    async def _read(self, method: str, path: str, send: Send) -> None:
        """Answer what is only looked at. Raises UnknownRoute or UnknownModel."""
        render = self._lists.get(path)
        if render is None:
            if path.startswith(_ONE_OPENAI_MODEL):
                render = partial(self._one_model, openai_model, path.removeprefix(_ONE_OPENAI_MODEL))
            elif path.startswith(_ONE_ADMIN_MODEL):
                render = partial(self._one_model, admin_model, path.removeprefix(_ONE_ADMIN_MODEL))
            elif path != "/":
                raise UnknownRoute(f"there is nothing at {path!r}", hint="OpenAI's API is under /v1.")
        if method not in ("GET", "HEAD"):
            await _refuse_method(method, path, _READ, send)
        elif render is None:
            await send_body(send, 200, _WELCOME, TEXT_TYPE)
        else:
            await send_json(send, 200, render())

    def _health(self) -> dict[str, Any]:
        """Tell states and not names: this answer needs no key."""
        return {"status": "ok", "models": Counter(model.state for model in self._router.models())}

    def _openai_models(self) -> dict[str, Any]:
        return {"object": "list", "data": [openai_model(model) for model in self._router.models()]}

    def _admin_models(self) -> dict[str, Any]:
        return {"models": [admin_model(model) for model in self._router.models()]}

    def _one_model(self, describe: Callable[[ServedModel], dict[str, Any]], name: str) -> dict[str, Any]:
        return describe(find_model(name, self._router.models()))


async def _refuse_method(method: str, path: str, allow: Header, send: Send) -> None:
    error = MethodNotAllowed(f"{path} does not take {method}", hint=f"Use {allow[1].decode()}.")
    await send_problem(send, error, (allow,))
