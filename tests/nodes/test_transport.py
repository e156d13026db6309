"""Calls over a socket at whose other end is silence, junk, or nobody."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cotenant.domain.errors import BadRequest
from cotenant.domain.nodes import AgentGone, BadNodeMessage, NodeUnreachable
from cotenant.nodes.messages import Nothing, OfEngine
from cotenant.nodes.protocol import BUSY_SLOTS, DOCTOR, error_to_json
from cotenant.nodes.transport import SocketTransport, ask

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def agent_that(serve: Serve, path: Path) -> AsyncIterator[SocketTransport]:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(closing, path)
    transport = SocketTransport(lambda _: path)
    try:
        yield transport
    finally:
        await transport.close()
        server.close()


async def test_one_that_is_silent_is_unreachable_and_a_late_answer_harms_nobody(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late = json.loads(await reader.readline())
        await go_on.wait()
        for call in (late, json.loads(await reader.readline())):
            writer.write(json.dumps({"id": call["id"], "result": {"busy": call["id"]}}).encode() + b"\n")
        await reader.read()

    async with agent_that(serve, tmp_path / "s") as transport:
        with pytest.raises(NodeUnreachable, match=r"did not answer `busy_slots` in 0.05 s"):
            await ask(transport, "b", BUSY_SLOTS, OfEngine("e"), 0.05)
        go_on.set()
        assert (await ask(transport, "b", BUSY_SLOTS, OfEngine("e"), 60)).busy == 2


@pytest.mark.parametrize(
    "junk", [b"junk\n", b"[1]\n", b'{"id": 1, "error": {"code": 5}}\n', b'{"id": 1, "res', b""]
)
async def test_one_that_sends_junk_is_unreachable_and_called_anew_the_next_time(
    junk: bytes, tmp_path: Path
) -> None:
    sends = [junk]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = json.loads(await reader.readline())
        answer = {"id": call["id"], "result": {"busy": None}}
        writer.write(sends.pop() if sends else json.dumps(answer).encode() + b"\n")
        await writer.drain()

    async with agent_that(serve, tmp_path / "s") as transport:
        with pytest.raises(NodeUnreachable, match="the agent of b cannot be reached") as failed:
            await ask(transport, "b", BUSY_SLOTS, OfEngine("e"), 60)
        assert not isinstance(failed.value, AgentGone), "it listens still"
        assert (await ask(transport, "b", BUSY_SLOTS, OfEngine("e"), 60)).busy is None


async def test_what_it_answers_is_raised_and_what_it_should_not_answer_is_named(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = json.loads(await reader.readline())
        error = error_to_json(BadRequest("no such thing", hint="Ask for another."))
        writer.write(json.dumps({"id": call["id"], "error": error}).encode() + b"\n")
        call = json.loads(await reader.readline())
        writer.write(json.dumps({"id": call["id"], "result": {"busy": "many"}}).encode() + b"\n")
        await reader.read()

    async with agent_that(serve, tmp_path / "s") as transport:
        with pytest.raises(BadRequest, match="no such thing"):
            await ask(transport, "b", DOCTOR, Nothing(), 60)
        with pytest.raises(BadNodeMessage, match="not a BusySlots: busy"):
            await ask(transport, "b", BUSY_SLOTS, OfEngine("e"), 60)


async def test_an_agent_that_is_not_there_is_gone_with_the_place_to_look(tmp_path: Path) -> None:
    transport = SocketTransport(lambda _: tmp_path / "none.sock")
    with pytest.raises(AgentGone) as failed:
        await ask(transport, "b", DOCTOR, Nothing(), 60)
    assert "none.sock" in failed.value.hint


async def test_a_call_that_an_agent_has_not_answered_at_its_end_says_that_it_is_gone(tmp_path: Path) -> None:
    called = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        called.set()
        await reader.read()

    connections: list[asyncio.StreamWriter] = []

    async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_unix_server(kept, tmp_path / "s")
    transport = SocketTransport(lambda _: tmp_path / "s")
    asking = asyncio.create_task(ask(transport, "b", BUSY_SLOTS, OfEngine("e"), 60))
    await called.wait()
    server.close()
    connections[0].transport.abort()
    with pytest.raises(AgentGone):
        await asking
    await transport.close()
