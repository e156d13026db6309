"""Limits on the size of a request, and intervals of the gateway."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cotenant.asgi import Header, Receive
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import HeadersTooLarge, QueueFull, RequestTooLarge
from cotenant.domain.units import GIB, KIB, MIB, format_bytes

_FREE_BODY_BYTES: Final = 256 * KIB
_MAX_VALUES: Final = 500_000
_MAX_DIGITS: Final = 400
_DIGITS_AS_0: Final = bytes.maketrans(b"123456789", b"0" * 9)


@dataclass(slots=True)
class BodyMemory:
    """Memory of bodies that are received now, or whose requests are in progress; small ones do not count.

    `what` is taken: memory, or disk.
    """

    most_bytes: int = GIB
    held_bytes: int = 0
    what: str = "memory"

    def hold(self, n: int) -> None:
        """Count a body of `n` bytes. Raises QueueFull if all of them would be over the bound."""
        if n > _FREE_BODY_BYTES:
            if self.held_bytes + n > self.most_bytes:
                raise QueueFull(
                    f"the bodies of other requests take {format_bytes(self.held_bytes)} of {self.what}",
                    hint="Try again later.",
                )
            self.held_bytes += n

    def release(self, n: int) -> None:
        """Forget a body of `n` bytes that was held."""
        if n > _FREE_BODY_BYTES:
            self.held_bytes -= n


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a request: bytes of its body, bytes of its head, and the number of headers.

    `memory` is shared by all requests. A client that takes no byte of its response for `unread_s` is gone.
    A head must be complete `head_s` seconds after it could begin, and a body must not be `silence_s` behind
    `body_rate` (bytes per second): neither pause as long, nor drip. A connection is kept for `keep_alive_s`
    after a response: longer than common proxies keep theirs (60 s, Google's 600 s), which else send a request
    while it closes.
    `connections` is the most at once, None for what the limit on descriptors allows.
    Bodies with files have bounds of their own, `upload_bytes` and `uploads`: they are kept not in memory but
    in `upload_folder`, None for the system's.
    """

    body_bytes: int = 32 * MIB
    head_bytes: int = 64 * KIB
    headers: int = 100
    unread_s: float = 30.0
    head_s: float = 60.0
    silence_s: float = 60.0
    body_rate: int = 4 * KIB
    keep_alive_s: int = 620
    connections: int | None = None
    memory: BodyMemory = field(default_factory=BodyMemory, compare=False)
    upload_bytes: int = 512 * MIB
    upload_folder: Path | None = None
    uploads: BodyMemory = field(default_factory=lambda: BodyMemory(4 * GIB, what="disk"), compare=False)

    def check_head(self, headers: Sequence[Header], *, has_files: bool = False) -> None:
        """Check the size of a head, and of the body that it declares, which may have files.

        Raises HeadersTooLarge or RequestTooLarge.
        """
        if len(headers) > self.headers:
            raise HeadersTooLarge(f"{len(headers)} headers are over the limit of {self.headers}")
        size = 0
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"content-length":
                (self.check_upload if has_files else self.check_body)(int(value))
        if size > self.head_bytes:
            raise HeadersTooLarge(f"the headers are over the limit of {format_bytes(self.head_bytes)}")

    def check_body(self, size_bytes: int) -> None:
        """Check the size of a body. Raises RequestTooLarge."""
        if size_bytes > self.body_bytes:
            raise RequestTooLarge(
                f"the body is over the limit of {format_bytes(self.body_bytes)}",
                hint="Send less, or smaller images.",
            )

    def check_upload(self, size_bytes: int) -> None:
        """Check the size of a body with files. Raises RequestTooLarge."""
        if size_bytes > self.upload_bytes:
            raise RequestTooLarge(
                f"the body is over the limit of {format_bytes(self.upload_bytes)}",
                hint="Send smaller files, or parts of them.",
            )


@dataclass(slots=True)
class Timing:
    """Intervals in seconds: between comments to a waiting client, heartbeats of a feed, and reads of a log.

    What the configuration has clients told of their wait begins after `progress_after_s`: what is refused
    before has a status of its own. `notice_s` is how long the gateway waits for the daemon to notice that an
    engine is dead, `node_notice_s` one on another machine, which may have to be missed first: the daemon
    changes it with its configuration.
    """

    comment_s: float = 5.0
    progress_after_s: float = 1.0
    heartbeat_s: float = 15.0
    log_poll_s: float = 0.25
    notice_s: float = 1.0
    node_notice_s: float = 4.0

    def notice(self, endpoint: Endpoint) -> float:
        """Return how long to wait for the news of an engine's death."""
        return self.notice_s if endpoint.gate is None else self.node_notice_s


async def whole_body(receive: Receive, limits: Limits) -> bytes | None:
    """Read a complete body; None if the client disconnects. Raises RequestTooLarge or QueueFull."""
    pieces: list[bytes] = []
    size = held = 0
    more = True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece: bytes = message.get("body", b"")
            size += len(piece)
            limits.check_body(size)
            pieces.append(piece)
            more = message.get("more_body", False)
            if more:
                limits.memory.release(held)
                held = 0
                limits.memory.hold(size)
                held = size
    finally:
        limits.memory.release(held)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_values(body: bytes) -> None:
    """Check the number and length of values in a JSON text before it is parsed. Raises RequestTooLarge.

    Parsing holds up all requests, by its number of values more than by its length: 31 MiB of `[],` take
    seconds and a gigabyte of memory, and so does one number of that length. An image takes milliseconds.
    """
    if len(body) <= _FREE_BODY_BYTES:
        return
    # What is in strings, as in long texts, does not count.
    text = body.replace(rb"\\", b"").replace(rb"\"", b"")
    many = text.count(b'"') > 4 * _MAX_VALUES
    text = b"" if many else b"".join(text.split(b'"')[::2])
    if many or text.count(b",") + text.count(b"[") + text.count(b"{") > _MAX_VALUES:
        raise RequestTooLarge(
            f"the body holds more than {_MAX_VALUES:,} values", hint="Send it in several requests."
        )
    if b"0" * _MAX_DIGITS in text.translate(_DIGITS_AS_0):
        raise RequestTooLarge(f"the body holds a number of {_MAX_DIGITS} digits or more")
