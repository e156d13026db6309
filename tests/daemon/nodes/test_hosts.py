"""Where engines start, and where their logs are read afterwards."""

from dataclasses import replace
from pathlib import Path

from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.interfaces import Engine, EngineOrder
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.file_messages import LogBytes
from cotenant.nodes.protocol import Json, to_json
from tests.nodes.test_engine_host import Scripted, status
from tests.support.engines.orders import gpu_order, host_order


class Nowhere:
    """A host of this machine, on which nothing is to start."""

    async def start(self, order: EngineOrder) -> Engine:
        raise AssertionError(order.name)


class Here:
    """A host of this machine, on which all starts."""

    async def start(self, order: EngineOrder) -> Engine:
        return None  # type: ignore[return-value]


async def test_the_log_of_an_engine_is_read_where_it_ran() -> None:
    async def answer(method: str, params: Json) -> Json:
        if method == "log":
            return to_json(LogBytes(f"{params['name']} at {params['offset']}".encode(), 5, 99, Path("/log")))
        return to_json(status(params["id"]))

    asked = []

    async def ensure(host: NodeEngineHost, order: EngineOrder) -> None:
        asked.append((host.node, order.name))

    hosts = NodeHosts(Nowhere(), lambda node: NodeEngineHost(node, Scripted(answer), 1), ensure)
    hosts.of("b")
    order = gpu_order((3, 2))
    share = order.placement.shares[0]
    device = replace(share.device, node="b")
    placed = replace(order.placement, shares=(replace(share, budget=replace(share.budget, device=device)),))
    assert hosts.log_of("big") is None
    await hosts.start(replace(order, placement=placed))
    assert asked == [("b", "big")], "it has the files before"
    read = hosts.log_of("big")
    assert read is not None
    assert await read(7, 10) == (b"big at 7", 5, 99)
    assert hosts.log_node("big") == "b"


async def test_the_log_of_an_engine_of_an_earlier_daemon_is_read_where_it_was_written_last() -> None:
    async def answer(method: str, params: Json) -> Json:
        return to_json(LogBytes(params["name"].encode(), 0, 9, Path("/log")))

    async def ensure(host: NodeEngineHost, order: EngineOrder) -> None:
        pass

    hosts = NodeHosts(Here(), lambda node: NodeEngineHost(node, Scripted(answer), 1), ensure)
    hosts.note_logs("b", {"org%2Fchat": 20.0, "other": 5.0})
    hosts.note_logs("c", {"org%2Fchat": 10.0, "other": 6.0})
    assert (hosts.log_node("org/chat"), hosts.log_node("other"), hosts.log_node("new")) == ("b", "c", None)
    read = hosts.log_of("org/chat")
    assert read is not None
    assert (await read(None, 9))[0] == b"org/chat"
    await hosts.start(replace(host_order(Path("m.gguf")), name="other"))
    assert hosts.log_of("other") is None, "its last engine is one of this machine"
