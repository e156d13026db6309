"""Forwards a client's request to an engine, and the response back."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Final

from cotenant.asgi import JSON_TYPE, Header, Receive, Send, encode_json, send_body
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import CotenantError, NotOffered, ShuttingDown, UpstreamFailed
from cotenant.domain.units import KIB, MIB, format_bytes
from cotenant.gateway.http.limits import Limits, whole_body
from cotenant.gateway.http.problems import encode_error, envelope, http_problem, is_envelope
from cotenant.gateway.http.streams import STREAM_HEADERS
from cotenant.gateway.http.timing import Timing
from cotenant.gateway.inference.assembly import stream_body
from cotenant.gateway.inference.dialect_assembly import assemble
from cotenant.gateway.inference.dialects import Target, is_foreign
from cotenant.gateway.inference.disconnects import DisconnectWatch
from cotenant.gateway.inference.engine_connections import EngineConnection, Pool
from cotenant.gateway.inference.model_kinds import ModelKinds
from cotenant.gateway.inference.request import engine_body, engine_head, model_name, parse
from cotenant.gateway.inference.request_log import RequestLog, RequestRecord
from cotenant.gateway.inference.request_options import RequestOptions, read_request_options
from cotenant.gateway.inference.waiting import LeaseWait
from cotenant.gateway.telemetry.counters import ModelCounters, RequestCounters
from cotenant.interfaces import Lease, Router

_log = logging.getLogger("cotenant.gateway")

_MAX_ERROR_BYTES: Final = 64 * KIB
_MAX_ASSEMBLED_BYTES: Final = 256 * MIB
_CLIENT_CLOSED_REQUEST: Final = 499
"""The status in the log of a request whose client disconnected first."""


class Proxy:
    """What all requests share: the router, the limits, the connections, the counters."""

    def __init__(
        self, router: Router, limits: Limits, timing: Timing, request_log: RequestLog | None = None
    ) -> None:
        self.router = router
        self.request_log = request_log
        self.limits = limits
        self.timing = timing
        self.pool = Pool()
        self.counters = RequestCounters(router)
        self.watch = DisconnectWatch()
        self.kinds = ModelKinds(router)


class Exchange:
    """One request in progress: its client, its lease and its connection to the engine.

    `started` is set when the response has begun, after which no other can be sent; `waited_s` is how long it
    waited for its lease: for the model to load, or in the queue.
    """

    __slots__ = (
        "_answered",
        "_assembling",
        "_begun_at",
        "_connection",
        "_counters",
        "_disconnected",
        "_failed",
        "_granted_at",
        "_headers",
        "_last_chunk",
        "_listener",
        "_loop",
        "_name",
        "_options",
        "_proxy",
        "_receive",
        "_send",
        "_status",
        "_streaming",
        "_target",
        "_tokens",
        "_wait",
        "started",
        "waited_s",
    )

    def __init__(
        self, proxy: Proxy, target: Target, headers: Sequence[Header], receive: Receive, send: Send
    ) -> None:
        self._proxy = proxy
        self._target = target
        self._headers = headers
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._counters: ModelCounters = proxy.counters.nameless
        self._options: RequestOptions
        self._connection: EngineConnection | None = None
        self._listener: asyncio.Task[None] | None = None
        self._wait: LeaseWait | None = None
        self._failed = False
        self._disconnected = False
        self._assembling = False
        self._streaming = False
        self._answered = False
        self._status = 500
        self._name: str | None = None
        self._granted_at: float | None = None
        self._tokens = (0, 0)
        self.started = False
        self.waited_s = 0.0
        self._last_chunk = b""

    async def run(self) -> None:
        """Read the request, get a slot, and forward the response.

        Raises a CotenantError only while nothing has been sent to the client.
        """
        body = await whole_body(self._receive, self._proxy.limits)
        if body is None:
            return
        proxy = self._proxy
        proxy.watch.enter(self)
        self._begun_at = self._loop.time()
        try:
            request = parse(body)
            name = proxy.router.resolve(model_name(request, proxy.router))
            self._counters = proxy.counters.of(name)
            self._options = read_request_options(self._headers, request)
            proxy.kinds.check(name, self._target)
            self._name = name
            self._streaming = request.get("stream") is True and self._target.streams
            as_stream = stream_body(self._target.path, request, body)
            self._assembling = as_stream is not None
            await self._answer(name, as_stream or body)
        except CotenantError as error:
            if self._disconnected:
                return
            self._status = http_problem(error).status
            if not self.started:
                raise
            await self._end_early(error)
        except asyncio.CancelledError:
            self._status = 503
            if self.started:
                await self._end_early(ShuttingDown("the daemon shut down before the answer was complete"))
            raise
        finally:
            proxy.watch.leave(self)
            self._counters.by_class[0 if self._disconnected else min(self._status // 100, 5)] += 1
            if proxy.request_log is not None and self._name is not None:
                self._log(proxy.request_log, self._name)
            if self._listener is not None:
                self._listener.cancel()

    def _log(self, log: RequestLog, name: str) -> None:
        status = _CLIENT_CLOSED_REQUEST if self._disconnected else self._status
        prompt, output = self._tokens
        now, terms = self._loop.time(), self._options.terms
        log.add(RequestRecord(self._begun_at, self._granted_at, now, name, status, prompt, output, terms))

    # The request.

    async def _answer(self, name: str, body: bytes) -> None:
        """Forward the request with a lease; with another if the engine dies before the response has begun."""
        counters = self._counters
        while True:
            lease = self._try_lease(name) or await self._wait_for_lease(name)
            if lease is None:
                return
            counters.in_flight += 1
            self._granted_at = self._loop.time()
            try:
                status = await self._ask(lease.endpoint, body)
                if status >= 400:
                    await self._pass_error(status)
                elif self._assembling and self._reply.event_stream:
                    await self._pass_assembled()
                else:
                    await self._pass_response(status)
                return
            except UpstreamFailed as error:
                if self._disconnected:
                    return
                repeated = self._may_repeat()
                what = "is retried" if repeated else "failed"
                _log.warning("request %s: path=%s reason=%s", what, self._target.path.decode(), error.message)
                if not repeated:
                    raise await self._fault(lease, error) from None
            finally:
                counters.in_flight -= 1
                self._release(lease)
            if not await self._leave_engine(lease):
                return

    def _may_repeat(self) -> bool:
        """Whether to retry a failed request: once, if its engine was lost before the response began."""
        connection = self._connection
        lost = connection is None or connection.lost
        if self._answered or not lost or self._failed:
            return False
        self._failed = True
        return True

    async def _leave_engine(self, lease: Lease) -> bool:
        """Wait until the daemon notices that a failed engine is dead; False if the client disconnects.

        A process needs time to die, seconds if a driver cleans up after it, and its socket may accept
        connections until then: the retry must not be wasted on it.
        """
        self._connection = None
        await lease.death(self._proxy.timing.notice_s)
        return not self._disconnected

    async def _fault(self, lease: Lease, error: UpstreamFailed) -> CotenantError:
        """Return the daemon's error for a dead engine if there is one, else the error of the connection."""
        connection = self._connection
        if connection is not None and not connection.lost:
            return error
        return await lease.death(self._proxy.timing.notice_s) or error

    def _try_lease(self, name: str) -> Lease | None:
        lease = self._proxy.router.try_lease(name, self._options.terms)
        if lease is not None:
            self._counters.at_once += 1
        return lease

    async def _wait_for_lease(self, name: str) -> Lease | None:
        """Return a lease when the router grants one, or None if the client disconnects first."""
        self._wait = wait = LeaseWait(self._proxy.router, self._counters, name, self._options.terms)
        comments = self._streaming and self._options.wait_comments
        try:
            return await wait.lease(self._comment if comments else None, self._proxy.timing.comment_s)
        finally:
            self._wait = None
            self.waited_s += wait.waited_s

    async def _comment(self, comment: bytes) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await self._send({"type": "http.response.body", "body": comment, "more_body": True})

    # The client's disconnect.

    def listen(self) -> None:
        """Watch from now on for the client's disconnect."""
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._await_disconnect())

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected = True
        if self._wait is not None:
            self._wait.cancel()
        if self._connection is not None:
            self._connection.abort()

    # The response.

    async def _ask(self, endpoint: Endpoint, body: bytes) -> int:
        """Send the request, again if a pooled connection was stale, and return the response's status."""
        pool = self._proxy.pool
        connection = pool.idle(endpoint) or await pool.connect(endpoint)
        body = engine_body(body, endpoint)
        head = engine_head(self._target.path, endpoint, self._headers, len(body))
        while True:
            self._connection = connection
            if self._disconnected:
                connection.abort()
                raise UpstreamFailed("the client disconnected")
            connection.begin(head, body)
            try:
                while connection.status is None:
                    await connection.more()
            except UpstreamFailed:
                if self._disconnected or not connection.stale:
                    raise
            else:
                return connection.status
            self._connection = None
            connection = await pool.connect(endpoint)

    async def _pass_response(self, status: int) -> None:
        """Forward the body as it arrives. Until its first byte, the request may be retried."""
        reply = self._reply
        send = self._send
        chunk = reply.take()
        while not chunk and not reply.ended:
            await reply.more()
            chunk = reply.take()
        self._answered = True
        if not self.started:
            self.started = True
            self._status = status
            self._streaming = reply.event_stream and not reply.sized
            await send({"type": "http.response.start", "status": status, "headers": reply.headers})
        elif not reply.event_stream:
            raise UpstreamFailed("the engine answered a request for a stream with something else")
        if reply.event_stream:
            self._counters.first_token_s.observe(self._loop.time() - self._begun_at)
            if self._target.in_anthropic:
                self._tokens = self._counters.read_prompt(chunk)
        before = b""
        while not reply.ended:
            if chunk:
                before, self._last_chunk = self._last_chunk, chunk
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            else:
                await reply.more()
            chunk = reply.take()
        await send({"type": "http.response.body", "body": chunk})
        self._count_tokens(before + self._last_chunk + chunk if before else self._last_chunk + chunk)

    async def _pass_assembled(self) -> None:
        """Assemble a stream into the plain response that the client requested."""
        reply = self._reply
        pieces: list[bytes] = []
        size = 0
        while True:
            piece = reply.take()
            if piece and not pieces:
                self._counters.first_token_s.observe(self._loop.time() - self._begun_at)
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_ASSEMBLED_BYTES:
                raise UpstreamFailed(f"the engine's answer is over {format_bytes(_MAX_ASSEMBLED_BYTES)}")
            if reply.ended:
                break
            await reply.more()
        status, body = assemble(self._target.path, b"".join(pieces))
        self._count_tokens(body)
        await self._send_whole(status, body, [JSON_TYPE])

    def _count_tokens(self, answer_end: bytes) -> None:
        prompt, output = self._counters.read_tokens(answer_end)
        self._tokens = (self._tokens[0] + prompt, self._tokens[1] + output)

    async def _pass_error(self, status: int) -> None:
        """Forward an error in OpenAI's form unchanged; replace others by one of ours."""
        reply = self._reply
        body = reply.take()
        while not reply.ended and len(body) <= _MAX_ERROR_BYTES:
            await reply.more()
            body += reply.take()
        if not self._target.everywhere and is_foreign(status, body):
            raise NotOffered(
                f"the engine of this model does not support {self._target.path.decode()}",
                hint="Use /v1/chat/completions, or serve the model with an engine that does, as llama.cpp.",
            )
        if reply.ended and is_envelope(body):
            await self._send_whole(status, body, reply.headers)
            return
        what = f"the engine answered {status} without a reason"
        if status >= 500:
            raise UpstreamFailed(what)
        error = encode_error(what, "invalid_request_error", None, "engine_refused")
        await self._send_whole(status, error, [JSON_TYPE])

    async def _send_whole(self, status: int, body: bytes, headers: Sequence[Header]) -> None:
        """Send a complete body; as an event if comments have begun a stream."""
        self._status = status
        if self.started:
            event = self._target.event(encode_json(json.loads(body)))
            await self._send({"type": "http.response.body", "body": event})
            return
        self.started = self._answered = True
        headers = [header for header in headers if header[0] != b"content-length"]
        await send_body(self._send, status, body, *headers)

    async def _end_early(self, error: CotenantError) -> None:
        """End a stream early with an error event. Any other body stays visibly incomplete.

        The server closes the connection when an application returns with an incomplete body.
        """
        if not self._streaming:
            return
        event = self._target.event(envelope(error))
        if self._last_chunk and not self._last_chunk.endswith(b"\n\n"):
            event = b"\n\n" + event
        await self._send({"type": "http.response.body", "body": event})

    @property
    def _reply(self) -> EngineConnection:
        assert self._connection is not None  # noqa: S101  set by _ask before any response
        return self._connection

    def _release(self, lease: Lease) -> None:
        connection = self._connection
        if connection is None:
            lease.release()
        else:
            self._proxy.pool.give_back(connection)
            lease.release(abandoned=connection.cut)
