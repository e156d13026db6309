"""Calls of an agent over its Unix socket: JSON objects, one a line, answered in any order."""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from cotenant.domain.errors import BadSetting, CotenantError
from cotenant.domain.nodes import BadNodeMessage
from cotenant.nodes.protocol import MAX_LINE_BYTES, Json, error_to_json

_LONGEST_PATH_BYTES: Final = 107
_MOST_CALLS: Final = 256
"""How many calls of one connection may be unanswered: further ones are read once some are."""

_LOG = logging.getLogger(__name__)

Answer = Callable[[str, object], Awaitable[Json]]
"""Returns the result of a method. Raises CotenantError."""


class AgentServer:
    """Answers calls at a socket that only this user may open."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises BadSetting if the path is too long for a socket or cannot be written."""
        if len(os.fsencode(self._path)) > _LONGEST_PATH_BYTES:
            raise BadSetting(
                f"the socket's path has more than {_LONGEST_PATH_BYTES} bytes: {self._path}",
                hint="Give a shorter one: cotenant agent --socket PATH.",
            )
        try:
            self._path.unlink(missing_ok=True)
            listening = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                listening.bind(os.fspath(self._path))
            finally:
                os.umask(before)
        except OSError as error:
            raise BadSetting(f"the socket {self._path} cannot be made: {error.strerror}") from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Listen no longer; what was called goes on to its end."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = asyncio.Semaphore(_MOST_CALLS)
        try:
            while line := await reader.readline():
                await room.acquire()
                # Not ended with the connection: what was ordered is carried out.
                task = asyncio.create_task(self._one(line, writer))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
                task.add_done_callback(lambda _: room.release())
        except (OSError, ValueError) as error:
            _LOG.info("a connection is closed: %s", error)
        except asyncio.CancelledError:
            # The agent ends. Python 3.11 logs a traceback for the task of a connection that is cancelled.
            _LOG.debug("a connection is closed: the agent ends")
        finally:
            writer.close()

    async def _one(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number: object = None
        message: Json
        try:
            try:
                call = json.loads(line)
                number, method = call["id"], call["method"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise BadNodeMessage("a line is no call: it has no `id` and `method`") from None
            message = {"id": number, "result": await self._answer(str(method), call.get("params") or {})}
        except CotenantError as error:
            message = {"id": number, "error": error_to_json(error)}
        except Exception as error:
            _LOG.exception("a call failed unexpectedly")
            unforeseen = CotenantError(f"the agent failed unexpectedly: {type(error).__name__}: {error}")
            message = {"id": number, "error": error_to_json(unforeseen)}
        with contextlib.suppress(ConnectionError):
            if not writer.is_closing():
                writer.write(json.dumps(message).encode() + b"\n")
                await writer.drain()
