"""A server of whole lines, and of GET over HTTP, as an engine of kind `command` with a port of its own.

A line is said back; the end of the client's side is answered with
`over`, and the connection closed.
"""

import asyncio
import sys


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if line.startswith(b"GET "):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            break
        writer.write(line)
    else:
        writer.write(b"over\n")
    await writer.drain()
    writer.close()


async def main(port: int) -> None:
    async with await asyncio.start_server(_serve, "127.0.0.1", port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
