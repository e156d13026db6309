"""The ways to an agent."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from cotenant.domain.nodes import AgentGone, BadNodeMessage, NodeUnreachable
from cotenant.nodes.messages import ErrorBody
from cotenant.nodes.protocol import MAX_LINE_BYTES, Json, Method, error_from, from_json, to_json

_CLOSES_WITHIN_S: Final = 0.05

P = TypeVar("P")
R = TypeVar("R")


class Transport(Protocol):
    """Carries calls to agents."""

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        """Return the result of a method of a node's agent.

        Raises the CotenantError that the agent answered, or NodeUnreachable if no answer came within
        `timeout_s`: the agent may have done it all the same. AgentGone if there is no agent any more.
        """


async def ask(transport: Transport, node: str, method: Method[P, R], params: P, timeout_s: float = 10.0) -> R:
    """Call a method of a node's agent. Raises as `Transport.call`, or BadNodeMessage."""
    return from_json(method.result, await transport.call(node, method.name, to_json(params), timeout_s))


@dataclass(slots=True)
class SocketTransport:
    """Straight to the Unix socket of each node's agent on this machine, without Ray.

    `path_of` names the socket of a node. A connection that broke is made anew by the next call.
    """

    path_of: Callable[[str], Path]
    _open: dict[str, "_Connection"] = field(default_factory=dict)
    _opening: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        """Return the result of a method. Raises what the agent answered, NodeUnreachable or AgentGone."""
        try:
            async with asyncio.timeout(timeout_s):
                return await (await self._connection(node)).call(method, params)
        except TimeoutError:
            raise NodeUnreachable(
                f"the agent of {node} did not answer `{method}` in {timeout_s:g} s"
            ) from None
        except OSError as error:
            kind = NodeUnreachable if await self._listens(node) else AgentGone
            raise kind(
                f"the agent of {node} cannot be reached: {error.strerror or error}",
                hint=f"Is it running? `cotenant agent` listens on {self.path_of(node)}.",
            ) from error

    async def close(self) -> None:
        """Close all connections."""
        while self._open:
            await self._open.popitem()[1].close()

    async def _listens(self, node: str) -> bool:
        """Whether there is an agent: one that is about to end accepts connections, and closes them."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.path_of(node))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
        try:
            async with asyncio.timeout(_CLOSES_WITHIN_S):
                await reader.read(1)
        except TimeoutError:
            return True
        except OSError:
            return False
        finally:
            writer.close()
        return False

    async def _connection(self, node: str) -> "_Connection":
        async with self._opening.setdefault(node, asyncio.Lock()):
            found = self._open.get(node)
            if found is None or found.broken:
                reader, writer = await asyncio.open_unix_connection(self.path_of(node), limit=MAX_LINE_BYTES)
                found = self._open[node] = _Connection(reader, writer)
            return found


class _Connection:
    """One connection, with any number of calls that wait for their answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self.broken = False
        self._task = asyncio.create_task(self._read())

    async def call(self, method: str, params: Json) -> Json:
        number = next(self._numbers)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(
                json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n"
            )
            return await answer
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        why: Exception = ConnectionResetError("the connection was closed")
        try:
            while line := await self._reader.readline():
                self._take(line)
        except (OSError, ValueError, BadNodeMessage) as error:
            why = (
                error
                if isinstance(error, OSError)
                else ConnectionResetError(f"it sent what is no message: {error}")
            )
        finally:
            self.broken = True
            self._writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(why)

    def _take(self, line: bytes) -> None:
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a line is no object")
        waiting = self._waiting.get(message.get("id", 0))
        if waiting is None or waiting.done():
            return
        if "error" in message:
            waiting.set_exception(error_from(from_json(ErrorBody, message["error"])))
        else:
            result: Json = message.get("result") or {}
            waiting.set_result(result)
