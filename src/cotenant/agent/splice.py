"""Two connections of which each gets what the other one receives."""

import asyncio
import contextlib
import socket
import struct
from typing import Final, cast

_HIGH_WATER_BYTES: Final = 256 * 1024
_RESET: Final = struct.pack("ii", 1, 0)


class Splice(asyncio.Protocol):
    """One of two connections of which each gets what the other one receives."""

    __slots__ = ("other", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Splice | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Close, once what was received is passed on."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other one likewise."""
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            # What was received before a clean end is still sent; a broken one must not look like a clean end.
            if exc is None and other.transport is not None:
                other.transport.close()
            else:
                other.cut()

    def pause_writing(self) -> None:
        """Receive no more than the other side takes."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Receive again."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def cut(self) -> None:
        """Reset the connection."""
        if self.transport is not None and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
