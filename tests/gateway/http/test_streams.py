"""Feeds that are merged into one."""

import asyncio

import pytest

from cotenant.gateway.http.streams import merged


class Feed:
    """Yields what is put; remembers how much was taken and that it was closed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.closed = False

    async def pieces(self):
        try:
            while (piece := await self.queue.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                self.taken += 1
                yield piece
        finally:
            self.closed = True


def feeds() -> tuple[Feed, Feed]:
    return Feed(), Feed()


async def test_pieces_come_from_whichever_feed_has_some_in_the_order_of_each():
    one, other = feeds()
    both = merged(one.pieces(), other.pieces())
    other.queue.put_nowait(b"1")
    assert await anext(both) == b"1"
    for feed, piece in ((one, b"a"), (one, b"b"), (other, b"2")):
        feed.queue.put_nowait(piece)
    found = [await anext(both) for _ in range(3)]
    assert sorted(found) == [b"2", b"a", b"b"]
    assert found.index(b"a") < found.index(b"b")
    await both.aclose()


async def test_a_feed_that_ends_leaves_the_other_and_both_end_it():
    one, other = feeds()
    both = merged(one.pieces(), other.pieces())
    one.queue.put_nowait(None)
    other.queue.put_nowait(b"1")
    assert await anext(both) == b"1"
    other.queue.put_nowait(None)
    assert await anext(both, "end") == "end"
    assert one.closed
    assert other.closed


async def test_no_feed_is_read_further_ahead_than_one_piece():
    one, other = feeds()
    for _ in range(10):
        one.queue.put_nowait(b"x")
    both = merged(one.pieces(), other.pieces())
    await anext(both)
    for _ in range(5):
        await asyncio.sleep(0)
    assert one.taken <= 2
    await both.aclose()


async def test_closing_or_cancelling_closes_every_feed():
    for cancel in (False, True):
        one, other = feeds()
        both = merged(one.pieces(), other.pieces())
        one.queue.put_nowait(b"1")
        assert await anext(both) == b"1"
        if cancel:
            waiting = asyncio.ensure_future(anext(both))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await both.aclose()
        assert one.closed
        assert other.closed


async def test_a_feed_that_fails_is_not_hidden():
    one, other = feeds()
    both = merged(one.pieces(), other.pieces())
    one.queue.put_nowait(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await anext(both)
    assert one.closed
    assert other.closed
