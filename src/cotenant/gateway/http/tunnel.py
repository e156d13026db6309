"""A client's connection that is to speak another protocol than HTTP, once its offer is accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from cotenant.asgi import Scope
from cotenant.domain.units import KIB

_EXTENSION: Final = "cotenant.tunnel"
_HIGH_WATER_BYTES: Final = 256 * KIB


class Flow(Protocol):
    """What a server's protocol knows of its transport."""

    def pause_reading(self) -> None:
        """Read no more."""

    def resume_reading(self) -> None:
        """Read again."""

    async def drain(self) -> None:
        """Return when the client has taken most of what was sent."""


class Tunnel:
    """The connection of a request that offers WebSocket.

    Until `open`, the request is answered as any other. Then all bytes are the application's, until it
    returns.
    """

    def __init__(self, transport: asyncio.Transport, flow: Flow, opened: Callable[[], None]) -> None:
        self.is_open = False
        self._transport = transport
        self._flow = flow
        self._opened = opened
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._arrived = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    # Called by the application.

    def open(self, head: bytes) -> None:
        """Accept the offer with this head of a response."""
        self.is_open = True
        self._opened()
        self._transport.write(head)

    async def read(self) -> bytes:
        """Return what the client has sent, as soon as there is something; nothing once it has left."""
        while not self._pieces and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._flow.resume_reading()
        return data

    def send(self, data: bytes) -> None:
        """Send bytes; `drain` waits until there is room for more."""
        if not self._ended:
            self._transport.write(data)

    async def drain(self) -> None:
        """Return when the client has taken most of what was sent."""
        await self._flow.drain()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call once the client has left."""
        self._listeners.append(call)
        if self._ended:
            call()

    # Called by the server.

    def feed(self, data: bytes) -> None:
        """Keep what has arrived."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _HIGH_WATER_BYTES:
            self._flow.pause_reading()
        self._arrived.set()

    def end(self) -> None:
        """Note that the client has left."""
        self._ended = True
        self._arrived.set()
        for call in self._listeners:
            call()


def with_tunnel(scope: Any, tunnel: Tunnel) -> None:
    """Put a tunnel into the scope of its request."""
    scope["extensions"] = {_EXTENSION: tunnel}


def tunnel_of(scope: Scope) -> Tunnel | None:
    """Return the tunnel that a request offers; None for any other."""
    found: Tunnel | None = (scope.get("extensions") or {}).get(_EXTENSION)
    return found
