"""Limits on the size of a request, and intervals of the gateway."""

from collections.abc import Sequence
from dataclasses import dataclass

from cotenant.asgi import Header, Receive
from cotenant.domain.errors import HeadersTooLarge, RequestTooLarge
from cotenant.domain.units import KIB, MIB, format_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a request: bytes of its body, bytes of its head, and the number of headers."""

    body_bytes: int = 32 * MIB
    head_bytes: int = 64 * KIB
    headers: int = 100

    def check_head(self, headers: Sequence[Header]) -> None:
        """Check the size of a head, and of the body that it declares.

        Raises HeadersTooLarge or RequestTooLarge.
        """
        if len(headers) > self.headers:
            raise HeadersTooLarge(f"{len(headers)} headers are over the limit of {self.headers}")
        size = 0
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"content-length":
                self.check_body(int(value))
        if size > self.head_bytes:
            raise HeadersTooLarge(f"the headers are over the limit of {format_bytes(self.head_bytes)}")

    def check_body(self, size_bytes: int) -> None:
        """Check the size of a body. Raises RequestTooLarge."""
        if size_bytes > self.body_bytes:
            raise RequestTooLarge(
                f"the body is over the limit of {format_bytes(self.body_bytes)}",
                hint="Send less, or smaller images.",
            )


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals in seconds: between comments to a waiting client, heartbeats of a feed, and reads of a log.

    `notice_s` is how long the gateway waits for the daemon to notice that an engine is dead.
    """

    comment_s: float = 5.0
    heartbeat_s: float = 15.0
    log_poll_s: float = 0.25
    notice_s: float = 1.0


async def whole_body(receive: Receive, limits: Limits) -> bytes | None:
    """Read a complete body; None if the client disconnects. Raises RequestTooLarge."""
    pieces: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece: bytes = message.get("body", b"")
        size += len(piece)
        limits.check_body(size)
        pieces.append(piece)
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
