"""The only driver of Ray: a child of the daemon that carries its calls to the nodes' shims.

`python -m cotenant.ray.broker FLEET ADDRESS` reads lines of JSON from its standard input and writes others
to its standard output:

- `{"id": 1, "node": ID, "method": …, "params": {…}, "timeout_s": 5}` is answered by `{"id": 1, "result": …}`
  or `{"id": 1, "error": ErrorBody}`; without a node, by `{"id": 1, "result": {}}` at once;
- `{"nodes": [{"id", "name", "address", "head", "warnings", "problem"}]}` lists the nodes of Ray that live,
  after each change;
- `{"problem": "…"}` says why there are none; the broker then ends.

Ray aborts its driver's process when the head is gone for long, and some of its calls never return. Each is
made in a thread that nobody waits for.
"""

import asyncio
import contextlib
import json
import os
import sys
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.domain.nodes import NodeUnreachable
from cotenant.nodes.protocol import MAX_LINE_BYTES, Json, error_to_json
from cotenant.ray.environment import warnings
from cotenant.ray.shim import Shim

_CONNECT_S: Final = 30.0
_LIST_EVERY_S: Final = 1.0
_LIST_S: Final = 10.0
_SHIM_S: Final = 30.0
_SPARE_S: Final = 1.0
"""How much longer than an agent's answer a call of Ray may take: the way there and back."""


@dataclass(slots=True)
class _Node:
    """A node of Ray that lives, and its shim once that has answered."""

    id: str
    name: str
    address: str
    head: bool
    shim: Any = None
    warnings: list[str] = field(default_factory=list)
    problem: str | None = "its agent's actor is being started"

    def to_json(self) -> Json:
        """Return it as the daemon gets it."""
        return {
            "id": self.id,
            "name": self.name,
            "address": self.address,
            "head": self.head,
            "warnings": self.warnings,
            "problem": self.problem,
        }


class Broker:
    """Finds the nodes of a cluster, has a shim on each, and carries calls to them."""

    def __init__(self, fleet: str, output: BinaryIO) -> None:
        self._fleet = fleet
        self._output = output
        self._nodes: dict[str, _Node] = {}
        self._last = ""
        self._tasks = BackgroundTasks()

    async def connect(self, address: str) -> None:
        """Join the cluster. Raises RuntimeError, which says why that failed."""

        def join() -> None:
            namespace = f"cotenant-{self._fleet}"
            ray.init(address, namespace=namespace, log_to_driver=False, logging_level="ERROR")

        try:
            async with asyncio.timeout(_CONNECT_S):
                await run_in_detached_thread(join)
        except TimeoutError:
            raise RuntimeError(f"Ray at {address} did not answer within {_CONNECT_S:g} s") from None
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"Ray at {address} cannot be joined: {first or type(error).__name__}"
            ) from error

    async def follow(self) -> None:
        """List the nodes until cancelled; while the head is away the call hangs, and is abandoned."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LIST_S):
                    self._take(await run_in_detached_thread(ray.nodes))
            await asyncio.sleep(_LIST_EVERY_S)

    def take(self, line: bytes) -> None:
        """Begin to carry a call."""
        self._tasks.start(self._carry(json.loads(line)))

    def say(self, message: Json) -> None:
        """Write a line to the daemon."""
        self._output.write(json.dumps(message).encode() + b"\n")
        self._output.flush()

    def _take(self, listed: list[dict[str, Any]]) -> None:
        alive = {each["NodeID"]: each for each in listed if each["Alive"]}
        for gone in self._nodes.keys() - alive.keys():
            del self._nodes[gone]
        for number in alive.keys() - self._nodes.keys():
            each = alive[number]
            address = each["NodeManagerAddress"]
            name = each.get("NodeName") or address
            node = _Node(number, name, address, "node:__internal_head__" in each["Resources"])
            self._nodes[number] = node
            self._tasks.start(self._start_shim(node))
        self._say_nodes()

    def _say_nodes(self) -> None:
        message = {"nodes": [each.to_json() for each in self._nodes.values()]}
        if json.dumps(message) != self._last:
            self._last = json.dumps(message)
            self.say(message)

    async def _start_shim(self, node: _Node) -> None:
        """Have a shim on a node, which an earlier broker may have left there; try until it answers."""

        def start() -> tuple[Any, dict[str, str]]:
            shim = (
                ray.remote(Shim)
                .options(
                    name=f"agent-{node.id}",
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=-1,
                    max_task_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                )
                .remote(self._fleet)
            )
            return shim, ray.get(shim.environment.remote(), timeout=_SHIM_S)

        while self._nodes.get(node.id) is node:
            try:
                async with asyncio.timeout(_SHIM_S + _SPARE_S):
                    node.shim, environment = await run_in_detached_thread(start)
                node.problem = None
                node.warnings = warnings(node.name, environment, head=node.head)
                self._say_nodes()
                return
            except TimeoutError:
                node.problem = f"its agent's actor did not start within {_SHIM_S:g} s"
            except Exception as error:
                last = str(error).strip().rpartition("\n")[2]
                node.problem = f"its agent's actor did not start: {last or type(error).__name__}"
            self._say_nodes()
            await asyncio.sleep(_LIST_EVERY_S)

    async def _carry(self, call: Json) -> None:
        if "node" not in call:
            self.say({"id": call["id"], "result": {}})
            return
        try:
            answer = await self._call(call)
        except NodeUnreachable as error:
            answer = {"error": error_to_json(error)}
        self.say({"id": call["id"], **answer})

    async def _call(self, call: Json) -> Json:
        node = self._nodes.get(call["node"])
        if node is None:
            raise NodeUnreachable(f"Ray has no node {call['node']} any more")
        if node.shim is None:
            raise NodeUnreachable(f"{node.name} cannot be reached yet: {node.problem}")
        timeout_s, shim = float(call["timeout_s"]), node.shim

        def submit() -> Future[Json]:
            submitted: Future[Json] = shim.call.remote(call["method"], call["params"], timeout_s).future()
            return submitted

        try:
            async with asyncio.timeout(timeout_s + _SPARE_S):
                found: Json = await asyncio.wrap_future(await run_in_detached_thread(submit))
                return found
        except TimeoutError:
            raise NodeUnreachable(
                f"{node.name} did not answer `{call['method']}` within {timeout_s:g} s"
            ) from None
        except Exception as error:
            what = str(error).strip().partition("\n")[0]
            raise NodeUnreachable(f"Ray cannot reach the agent of {node.name}: {what}") from error


async def _run(fleet: str, address: str, output: BinaryIO) -> int:
    broker = Broker(fleet, output)
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer)
    try:
        await broker.connect(address)
    except RuntimeError as error:
        broker.say({"problem": str(error)})
        return 1
    following = loop.create_task(broker.follow())
    try:
        while line := await lines.readline():
            broker.take(line)
    finally:
        following.cancel()
    return 0


def main() -> None:
    """Serve the daemon until it is gone; Ray's own exit may hang, so nothing waits for it."""
    # Whatever else writes to the standard output, such as Ray, writes to the log.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    status = 1
    try:
        status = asyncio.run(_run(sys.argv[1], sys.argv[2], output))
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
