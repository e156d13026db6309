"""Endless responses: feeds of events and followed logs."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from cotenant.asgi import Header, Receive, disconnected, next_piece
from cotenant.domain.errors import CotenantError

STREAM_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
)
T = TypeVar("T")


async def unless_disconnected(
    receive: Receive, work: Awaitable[T], *ended: Awaitable[CotenantError]
) -> T | None:
    """Return the result of `work`; None if the client disconnects first, which cancels the work.

    So does the end of the request, whose reason is raised.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    ending = [asyncio.ensure_future(each) for each in ended]
    tasks: list[asyncio.Future[Any]] = [working, leaving, *ending]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if ending and not working.done() and not leaving.done():
            raise ending[0].result()
        return working.result() if working.done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
