"""Reads the end of an engine's log on another machine, and follows it."""

import asyncio
import io
from collections.abc import AsyncGenerator, Callable

from cotenant.domain.nodes import NodeError
from cotenant.domain.units import KIB, MIB
from cotenant.gateway.operator.engine_logs import tail_of
from cotenant.interfaces import RemoteLog

_MAX_TAIL_BYTES = MIB
_READ_BYTES = 64 * KIB


async def last_lines(log: RemoteLog, lines: int) -> tuple[bytes, int]:
    """Return the last lines, at most 1 MiB, and the offset of what comes next. Raises NodeUnreachable."""
    data, offset, _ = await log(None, _MAX_TAIL_BYTES)
    # The first line of a part may be the rest of a longer one.
    whole = data if offset == 0 else data.partition(b"\n")[2]
    return tail_of(io.BytesIO(whole), lines), offset + len(data)


async def follow(
    find: Callable[[], RemoteLog | None], lines: int, poll_s: float
) -> AsyncGenerator[bytes, None]:
    """Yield the last lines and then new pieces, without end.

    While the machine does not answer there are none. `find` is called each time: a model that is loaded again
    may run on another machine, whose log is then shown from its last lines on.
    """
    position: int | None = None
    log: RemoteLog | None = None
    while True:
        data = b""
        try:
            found = find()
            if found is not None and (position is None or found != log):
                log = found
                data, position = await last_lines(found, lines)
            elif found is not None:
                data, offset, _ = await found(position, _READ_BYTES)
                position = offset + len(data)
        except NodeError:
            pass
        if data:
            yield data
        else:
            await asyncio.sleep(poll_s)
