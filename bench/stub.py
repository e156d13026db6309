"""An engine that costs almost nothing: `python -m bench.stub` prints its port and answers at once."""

import asyncio
import json

import uvloop

EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub","choices":'
    b'[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
_LAST_CHUNK = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: stub\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Once upon a time there was a stub."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}'
)
_JSON = (
    b"HTTP/1.1 200 OK\r\nServer: stub\r\nContent-Type: application/json; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
)


class Stub(asyncio.Protocol):
    """Answers whole requests.

    A stream has `max_tokens` events: one each turn of the loop, or one every `pace_s` if the request says so.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = b""
        self._writable = True
        self._events_left = 0
        self._pace_s = 0.0

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        buffer = self._buffer + data
        head_end = buffer.find(b"\r\n\r\n")
        if head_end >= 0:
            head = buffer[:head_end].lower()
            _, found, rest = head.partition(b"content-length:")
            length = int(rest.partition(b"\r\n")[0]) if found else 0
            if len(buffer) >= head_end + 4 + length:
                self._buffer = b""
                self._answer(buffer[head_end + 4 :])
                return
        self._buffer = buffer

    def _answer(self, body):
        if b'"stream":true' not in body:
            self._transport.write(_JSON)
            return
        self._transport.write(_STREAM_HEAD + _CHUNK)
        request = json.loads(body)
        self._events_left = request["max_tokens"] - 1
        self._pace_s = request.get("pace_s", 0.0)
        self._arm()

    def _arm(self):
        if self._pace_s:
            self._loop.call_later(self._pace_s, self._next_event)
        else:
            self._loop.call_soon(self._next_event)

    def _next_event(self):
        if self._transport.is_closing() or not self._writable:
            return
        if self._events_left:
            self._events_left -= 1
            self._transport.write(_CHUNK)
            self._arm()
        else:
            self._transport.write(_LAST_CHUNK)

    def pause_writing(self):
        self._writable = False

    def resume_writing(self):
        self._writable = True
        self._next_event()


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(loop), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
