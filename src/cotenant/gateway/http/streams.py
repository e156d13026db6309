"""Responses without an end: feeds of events and followed logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Final, TypeVar

from cotenant.gateway.http.asgi import Header, Receive, Send

_LAST_WRITE_S: Final = 1.0
T = TypeVar("T")


class LiveStreams:
    """Sends what comes until the client leaves or the gateway is about to close.

    A client that reads slowly holds up its own stream only.
    """

    def __init__(self) -> None:
        self._closing = asyncio.Event()

    def end(self) -> None:
        """End every stream, so that none of them holds up a shutdown."""
        self._closing.set()

    async def run(
        self,
        receive: Receive,
        send: Send,
        headers: Sequence[Header],
        pieces: AsyncGenerator[bytes, None],
        heartbeat_s: float | None = None,
    ) -> None:
        """Send the pieces as they come, with a comment after every `heartbeat_s` of silence."""
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        # An empty piece makes the head leave at once: a client learns that it is being served.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        pump = asyncio.create_task(_pump(send, pieces, heartbeat_s))
        departed = asyncio.create_task(_departure(receive))
        closing = asyncio.create_task(self._closing.wait())
        tasks = {pump, departed, closing}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not pump.cancelled():
            pump.result()
        if departed.cancelled():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WRITE_S):
                    await send({"type": "http.response.body", "body": b""})


async def _pump(send: Send, pieces: AsyncGenerator[bytes, None], heartbeat_s: float | None) -> None:
    upcoming: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.create_task(_next(pieces))
            done, _ = await asyncio.wait({upcoming}, timeout=heartbeat_s)
            piece: bytes | None = b": alive\n\n"
            if done:
                piece, upcoming = upcoming.result(), None
            if piece is None:
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.wait({upcoming})
        await pieces.aclose()


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(pieces, None)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(receive: Receive, work: Awaitable[T]) -> T | None:
    """Return what work comes to, None if the client leaves first: the work has then been cancelled."""
    working = asyncio.ensure_future(work)
    departed = asyncio.create_task(_departure(receive))
    try:
        await asyncio.wait({working, departed}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        departed.cancel()
        working.cancel()
        await asyncio.gather(departed, working, return_exceptions=True)


async def merged(*feeds: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of all feeds as they come, until each has ended.

    No feed is asked for more than one piece before that one was taken, so that a slow reader slows each of
    them as it would alone; closed or cancelled, it closes all of them.
    """
    upcoming = {asyncio.create_task(_next(feed)): feed for feed in feeds}
    try:
        while upcoming:
            done, _ = await asyncio.wait(upcoming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                piece, feed = task.result(), upcoming.pop(task)
                if piece is not None:
                    yield piece
                    upcoming[asyncio.create_task(_next(feed))] = feed
    finally:
        for task in upcoming:
            task.cancel()
        if upcoming:
            await asyncio.wait(upcoming)
        for feed in feeds:
            await feed.aclose()
