"""A model over two machines: agents that are processes, llama.cpp on the CPU, and the gate between them.

It needs a llama-server with RPC, and its ggml-rpc-server beside it (COTENANT_TEST_LLAMA_SERVER).
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.errors import BadRecipe, EngineLoadFailed
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.placements import Budget, Placement
from cotenant.domain.units import MIB
from cotenant.engines.llama_cpp.builds import server_build
from cotenant.interfaces import EngineOrder
from cotenant.model_files import load_model
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.messages import EngineState, GateSettings
from cotenant.nodes.spanning import SpanningEngine
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.over_machines import place_over_machines
from cotenant.planning.planner import PlanRequest
from tests.daemon.nodes.test_hosts import Nowhere
from tests.engines.contract import complete
from tests.support.agents import AgentProcess, Daemon, agent
from tests.support.http.tls_server import Authority
from tests.support.models.known_model import KNOWN_PROMPT, KNOWN_TEXT, known_model, real_server
from tests.support.nodes.agent_fleet import daemon
from tests.support.waiting import alive, until

pytestmark = [pytest.mark.slow, pytest.mark.engine]

_READY_WITHIN_S = 60.0


def rpc_server() -> Path:
    """Return a llama-server that can share a model; skip without one."""
    server = real_server()
    if server_build(server).rpc_server is None:
        pytest.skip(f"{server} has no RPC: build llama.cpp with -DGGML_RPC=ON")
    return server


def order(*mib: float) -> EngineOrder:
    """Return the order for the known model over described GPUs of so many MiB, one on each machine."""
    path = known_model()
    budgets = [
        Budget(Device(DeviceId(f"{node}0"), DeviceKind.GPU, "card", 0, node=node, described=True), size, size)
        for node, size in zip("bcd", (round(each * MIB) for each in mib), strict=False)
    ]
    recipe = Recipe(n_ctx=256, parallel=1, n_ubatch=64)
    request = PlanRequest("story", load_model(path), recipe, across_nodes=True)
    placed = place_over_machines(request, budgets, BudgetRules(overhead_bytes=0))
    assert isinstance(placed, Placement), placed.reason
    assert placed.nodes == ("b", "c", "d")[: len(mib)]
    return EngineOrder("story", path, ModelKind.TEXT, placed)


async def _has_files(host: NodeEngineHost, order: EngineOrder) -> None:
    pass


@contextlib.asynccontextmanager
async def machines(
    folder: Path,
    *names: str,
    gate: GateSettings | None = None,
    ca: Path | None = None,
) -> AsyncIterator[tuple[NodeHosts, dict[str, Daemon]]]:
    """Have an agent for each machine, and a daemon that reaches all."""
    server, hosts = rpc_server(), NodeHosts(Nowhere(), pytest.fail, _has_files)
    daemons: dict[str, Daemon] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            own = folder / name
            own.mkdir()
            flags = ("--name", name, "--llama-server", str(server))
            running = stack.enter_context(agent(own, *flags, env={"COTENANT_MACHINE_ID": name}))
            daemon = Daemon(running, name=name, ca_of=lambda _: None if ca is None else str(ca))
            daemon.gate = gate or daemon.gate
            daemons[name] = await stack.enter_async_context(daemon.connected())
            hosts.by_node[name] = daemon.host
        yield hosts, daemons


@contextlib.asynccontextmanager
async def ready(hosts: NodeHosts, wanted: EngineOrder) -> AsyncIterator[SpanningEngine]:
    engine = await hosts.start(wanted)
    assert isinstance(engine, SpanningEngine)
    try:
        await engine.wait_ready(_READY_WITHIN_S)
        yield engine
    finally:
        await engine.stop(2)


def pids(engine: SpanningEngine) -> list[int]:
    found = [each.node_pid for each in (engine.main, *engine.parts)]
    assert all(found)
    return [pid for pid in found if pid is not None]


async def test_a_model_over_three_machines_answers_as_on_one_by_tls_and_ends_on_all(tmp_path: Path) -> None:
    wanted, authority = order(1.0, 0.8, 0.6), Authority.made(tmp_path)
    gate = GateSettings("127.0.0.1", 0, *authority.signed("server"))
    async with machines(tmp_path, "b", "c", "d", gate=gate, ca=authority.certificate) as (hosts, _):
        async with ready(hosts, wanted) as engine:
            assert all(part.endpoint.tls for part in engine.parts)
            report = engine.report()
            assert report is not None
            lent = [each.parts for each in report.devices if each.name.startswith("RPC")]
            planned = [share.parts for share in wanted.placement.used_shares[1:]]
            for parts, plan in zip(lent, planned, strict=True):
                # The log has two digits.
                assert abs(parts.weights - plan.weights) < 0.01 * MIB
                assert abs(parts.kv - plan.kv) < 0.01 * MIB
            running = pids(engine)
            assert len(set(running)) == 3
        assert not any(map(alive, running))


async def test_whichever_part_of_it_fails_all_of_them_end_and_it_is_said_which(tmp_path: Path) -> None:
    wanted = order(1.2, 0.7)
    async with machines(tmp_path, "b", "c") as (hosts, daemons):
        for dies, said in (("part", "its part on c is gone: story-part died"), ("main", "story died")):
            async with ready(hosts, wanted) as engine:
                main, part = pids(engine)
                os.kill(part if dies == "part" else main, signal.SIGKILL)
                async with asyncio.timeout(60):
                    end = await engine.wait_exit()
                assert end.why.startswith(said)
            assert not any(map(alive, (main, part)))

        loading = await hosts.start(wanted)
        assert isinstance(loading, SpanningEngine)
        main, part = pids(loading)
        os.kill(main, signal.SIGSTOP)
        os.kill(part, signal.SIGKILL)
        with pytest.raises(EngineLoadFailed, match="its part on c is gone: story-part died"):
            await loading.wait_ready(_READY_WITHIN_S)
        await loading.stop(0)
        assert not alive(main)

        with pytest.raises(BadRecipe, match="--port"):
            await hosts.start(replace(wanted, args=("--port", "1")))
        left = {each.state for each in (await daemons["c"].hello()).engines}
        assert left <= {EngineState.ENDED}, "nothing lends GPUs to an engine that is not there"


@contextlib.contextmanager
def two_machines(folder: Path, mib: Mapping[str, int]) -> Iterator[dict[str, AgentProcess]]:
    """Have machines with a described GPU of so many MiB each."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, size in mib.items():
            (folder / name).mkdir(exist_ok=True)
            flags = ("--name", name, "--gpus", f"card:{size}:0", "--llama-server", str(rpc_server()))
            found[name] = stack.enter_context(agent(folder / name, *flags, env={"COTENANT_MACHINE_ID": name}))
        yield found


