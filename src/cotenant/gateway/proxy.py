"""One client request carried to an engine and its response carried back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import (
    BadRequest,
    CotenantError,
    ShuttingDown,
    UnknownModel,
    UpstreamFailed,
)
from cotenant.domain.units import KIB, MIB, format_bytes
from cotenant.gateway.asgi import JSON_TYPE, Header, Receive, Send, send_body
from cotenant.gateway.assembly import assemble, stream_body
from cotenant.gateway.limits import Limits
from cotenant.gateway.problems import encode_error, envelope, unknown_model
from cotenant.gateway.upstream import Connection, Pool
from cotenant.interfaces import Lease, Router

_log = logging.getLogger("cotenant.gateway")

_MAX_ERROR_BYTES: Final = 64 * KIB
_MAX_ASSEMBLED_BYTES: Final = 256 * MIB
_NOT_FORWARDED: Final = frozenset(
    {
        b"accept-encoding",  # the bytes pass through, so they must come plain
        b"authorization",
        b"connection",
        b"content-length",
        b"cookie",
        b"expect",
        b"host",
        b"keep-alive",
        b"origin",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
        b"x-conversation-id",  # llama.cpp would go on generating after the client has left
    }
)


_decode_json: Final = json.JSONDecoder().decode  # json.loads without its look at the arguments
_PLAIN_CONNECTION: Final = frozenset({b"keep-alive", b"Keep-Alive", b"close"})


class Proxy:
    """What all requests share: the router, the limits, the connections."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self.router = router
        self.limits = limits
        self.pool = Pool()
        self.watch = Watch()


class Watch:
    """Has requests listen for their clients' departure once they last, on one timer for all.

    Most answers come sooner, and are spared the task that listening takes; an engine frees a slot no faster.
    """

    _INTERVAL_S: Final = 0.1

    def __init__(self) -> None:
        self._unheard: set[Exchange] = set()
        self._armed = False

    def enter(self, exchange: Exchange) -> None:
        """Have it listen in a moment."""
        self._unheard.add(exchange)
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(self._INTERVAL_S, self._turn)

    def leave(self, exchange: Exchange) -> None:
        """Forget one that has ended."""
        self._unheard.discard(exchange)

    def _turn(self) -> None:
        self._armed = False
        for exchange in self._unheard:
            exchange.listen()
        self._unheard.clear()


