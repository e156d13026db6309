"""Forwards a client's request to an engine, and the response back."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.asgi import JSON_TYPE, Header, Receive, Send, disconnected, encode_json, send_body
from cotenant.domain.errors import (
    CotenantError,
    EngineHung,
    ModelUnloaded,
    ShuttingDown,
    UpstreamFailed,
)
from cotenant.domain.units import MIB, format_bytes
from cotenant.gateway.http.codings import decoded
from cotenant.gateway.http.limits import whole_body
from cotenant.gateway.http.problems import envelope, http_problem
from cotenant.gateway.http.streams import STREAM_HEADERS
from cotenant.gateway.inference.answer_timer import AnswerTimer
from cotenant.gateway.inference.assembly import assemble
from cotenant.gateway.inference.dialects import Target
from cotenant.gateway.inference.engine_connections import EngineConnection
from cotenant.gateway.inference.grammar import check_bounds
from cotenant.gateway.inference.media import check_media
from cotenant.gateway.inference.progress import progress_report
from cotenant.gateway.inference.refusals import refusal
from cotenant.gateway.inference.request import addressed, engine_body, engine_head, mended, parse, upload_head
from cotenant.gateway.inference.request_log import CLIENT_CLOSED_REQUEST, RequestRecord
from cotenant.gateway.inference.request_options import RequestOptions, read_request_options
from cotenant.gateway.inference.shared import Proxy
from cotenant.gateway.inference.suspects import Turn, request_hash
from cotenant.gateway.inference.upload import Upload, upload_of
from cotenant.gateway.inference.upstream import headers_for_client
from cotenant.gateway.inference.waiting import LeaseWait
from cotenant.gateway.telemetry.counters import ModelCounters
from cotenant.interfaces import Lease

_log = logging.getLogger("cotenant.gateway")

_MAX_ASSEMBLED_BYTES: Final = 256 * MIB


@dataclass(slots=True, eq=False)
class Exchange:
    """One request in progress: its client, its lease and its connection to the engine.

    `started` is set when the response has begun, after which no other can be sent; `waited_s` is how long it
    waited for its lease: for the model to load, or in the queue. A `translated` request was made of one in
    another dialect, whose clients always get token counts. `buffered` says that `_send` keeps the
    response until it is whole, so that the client gets an error in its place until then.
    """

    _proxy: Proxy
    _target: Target
    _headers: Sequence[Header]
    _receive: Receive
    _send: Send
    _translated: bool = False
    buffered: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop, init=False)
    _begun_at: float = field(init=False)
    _counters: ModelCounters = field(init=False)
    _options: RequestOptions = field(init=False)
    _request: dict[str, Any] = field(init=False)
    _upload: Upload | None = None
    _connection: EngineConnection | None = None
    _listener: asyncio.Task[None] | None = None
    _wait: LeaseWait | None = None
    _timer: AnswerTimer | None = None
    _turn: Turn | None = None
    _asked_at: int = 0
    _failed: bool = False
    _reserved: int = 0
    _disconnected: bool = False
    _assembling: bool = False
    _streaming: bool = False
    _answered: bool = False
    _status: int = 500
    _name: str | None = None
    _granted_at: float | None = None
    _tokens: tuple[int, int] = (0, 0)
    _last_chunk: bytes = b""
    started: bool = False
    waited_s: float = 0.0

    async def run(self) -> None:
        """Read the request, get a slot, and forward the response.

        Raises a CotenantError only while nothing has reached the client.
        """
        proxy, limits = self._proxy, self._proxy.limits
        if self._target.has_files:
            self._upload = upload_of(self._headers, limits, self._target.passed_to)
        body = await whole_body(self._receive, limits) if self._upload is None else b""
        if body is None:
            return
        body = decoded(body, self._headers, limits)
        size = len(body)
        limits.memory.hold(size)
        self._counters = proxy.counters.nameless
        self._begun_at = self._loop.time()
        try:
            if self._upload is None:
                body = mended(body)
                request = parse(body)
            else:
                if not await self._upload.receive(self._receive):
                    self._disconnected = True
                    return
                request, body = self._upload.fields, self._upload.digest
            proxy.watch.enter(self)
            ruled_target = None if self._upload else self._target
            name, request, body = addressed(request, body, ruled_target, proxy.router)
            self._counters = proxy.counters.of(name)
            copies = proxy.router.has_copies(name)
            self._options = read_request_options(self._headers, request, proxy.key, copies=copies)
            check_bounds(request, body)
            proxy.kinds.check(name, self._target, check_media(request, body, proxy.media_hosts))
            proxy.suspects.check(name, self._target.path, body)
            self._reserved = proxy.admit(self._target, request, size, self._begun_at)
            self._name, self._request = name, request
            self._streaming = request.get("stream") in (True, "true") and self._target.streams
            await self._answer(name, body)
        except CotenantError as error:
            if self._disconnected:
                return
            self._status = http_problem(error).status
            if not self.started or self.buffered:
                raise
            await self._end_early(error)
        except asyncio.CancelledError:
            self._status = 503
            if self.started:
                await self._end_early(ShuttingDown("the daemon shut down before the answer was complete"))
            raise
        finally:
            limits.memory.release(size)
            if self._upload is not None:
                self._upload.close()
            proxy.watch.leave(self)
            if self._turn is not None:
                proxy.suspects.end(self._turn)
            self._counters.by_class[0 if self._disconnected else min(self._status // 100, 5)] += 1
            if self._name is not None and (proxy.key is not None or proxy.request_log is not None):
                status = CLIENT_CLOSED_REQUEST if self._disconnected else self._status
                times = self._begun_at, self._granted_at, self._loop.time()
                ended = RequestRecord(*times, self._name, status, *self._tokens, self._options.terms)
                proxy.record(ended, self._reserved)
            if self._listener is not None:
                self._listener.cancel()

    # The request.

    async def _answer(self, name: str, body: bytes) -> None:
        """Forward the request with a lease; once more if the engine dies before the response has begun.

        Not if it hung, which took its time already, or if the operator unloaded the model.
        """
        counters, suspects = self._counters, self._proxy.suspects
        if suspects.is_known(name, self._target.path, body) and name not in suspects.asking:
            await self._take_turn(name, body)
        while True:
            if suspects.asking and self._turn is None:
                await suspects.let_pass(name)
            lease = self._proxy.router.try_lease(name, self._options.terms)
            if lease is not None:
                counters.at_once += 1
            else:
                lease = await self._wait_for_lease(name)
                if lease is None:
                    return
            counters.in_flight += 1
            self._timer = timer = AnswerTimer(self._loop, lease, self._options.terms.timeout_s)
            self._granted_at, self._asked_at = timer.heard_at, suspects.counted
            if self._listener is not None:
                timer.start()
            try:
                status = await self._ask(lease, body, timer)
                if self._turn is not None:
                    suspects.end(self._turn)
                if status >= 300 and self._target.passed_to is None:
                    await self._pass_error(status)
                elif self._assembling and self._reply.event_stream:
                    await self._pass_assembled()
                else:
                    await self._pass_response(status, timer)
                if suspects.crashes:
                    suspects.clear(request_hash(name, self._target.path, body))
                return
            except UpstreamFailed as error:
                failure = error
            finally:
                timer.stop()
                counters.in_flight -= 1
                self._release(lease)
            if self._disconnected or timer.overdue is not None:
                suspects.watch(lease, name, request_hash(name, self._target.path, body), self._turn)
                if timer.overdue is None:
                    return
                raise timer.overdue
            if not await self._may_retry(lease, failure, name, body):
                return

    async def _may_retry(self, lease: Lease, failure: UpstreamFailed, name: str, body: bytes) -> bool:
        """Return once the request may be asked again, False if its client has left; else raise why it failed.

        If the engine is dead, the daemon knows why. A process needs time to die, seconds if a driver cleans
        up after it, and accepts connections until then, maybe: the retry must not be wasted on it.
        """
        lost = self._connection is None or self._connection.lost
        death = await lease.death(self._proxy.timing.notice(lease.endpoint)) if lost else None
        repeated = lost and not (
            self._answered or self._failed or isinstance(death, EngineHung | ModelUnloaded)
        )
        what = "is retried" if repeated else "failed"
        _log.warning("request %s: path=%s reason=%s", what, self._target.path.decode(), failure.message)
        suspects, turn, path = self._proxy.suspects, self._turn, self._target.path
        if turn is not None:
            suspects.end(turn)
        crashed = suspects.record(name, request_hash(name, path, body), death, turn, self._asked_at)
        if not repeated:
            raise death or failure
        if crashed:
            await self._take_turn(name, body)
        self._failed, self._connection = True, None
        return not self._disconnected

    async def _take_turn(self, name: str, body: bytes) -> None:
        self._turn = await self._proxy.suspects.turn(name, self._target.path, body)
        self._turn.alone = not (self._counters.in_flight or self._counters.waiting)

    async def _wait_for_lease(self, name: str) -> Lease | None:
        """Return a lease when the router grants one, or None if the client disconnects first."""
        self._wait = wait = LeaseWait(self._proxy.router, self._counters, name, self._options.terms)
        told = self._streaming and not self._translated
        report = progress_report(self._proxy, self._options, self._target, name) if told else None
        try:
            return await wait.lease(report, self._comment)
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
            if self._timer is not None:
                self._timer.start()

    async def _await_disconnect(self) -> None:
        await disconnected(self._receive)
        self._disconnected = True
        if self._wait is not None:
            self._wait.cancel()
        if self._connection is not None:
            self._connection.abort()

    # The response.

    async def _ask(self, lease: Lease, body: bytes, timer: AnswerTimer) -> int:
        """Send the request, again if a pooled connection was stale, and return the response's status."""
        pool, endpoint = self._proxy.pool, lease.endpoint
        connection = pool.idle(endpoint) or await pool.connect(endpoint)
        pieces = None
        if self._upload is None:
            body, self._assembling = engine_body(
                self._target.path, self._request, body, endpoint, translated=self._translated
            )
            head = engine_head(self._target.path, endpoint, self._headers, len(body))
        else:
            length, pieces = self._upload.named(endpoint.model or self._request.get("model"))
            head, body = upload_head(self._target, endpoint, self._headers, length), b""
        while True:
            self._connection = timer.connection = connection
            if self._disconnected:
                connection.abort()
                raise UpstreamFailed("the client disconnected")
            connection.begin(head, body, bodiless=self._target.method == "HEAD")
            try:
                if pieces is not None:
                    await connection.send(pieces())
                while connection.status is None:
                    await connection.more()
            except UpstreamFailed:
                if connection.cut or not connection.stale or lease.missed.is_set():
                    raise
            else:
                return connection.status
            self._connection = timer.connection = None
            connection = await pool.connect(endpoint)

    async def _pass_response(self, status: int, timer: AnswerTimer) -> None:
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
            headers = headers_for_client(self._target, reply)
            await send({"type": "http.response.start", "status": status, "headers": headers})
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
                if not self.buffered:
                    timer.heard_at = self._loop.time()
            else:
                await reply.more()
            chunk = reply.take()
        await send({"type": "http.response.body", "body": chunk})
        self._count_tokens(before + self._last_chunk + chunk if before else self._last_chunk + chunk)

    async def _pass_assembled(self) -> None:
        """Assemble a stream into the plain response that the client requested."""
        reply, size = self._reply, 0
        pieces: list[bytes] = []
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
        """Forward an error in OpenAI's form unchanged; put the reason of any other into that form."""
        await self._send_whole(status, *await refusal(self._reply, status, self._target))

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
