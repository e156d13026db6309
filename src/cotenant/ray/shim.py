"""A detached actor on each node of Ray: it keeps the node's agent up, and carries calls to its socket."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from cotenant.domain.errors import CotenantError
from cotenant.domain.nodes import AgentGone, NodeUnreachable
from cotenant.nodes.paths import AgentFolder
from cotenant.nodes.protocol import Json, error_to_json
from cotenant.nodes.transport import SocketTransport
from cotenant.ray.environment import agent_environment, token_mode

_START_S: Final = 20.0
_TRY_AGAIN_S: Final = 0.05
_DETACH: Final = (
    "import os, sys; os.fork() and os._exit(0); os.setsid(); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Makes the agent nobody's child: Ray ends the children of a worker with it."""
_FLAGS: Final = {
    "--name": "COTENANT_NODE",
    "--gpus": "COTENANT_GPUS",
    "--llama-server": "COTENANT_LLAMA_SERVER",
}
"""What a machine may say of itself, in the environment of its `ray start`."""


class Shim:
    """Passes calls to the agent of this machine, and starts that where nothing listens.

    It reads neither methods nor bodies, so an agent of another version can say itself that it is one.
    """

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self._name = os.environ.get(_FLAGS["--name"]) or os.uname().nodename
        self._folder = AgentFolder.of(fleet)
        self._transport = SocketTransport(lambda _: self._folder.socket)
        self._starting: asyncio.Task[None] | None = None
        self._heard = False

    async def call(self, method: str, params: Json, timeout_s: float) -> Json:
        """Return `{"result": …}` or `{"error": ErrorBody}`: Ray cannot carry every exception.

        That an agent has ended which answered before is said to each call until the next one listens.
        """
        try:
            try:
                return {"result": await self._call(method, params, timeout_s)}
            except AgentGone as error:
                starting = self._start_agent()
                if self._heard:
                    raise AgentGone(f"the agent of {self._name} has ended, with all its engines") from error
            await asyncio.shield(starting)
            return {"result": await self._call(method, params, timeout_s)}
        except CotenantError as error:
            return {"error": error_to_json(error)}

    async def _call(self, method: str, params: Json, timeout_s: float) -> Json:
        found = await self._transport.call(self._name, method, params, timeout_s)
        self._heard = True
        return found

    def _start_agent(self) -> "asyncio.Task[None]":
        """Return what starts the agent, or has begun to."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._start_ended)
        return self._starting

    def _start_ended(self, starting: "asyncio.Task[None]") -> None:
        self._starting = None
        if starting.cancelled() or starting.exception() is not None:
            # Why it failed is said to the next call, which waits for another try.
            self._heard = False

    async def environment(self) -> Mapping[str, str]:
        """Return what Ray was started with here, but for what is secret, and who may read its token."""
        said = {k: v for k, v in os.environ.items() if k.startswith("RAY_") and k != "RAY_AUTH_TOKEN"}
        return {**said, **token_mode(os.environ)}

    async def _start(self) -> None:
        """Start the agent, and return once it listens. Raises NodeUnreachable."""
        path = self._folder.log
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        given = [
            arg for flag, name in _FLAGS.items() if os.environ.get(name) for arg in (flag, os.environ[name])
        ]
        agent = ("-m", "cotenant.cli.main", "agent", "--fleet", self._fleet, *given)
        with path.open("ab") as log:
            began = log.tell()
            await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", _DETACH, *agent],
                env=agent_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                check=True,
            )
        try:
            async with asyncio.timeout(_START_S):
                while not await self._listens():  # noqa: ASYNC110 — the agent is no child of ours
                    await asyncio.sleep(_TRY_AGAIN_S)
        except TimeoutError:
            lines = path.read_bytes()[began:].decode(errors="replace").split("\n")
            said = " ".join(line.strip() for line in lines[-4:] if line.strip())
            raise NodeUnreachable(
                f"the agent did not start within {_START_S:g} s: {said or 'it said nothing'}",
                hint=f"Its log is {path}.",
            ) from None

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(self._folder.socket)
        except OSError:
            return False
        writer.close()
        return True