def may_be_over(agents: Mapping[str, AgentProcess], epoch: int = 1, *, stop: bool = True) -> Any:
    """A daemon that serves the known model, which may be over machines."""
    path = known_model()
    return daemon(agents, path, epoch, stop=stop, across_nodes=load_model(path), n_ubatch=64)


async def test_a_model_that_fits_no_machine_is_planned_started_asked_and_stopped_over_two(
    tmp_path: Path,
) -> None:
    with two_machines(tmp_path, {"b": 513, "c": 513}) as agents:
        async with may_be_over(agents) as only:
            parts = only.parts
            await parts.operator.load("m")
            running = only.engine_pids()
            assert len(running) == 2
            (status,) = parts.operator.statuses()
            assert (status.node, status.link_bytes) == ("b", 4 * (64 + 512))
            assert len(status.devices) == 2
            lease = parts.router.try_lease("m")
            assert lease is not None
            answered = await complete(lease, model="m", prompt=KNOWN_PROMPT, max_tokens=27)
            assert KNOWN_TEXT.encode() in answered
            lease.release()
            loads = [each.text for each in parts.operator.why("m") if each.kind is DecisionKind.LOAD]
            assert "over 2 of them it is slow, and 2 KiB cross the network for each token" in loads[0]
            await parts.operator.unload("m")
            await until(lambda: not any(map(alive, running)))


async def test_if_a_machine_is_lost_the_rest_is_stopped_and_it_is_loaded_again_once_that_is_back(
    tmp_path: Path,
) -> None:
    with two_machines(tmp_path, {"b": 513, "c": 513}) as agents:
        async with may_be_over(agents) as only:
            await only.parts.operator.load("m")
            main, part = only.engine_pids()
            only.road.closed_to.add("c")
            only.clock.ahead_s += 31
            await until(lambda: only.parts.operator.statuses()[0].state == "suspended")
            # The other machine answers within this.
            await until(lambda: only.fleet.nodes["b"].liveness.silent_s(only.clock.now()) < 5)
            only.clock.ahead_s += 31
            await until(lambda: only.engine_pids() == [])
            await until(lambda: not alive(main))
            assert alive(part), "nobody reaches its machine: it runs until that is back, or its lease is over"
            only.road.closed_to.clear()
            await until(lambda: not alive(part))
            await only.parts.operator.load("m")
            assert len(only.engine_pids()) == 2


async def test_the_next_daemon_ends_what_is_left_of_it_and_loads_it_anew(tmp_path: Path) -> None:
    with two_machines(tmp_path, {"b": 513, "c": 513}) as agents:
        async with may_be_over(agents, stop=False) as first:
            await first.parts.operator.load("m")
            before = first.engine_pids()
        assert all(map(alive, before))
        async with may_be_over(agents, 2) as second:
            await until(lambda: not any(map(alive, before)))
            await second.parts.operator.load("m")
            assert len(second.engine_pids()) == 2
