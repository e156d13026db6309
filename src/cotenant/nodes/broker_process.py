"""The broker as a child of the daemon: lines of JSON to it and back, and another one whenever it ends."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from cotenant.clock import Clock
from cotenant.domain.nodes import NodeUnreachable
from cotenant.nodes.fleet import Route
from cotenant.nodes.messages import ErrorBody
from cotenant.nodes.protocol import MAX_LINE_BYTES, Json, error_from, from_json

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A broker that lived so long is started again at once."""
_PING_EVERY_S: Final = 2.0
_PING_S: Final = 10.0
_JOIN_S: Final = 120.0
_PROMPT: Final = {
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_grpc_client_idle_timeout_ms": "1000",
}
"""Has the broker make a connection anew that a partition has silenced: TCP tries it ever more rarely.

gRPC tries a new one ever more rarely, too, up to every two minutes, unless it forgets an idle one first.
"""
_SPARE_S: Final = 3.0
"""How much longer than the broker itself we wait for it: it says more about what did not answer."""


class BrokerTransport:
    """Carries calls to agents through the broker; a node is named by Ray's id of it.

    `routes` are the nodes of the last list, none while there is no broker. `problem` says why there is none.
    `listeners` are called when any of these has changed.
    """

    def __init__(self, fleet: str, address: str, clock: Clock, command: Sequence[str] = ()) -> None:
        module = (sys.executable, "-m", "cotenant.ray.broker")
        self._command = (*(command or module), fleet, address)
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self.routes: Sequence[Route] = ()
        self.problem: str | None = "Ray's broker is being started"
        self.listeners: list[Callable[[], None]] = []

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        """Return the result of a method of a node's agent. Raises what it answered, or NodeUnreachable."""
        return await self._call(
            {"node": node, "method": method, "params": params, "timeout_s": timeout_s}, timeout_s + _SPARE_S
        )

    async def run(self) -> None:
        """Keep a broker running until cancelled, then end it."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = self._clock.now()
            why = await self._run_once()
            pause_s = _FIRST_PAUSE_S if self._clock.now() - began > _STEADY_S else pause_s
            _LOG.warning("%s; it is started again in %g s", why, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_once(self) -> str:
        """Run one broker until it ends, and return why it did."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            env={**_PROMPT, **os.environ},
            # A Ctrl-C at the terminal is the daemon's; the broker ends with its standard input.
            start_new_session=True,
        )
        self._process = process
        pinging = asyncio.create_task(self._ping(process))
        problem = None
        try:
            while process.stdout is not None and (line := await process.stdout.readline()):
                problem = self._take(json.loads(line)) or problem
            status = await process.wait()
            why = problem or f"Ray's broker ended with status {status}"
        except ValueError as error:
            why = f"Ray's broker wrote what is no message: {error}"
        finally:
            pinging.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._process = None
            self._set((), "Ray's broker has ended")
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(NodeUnreachable("the way to the nodes is being made anew"))
        self._set((), why)
        return why

    def _take(self, message: Json) -> str | None:
        """Take a line; return the broker's problem if it is one."""
        if "nodes" in message:
            self._set(tuple(from_json(Route, each) for each in message["nodes"]), None)
        elif "id" in message:
            waiting = self._waiting.get(message["id"])
            if waiting is not None and not waiting.done():
                if "error" in message:
                    waiting.set_exception(error_from(from_json(ErrorBody, message["error"])))
                else:
                    waiting.set_result(message["result"])
        problem: str | None = message.get("problem")
        return problem

    def _set(self, routes: tuple[Route, ...], problem: str | None) -> None:
        if (routes, problem) != (self.routes, self.problem):
            self.routes, self.problem = routes, problem
            for listener in self.listeners:
                listener()

    async def _call(self, message: Json, timeout_s: float) -> Json:
        process = self._process
        if process is None or process.stdin is None:
            raise NodeUnreachable("the way to the nodes is being made anew", hint=self.problem or "")
        number = next(self._numbers)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                process.stdin.write(json.dumps({"id": number, **message}).encode() + b"\n")
                return await answer
        except TimeoutError:
            raise NodeUnreachable(f"Ray's broker did not answer in {timeout_s:g} s") from None
        finally:
            del self._waiting[number]

    async def _ping(self, process: asyncio.subprocess.Process) -> None:
        """Kill a broker that hangs; one that has not joined yet answers nothing, and limits that itself."""
        began = self._clock.now()
        while True:
            await asyncio.sleep(_PING_EVERY_S)
            if self.problem is not None and self._clock.now() < began + _JOIN_S:
                continue
            try:
                await self._call({}, _PING_S)
            except NodeUnreachable:
                _LOG.warning("Ray's broker hangs, and is killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return
