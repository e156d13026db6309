"""Connections to engines, pooled per endpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UpstreamFailed
from cotenant.http.connection import Connection, client_context, tls_fault
from cotenant.http.listeners import PortTaken, verify_listener


class EngineConnection(Connection):
    """A connection to an engine; it keeps only the response headers that concern the client.

    Reading from a closed connection raises UpstreamFailed.
    """

    __slots__ = ("_pool", "endpoint", "idle_since")

    # Hop-by-hop headers, the engine's name, and what commands browsers: an engine must not decide whom they
    # trust, what they store, or where they go.
    _dropped_headers = frozenset(
        {
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"proxy-authenticate",
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
            b"server",
            b"alt-svc",
            b"clear-site-data",
            b"link",
            b"location",
            b"refresh",
            b"set-cookie",
            b"strict-transport-security",
            b"www-authenticate",
            b"access-control-allow-origin",
            b"access-control-allow-credentials",
            b"access-control-allow-headers",
            b"access-control-allow-methods",
            b"access-control-expose-headers",
            b"access-control-max-age",
        }
    )

    def __init__(self, pool: Pool, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.endpoint = endpoint
        self.idle_since = 0.0
        self._pool = pool

    def _failure(self, how: str) -> Exception:
        return UpstreamFailed(f"the engine at {self.endpoint.url} {how}")

    def _closed(self) -> None:
        self._pool.forget(self)


@dataclass(kw_only=True)
class Pool:
    """Connections to engines, kept open between requests.

    Idle ones are reused newest first, at most `max_idle` per endpoint, and none older than `max_idle_age_s`:
    llama.cpp closes a connection after 5 s without traffic, and using one that is being closed costs a
    retry. Connections that an engine closes remove themselves, so no timer is needed.
    """

    max_idle: int = 64
    max_idle_age_s: float = 4.0
    connect_timeout_s: float = 5.0
    _idle: dict[Endpoint, list[EngineConnection]] = field(default_factory=dict)

    def idle(self, endpoint: Endpoint) -> EngineConnection | None:
        """Take an idle connection; None if a new one is needed."""
        connections = self._idle.get(endpoint)
        if not connections:
            return None
        connection = connections.pop()
        oldest = asyncio.get_running_loop().time() - self.max_idle_age_s
        if connection.usable and connection.idle_since >= oldest:
            return connection
        # The newest is too old or closed, so the older ones are unusable, too.
        connection.abort()
        for other in self._idle.pop(endpoint):
            other.abort()
        return None

    async def connect(self, endpoint: Endpoint) -> EngineConnection:
        """Open a connection. Raises UpstreamFailed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                connection = await EngineConnection.open(
                    endpoint, lambda: EngineConnection(self, endpoint, loop)
                )
            try:
                verify_listener(endpoint)
            except PortTaken:
                connection.abort()
                raise
        except OSError as error:  # TimeoutError is one
            raise _unreachable(endpoint, error) from error
        return connection

    def give_back(self, connection: EngineConnection) -> None:
        """Keep a connection whose response has ended, or close it."""
        if not connection.reusable:
            connection.abort()
            return
        connections = self._idle.setdefault(connection.endpoint, [])
        if len(connections) < self.max_idle:
            connection.idle_since = asyncio.get_running_loop().time()
            connections.append(connection)
        else:
            connection.abort()

    def forget(self, connection: EngineConnection) -> None:
        """Remove a closed connection."""
        connections = self._idle.get(connection.endpoint)
        if connections is None:
            return
        if connection in connections:
            connections.remove(connection)
        if not connections:
            del self._idle[connection.endpoint]

    def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()


async def open_stream(
    endpoint: Endpoint, within_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection for what is not HTTP, past the endpoint's gate. Raises UpstreamFailed."""
    context = client_context(endpoint.ca) if endpoint.tls else None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
        if endpoint.gate is not None:
            writer.write(f"{endpoint.gate}\n".encode("ascii"))
        try:
            verify_listener(endpoint)
        except PortTaken:
            writer.transport.abort()
            raise
    except OSError as error:
        raise _unreachable(endpoint, error) from error
    return reader, writer


def _unreachable(endpoint: Endpoint, error: OSError) -> UpstreamFailed:
    how = "accepts no connection" if isinstance(error, TimeoutError) else "cannot be reached"
    if (fault := str(error) if isinstance(error, PortTaken) else tls_fault(error)) is not None:
        how = f"{how}: {fault}"
    return UpstreamFailed(f"the engine at {endpoint.url} {how}")
