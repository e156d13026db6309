"""The one port of a machine by which requests reach its engines, which listen on the loopback address only.

The first line that a client sends is the token of an engine; from then on bytes pass both ways as they are.
Whoever sends anything else is cut off without an answer.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from cotenant.agent.splice import Splice
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, InsecureBind, PortTaken
from cotenant.http.listeners import verify_listener
from cotenant.nodes.messages import GateAddress, GateSettings

_FIRST_LINE_BYTES: Final = 128
_FIRST_LINE_WITHIN_S: Final = 10.0
_CONNECT_WITHIN_S: Final = 5.0
_MOST_STRANGERS: Final = 512
"""How many connections may be open that have not shown a token yet."""

_LOG = logging.getLogger(__name__)


class Gate:
    """Listens at one address, and knows the tokens. It lets nobody in while `closed` returns true.

    `clients` are all open connections, of which `strangers` is how many have not shown a token yet.
    """

    def __init__(self, closed: Callable[[], bool]) -> None:
        self.closed = closed
        self.strangers = 0
        self.clients: set[_Client] = set()
        self._by_digest: dict[bytes, Endpoint] = {}
        self._spliced: dict[bytes, set[_Client]] = {}
        self._settings: GateSettings | None = None
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._certified_at = 0

    @property
    def address(self) -> GateAddress | None:
        """Where it listens; None if it does not."""
        if self._server is None or self._settings is None:
            return None
        host, port = self._server.sockets[0].getsockname()[:2]
        certificate = self._settings.certificate
        return GateAddress(host, port, certificate is not None, certificate)

    async def open(self, settings: GateSettings) -> None:
        """Listen there; connections that are open stay. Raises BadSetting, InsecureBind or PortTaken.

        If it listens there already, a certificate that was renewed is used for the next connections. One that
        cannot listen as asked listens as before.
        """
        certified_at = _changed_at(settings.certificate)
        if settings == self._settings:
            if certified_at not in (0, self._certified_at) and self._context is not None:
                self._certified_at = certified_at
                _load(self._context, settings)
            return
        context = _server_context(settings)
        if context is None and not _is_private(settings.address):
            raise InsecureBind(
                f"the gate of this machine would listen on {settings.address}, which others may reach, "
                "without TLS",
                hint="Set `nodes.tls`, or use an address of a private network.",
            )
        before, was = self._server, self.address
        if before is not None and was is not None and was.port == settings.port:
            # Two cannot have one port.
            before.close()
        try:
            server = await self._listen(settings, context)
        except OSError as error:
            if before is not None and was is not None and not before.is_serving():
                with contextlib.suppress(OSError):
                    as_it_was = GateSettings(was.address, was.port)
                    self._server = await self._listen(as_it_was, self._context)
            raise PortTaken(
                f"the gate cannot listen on {settings.address}, port {settings.port}: {error.strerror}",
                hint="Set `nodes.gate_port` to a free port.",
            ) from error
        if before is not None:
            before.close()
        self._server, self._settings = server, settings
        self._context, self._certified_at = context, certified_at

    async def _listen(self, settings: GateSettings, context: ssl.SSLContext | None) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: _Client(self, loop), settings.address, settings.port, ssl=context, reuse_address=True
        )

    def close(self) -> None:
        """Listen no longer, and cut every connection."""
        if self._server is not None:
            self._server.close()
        for client in [*self.clients]:
            client.cut()

    def admit(self, token: str, endpoint: Endpoint) -> None:
        """Let whoever has a token in to an engine."""
        self._by_digest[_digest(token.encode())] = endpoint

    def expel(self, token: str) -> None:
        """Let nobody in by a token any more, and cut who is in."""
        digest = _digest(token.encode())
        self._by_digest.pop(digest, None)
        for client in self._spliced.pop(digest, set()):
            client.cut()

    def enter(self, client: "_Client", token: bytes) -> Endpoint | None:
        """Return the engine of a token; None if there is none, or the gate is closed."""
        # Looked up by a digest, so that the time it takes tells nothing of other tokens.
        digest = _digest(token)
        endpoint = None if self.closed() else self._by_digest.get(digest)
        if endpoint is not None:
            client.digest = digest
            self._spliced.setdefault(digest, set()).add(client)
        return endpoint

    def leave(self, client: "_Client") -> None:
        """Forget a connection that has ended."""
        self.clients.discard(client)
        if client.digest is not None and client.digest in self._spliced:
            self._spliced[client.digest].discard(client)


class _Client(Splice):
    """A connection to the gate: first a stranger, then passed on to an engine."""

    __slots__ = ("_buffer", "_gate", "_is_stranger", "_loop", "_task", "_timer", "digest")

    def __init__(self, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.digest: bytes | None = None
        self._gate = gate
        self._loop = loop
        self._buffer = bytearray()
        self._is_stranger = True
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._gate.clients.add(self)
        self._gate.strangers += 1
        self._timer = self._loop.call_later(_FIRST_LINE_WITHIN_S, self.cut)
        if self._gate.strangers > _MOST_STRANGERS or self._gate.closed():
            self.cut()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
            return
        self._buffer += data
        if not self._is_stranger:
            return
        token, ended, rest = self._buffer.partition(b"\n")
        if not ended and len(token) <= _FIRST_LINE_BYTES:
            return
        endpoint = self._gate.enter(self, bytes(token)) if ended else None
        if endpoint is None:
            self.cut()
            return
        self._known()
        self._buffer = rest
        cast(asyncio.Transport, self.transport).pause_reading()
        self._task = self._loop.create_task(self._pass_on(endpoint))

    def connection_lost(self, exc: Exception | None) -> None:
        self._known()
        self._gate.leave(self)
        if self._task is not None:
            self._task.cancel()
        super().connection_lost(exc)

    def _known(self) -> None:
        if self._is_stranger:
            self._is_stranger = False
            self._gate.strangers -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _pass_on(self, endpoint: Endpoint) -> None:
        engine = Splice()
        try:
            async with asyncio.timeout(_CONNECT_WITHIN_S):
                await self._loop.create_connection(lambda: engine, endpoint.host, endpoint.port)
            self._task = None
            verify_listener(endpoint)
        except OSError as error:
            _LOG.info("no connection to the engine at %s: %s", endpoint.authority, error)
            engine.cut()
            self.cut()
            return
        except asyncio.CancelledError:
            engine.cut()
            raise
        transport = cast(asyncio.Transport, self.transport)
        if transport.is_closing():
            engine.cut()
            return
        engine.other, self.other = self, engine
        transport.resume_reading()
        super().data_received(bytes(self._buffer))
        self._buffer.clear()


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _is_private(address: str) -> bool:
    """Whether an address is one of a private network; the unspecified one is all of a machine's."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise BadSetting(f"{address} is no address that a gate can listen on") from None
    shared = found.version == 4 and found in ipaddress.ip_network("100.64.0.0/10")
    return not found.is_unspecified and (found.is_private or found.is_link_local or shared)


def _server_context(settings: GateSettings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, settings)
    return context


def _changed_at(certificate: Path | None) -> int:
    """Return when a file was last changed, in ns; 0 if there is none."""
    with contextlib.suppress(OSError):
        return 0 if certificate is None else certificate.stat().st_mtime_ns
    return 0


def _load(context: ssl.SSLContext, settings: GateSettings) -> None:
    """Use the certificate from the next connection on. Raises BadSetting."""
    if settings.certificate is None:
        return
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or getattr(error, "reason", None) or error
        raise BadSetting(
            f"the certificate {settings.certificate} of this machine's gate cannot be used: {reason}",
            hint="`nodes.tls` names files that are on every machine.",
        ) from error