class Exchange:
    """One request on its way: its client, its lease and its connection to the engine.

    `started` is set when the response has begun, after which no other can be sent.
    """

    __slots__ = (
        "_assembling",
        "_connection",
        "_departed",
        "_headers",
        "_last_chunk",
        "_listener",
        "_path",
        "_proxy",
        "_receive",
        "_send",
        "_waiting",
        "started",
    )

    def __init__(
        self, proxy: Proxy, path: bytes, headers: Sequence[Header], receive: Receive, send: Send
    ) -> None:
        self._proxy = proxy
        self._path = path
        self._headers = headers
        self._receive = receive
        self._send = send
        self._connection: Connection | None = None
        self._listener: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[Lease] | None = None
        self._departed = False
        self._assembling = False
        self.started = False
        self._last_chunk = b""

    async def run(self) -> None:
        """Read the request, get a slot, and carry the response.

        Raises a CotenantError only while nothing has been sent to the client.
        """
        body = await self._read_body()
        if body is None:
            return
        self._proxy.watch.enter(self)
        try:
            request = _parse(body)
            lease = await self._get_lease(_model_name(request, self._proxy.router))
            if lease is None:
                return
            try:
                as_stream = stream_body(self._path, request, body)
                self._assembling = as_stream is not None
                await self._carry(lease.endpoint, as_stream or body)
            finally:
                self._part_from_engine(lease)
        finally:
            self._proxy.watch.leave(self)
            if self._listener is not None:
                self._listener.cancel()

    # The request.

    async def _read_body(self) -> bytes | None:
        """Return the body, or None if the client left. Raises RequestTooLarge."""
        pieces: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            piece: bytes = message["body"]
            size += len(piece)
            self._proxy.limits.check_body(size)
            pieces.append(piece)
            more = message["more_body"]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _get_lease(self, name: str) -> Lease | None:
        """Return a lease, waiting for it if need be, or None if the client left first."""
        router = self._proxy.router
        try:
            return router.try_lease(name) or await self._wait_for_lease(name)
        except UnknownModel:
            raise unknown_model(name, router.models()) from None

    async def _wait_for_lease(self, name: str) -> Lease | None:
        waiting = self._waiting = asyncio.ensure_future(self._proxy.router.lease(name))
        try:
            lease = await waiting
        except asyncio.CancelledError:
            # Granted in the very turn of the loop that cancelled this task: the grant must not be lost.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().release()
            task = asyncio.current_task()
            if self._departed and task is not None and not task.cancelling():
                return None
            raise
        finally:
            self._waiting = None
        if self._departed:
            lease.release()
            return None
        return lease

    # The client's departure.

    def listen(self) -> None:
        """Notice from now on when the client leaves."""
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._await_departure())

    async def _await_departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._departed = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._connection is not None:
            self._connection.abort()

    # The response.

    async def _carry(self, endpoint: Endpoint, body: bytes) -> None:
        try:
            status = await self._ask(endpoint, body)
            if status >= 400:
                await self._pass_error(status)
            elif self._assembling and self._reply.event_stream:
                await self._pass_assembled()
            else:
                await self._pass_response(status)
        except UpstreamFailed as error:
            if self._departed:
                return
            _log.warning("request failed: path=%s reason=%s", self._path.decode(), error.message)
            if not self.started:
                raise
            await self._end_early(error)
        except asyncio.CancelledError:
            if self.started:
                await self._end_early(ShuttingDown("the daemon shut down before the answer was complete"))
            raise

    async def _ask(self, endpoint: Endpoint, body: bytes) -> int:
        """Send the request, again if a pooled connection was stale, and return the response's status."""
        head = _request_head(self._path, endpoint, self._headers, len(body))
        pool = self._proxy.pool
        connection = pool.idle(endpoint) or await pool.connect(endpoint)
        while True:
            self._connection = connection
            if self._departed:
                connection.abort()
                raise UpstreamFailed("the client left")
            connection.begin(head, body)
            try:
                while connection.status is None:
                    await connection.more()
            except UpstreamFailed:
                if self._departed or not connection.stale:
                    raise
            else:
                return connection.status
            connection = await pool.connect(endpoint)

    async def _pass_response(self, status: int) -> None:
        reply = self._reply
        send = self._send
        self.started = True
        await send({"type": "http.response.start", "status": status, "headers": reply.headers})
        while True:
            chunk = reply.take()
            if reply.ended:
                await send({"type": "http.response.body", "body": chunk})
                return
            if chunk:
                self._last_chunk = chunk
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            else:
                await reply.more()

    async def _pass_assembled(self) -> None:
        """Put a stream together into the plain answer that the client asked for."""
        reply = self._reply
        pieces = [reply.take()]
        size = len(pieces[0])
        while not reply.ended:
            await reply.more()
            pieces.append(reply.take())
            size += len(pieces[-1])
            if size > _MAX_ASSEMBLED_BYTES:
                raise UpstreamFailed(f"the engine's answer is over {format_bytes(_MAX_ASSEMBLED_BYTES)}")
        status, body = assemble(b"".join(pieces))
        self.started = True
        await send_body(self._send, status, body, JSON_TYPE)

    async def _pass_error(self, status: int) -> None:
        """Pass an error that is in OpenAI's envelope as it is; put any other into ours."""
        reply = self._reply
        body = reply.take()
        while not reply.ended and len(body) <= _MAX_ERROR_BYTES:
            await reply.more()
            body += reply.take()
        if reply.ended and _is_envelope(body):
            self.started = True
            await self._send({"type": "http.response.start", "status": status, "headers": reply.headers})
            await self._send({"type": "http.response.body", "body": body})
            return
        what = f"the engine answered {status} without saying why"
        if status >= 500:
            raise UpstreamFailed(what)
        self.started = True
        await send_body(
            self._send, status, encode_error(what, "invalid_request_error", None, "engine_refused"), JSON_TYPE
        )

    async def _end_early(self, error: CotenantError) -> None:
        """Tell the client of a stream why it ends here; leave any other body short, so that it is seen to be.

        A server cuts the connection when an application returns with its body unfinished.
        """
        reply = self._reply
        if not reply.event_stream or any(name == b"content-length" for name, _ in reply.headers):
            return
        event = b"data: " + envelope(error) + b"\n\n"
        if not self._last_chunk.endswith(b"\n\n"):
            event = b"\n\n" + event
        await self._send({"type": "http.response.body", "body": event})

    @property
    def _reply(self) -> Connection:
        assert self._connection is not None  # noqa: S101  set by _ask before any response
        return self._connection

    def _part_from_engine(self, lease: Lease) -> None:
        connection = self._connection
        if connection is None:
            lease.release()
        else:
            self._proxy.pool.give_back(connection)
            lease.release(abandoned=connection.cut)


def _request_head(path: bytes, endpoint: Endpoint, headers: Sequence[Header], length: int) -> bytes:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return b"POST %b HTTP/1.1\r\nhost: %b:%d\r\ncontent-length: %d\r\n%b\r\n" % (
        path,
        host.encode(),
        endpoint.port,
        length,
        _forwarded(headers, _NOT_FORWARDED),
    )


def _forwarded(headers: Sequence[Header], dropped: frozenset[bytes]) -> bytes:
    lines = []
    for name, value in headers:
        if name not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"connection" and value not in _PLAIN_CONNECTION and dropped is _NOT_FORWARDED:
            nominated = frozenset(token.strip().lower() for token in value.split(b","))
            return _forwarded(headers, dropped | nominated)
    return b"".join(lines)


def _parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is. Raises BadRequest."""
    try:
        request = _decode_json(body.decode())
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}", hint="Send one JSON object in UTF-8.") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    if not isinstance(request, dict):
        raise BadRequest("the body is JSON, but not an object", hint="Send one JSON object in UTF-8.")
    return request


def _model_name(request: Mapping[str, Any], router: Router) -> str:
    """Return the model that a request names, or the only one served. Raises BadRequest."""
    name = request.get("model")
    if isinstance(name, str):
        return name
    if name is not None:
        raise BadRequest(f"`model` is not a string but {json.dumps(name)[:80]}")
    served = router.models()
    if len(served) != 1:
        names = ", ".join(model.name for model in served) or "none"
        raise BadRequest("the request names no `model`", hint=f"Served: {names}.")
    return served[0].name


def _is_envelope(body: bytes) -> bool:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(payload, dict) and isinstance(payload.get("error"), dict)
