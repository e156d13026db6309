"""Work that an event ends."""

import asyncio
from collections.abc import Awaitable


async def unless_set(event: asyncio.Event, work: Awaitable[None]) -> bool:
    """Do the work unless an event is set first, which cancels it; return whether it was done."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
