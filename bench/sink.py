"""A server that takes bodies and costs next to nothing: `python -m bench.sink PORT`."""

import asyncio
import sys
from contextlib import suppress

_PIECE_BYTES = 1 << 18
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"content-length:")
            left = int(rest.partition(b"\r\n")[0]) if found else 0
            while left and (piece := await reader.read(min(left, _PIECE_BYTES))):
                left -= len(piece)
            writer.write(_ANSWER)
            if b"connection: close" in head:
                break
    writer.close()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(_serve, "127.0.0.1", int(sys.argv[1]), limit=_PIECE_BYTES)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
