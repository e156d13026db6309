"""Broadcast of what the daemon tells."""

import asyncio
import weakref

from cotenant.concurrency.broadcast import Broadcast


class Told:
    """Something that is told, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


async def test_a_slow_one_misses_the_oldest_and_the_others_nothing() -> None:
    broadcast: Broadcast[Told] = Broadcast(backlog=2)
    quick, slow = broadcast.subscribe(), broadcast.subscribe()
    waiting = [asyncio.ensure_future(anext(each)) for each in (quick, slow)]
    await asyncio.sleep(0)
    seen = []
    for number in range(5):
        broadcast.publish(Told(number))
        seen.append((await waiting.pop(0) if number == 0 else await anext(quick)).number)
    assert seen == [0, 1, 2, 3, 4]
    assert (await waiting.pop()).number == 0
    assert [(await anext(slow)).number for _ in range(2)] == [3, 4]


async def test_nothing_is_kept_for_one_that_has_gone() -> None:
    broadcast: Broadcast[Told] = Broadcast(backlog=2)
    gone = broadcast.subscribe()
    first = asyncio.ensure_future(anext(gone))
    await asyncio.sleep(0)
    broadcast.publish(Told(0))
    await first
    await gone.aclose()  # type: ignore[attr-defined]
    told = Told(1)
    broadcast.publish(told)
    kept = weakref.ref(told)
    del told
    assert kept() is None
