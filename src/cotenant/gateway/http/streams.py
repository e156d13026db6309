"""Endless responses: feeds of events and followed logs."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from cotenant.asgi import Header, Receive, Send, disconnected, next_piece, send_stream

STREAM_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
)
T = TypeVar("T")


class LiveStreams:
    """Sends streams until the client disconnects or the gateway is about to close.

    A client that reads slowly delays only its own stream.
    """

    def __init__(self) -> None:
        self._closing = asyncio.Event()

    def end(self) -> None:
        """End all streams, so that none of them delays a shutdown."""
        self._closing.set()

    async def run(
        self,
        receive: Receive,
        send: Send,
        headers: Sequence[Header],
        pieces: AsyncGenerator[bytes, None],
        heartbeat_s: float | None = None,
    ) -> None:
        """Send the pieces as they arrive, with a comment after every `heartbeat_s` seconds without one."""
        await send_stream(receive, send, headers, pieces, self._closing, heartbeat_s)


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T | None:
    """Return the result of `work`; None if the client disconnects first, which cancels the work."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)


async def events_of(feed: AsyncIterator[T], render: Callable[[T], bytes]) -> AsyncGenerator[bytes, None]:
    """Render the items of a feed; the feed is closed at the end."""
    try:
        async for item in feed:
            yield render(item)
    finally:
        close = getattr(feed, "aclose", None)
        if close is not None:
            await close()


async def merged(*feeds: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of all feeds as they arrive, until all feeds have ended.

    The next piece of a feed is requested only after its last one was consumed, so that a slow reader slows
    the feed down. Closing or cancelling the generator closes all feeds.
    """
    upcoming = {asyncio.create_task(next_piece(feed)): feed for feed in feeds}
    try:
        while upcoming:
            done, _ = await asyncio.wait(upcoming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                piece, feed = task.result(), upcoming.pop(task)
                if piece is not None:
                    yield piece
                    upcoming[asyncio.create_task(next_piece(feed))] = feed
    finally:
        for task in upcoming:
            task.cancel()
        if upcoming:
            await asyncio.wait(upcoming)
        for feed in feeds:
            await feed.aclose()
