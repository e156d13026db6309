"""The core over a real agent, without Ray: it loads there, the next daemon takes over, a lost one is left."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.requests import LeaseTerms
from cotenant.nodes.liveness import Liveness
from tests.support.agents import agent
from tests.support.engines.orders import fake_server
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.nodes.agent_fleet import daemon, machine
from tests.support.waiting import alive, until

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_llama(tmp_path / "tiny.gguf")


async def test_a_model_loads_on_a_machine_and_the_next_daemon_takes_its_engine_over(
    tmp_path: Path, model: Path
) -> None:
    with machine(tmp_path) as running:
        async with daemon(running, model, 1, stop=False) as first:
            await first.parts.operator.load("m")
            (pid,) = first.engine_pids()
            (status,) = first.parts.operator.statuses()
            assert status.state == "ready"
            assert {device.node for device in first.parts.view.devices()} == {"b"}
        assert alive(pid)
        async with daemon(running, model, 2) as second:
            assert second.engine_pids() == [pid]
            lease = second.parts.router.try_lease("m")
            assert lease is not None
            assert lease.endpoint.gate
            lease.release()
            assert "taken over" in second.parts.operator.why("m")[0].text
        assert not alive(pid)


async def test_an_engine_of_a_model_that_is_configured_otherwise_now_is_ended(
    tmp_path: Path, model: Path
) -> None:
    with machine(tmp_path) as running:
        async with daemon(running, model, 1, stop=False) as first:
            await first.parts.operator.load("m")
            (pid,) = first.engine_pids()
        async with daemon(running, model, 2, n_ctx=512) as second:
            await until(lambda: not alive(pid))
            assert second.engine_pids() == []


async def test_what_ran_on_a_lost_machine_is_forgotten_and_taken_over_when_it_is_back(
    tmp_path: Path, model: Path
) -> None:
    with machine(tmp_path) as running:
        async with daemon(running, model, 1) as only:
            await only.parts.operator.load("m")
            (pid,) = only.engine_pids()
            only.road.closed = True
            only.clock.ahead_s += 31
            await until(lambda: only.parts.operator.statuses()[0].state == "suspended")
            only.clock.ahead_s += 31
            await until(lambda: not only.parts.view.devices())
            assert only.engine_pids() == []
            only.road.closed = False
            await until(lambda: only.engine_pids() == [pid])
            await until(lambda: only.parts.operator.statuses()[0].state == "ready")


async def test_when_an_agent_is_killed_its_engines_are_gone_at_once_and_its_memory_with_the_next_one(
    tmp_path: Path, model: Path
) -> None:
    with contextlib.ExitStack() as agents:
        first = agents.enter_context(machine(tmp_path))
        async with daemon(first, model, 1) as only:
            await only.parts.operator.load("m")
            lease = only.parts.router.try_lease("m")
            assert lease is not None
            os.kill(first.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                death = await lease.death(600.0)
            assert "cannot be reached" in str(death)
            lease.release()
            assert only.fleet.nodes["b"].state is Liveness.SUSPECT
            waiting = asyncio.create_task(only.parts.router.lease("m", LeaseTerms(600.0)))
            flags = ("--gpus", str(tmp_path / "machine.yaml"), "--llama-server", str(fake_server(tmp_path)))
            agents.enter_context(agent(tmp_path, *flags, env={"COTENANT_MACHINE_ID": "b"}))
            (await waiting).release()
            kinds = [each.kind for each in only.parts.operator.why("m")]
            assert kinds.count(DecisionKind.READY) == 2
            assert DecisionKind.FREED in kinds
            assert DecisionKind.NOT_FREED not in kinds


async def test_why_an_engine_died_there_has_its_last_lines_and_its_log_is_read_there(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SAYS", "error: the model is haunted")
    with machine(tmp_path) as running:
        async with daemon(running, model, 1) as only:
            await only.parts.operator.load("m")
            (pid,) = only.engine_pids()
            os.kill(pid, signal.SIGSEGV)
            await until(lambda: DecisionKind.FAILED in [d.kind for d in only.parts.operator.why("m")])
            (failed,) = [d for d in only.parts.operator.why("m") if d.kind is DecisionKind.FAILED]
            assert "(the model is haunted)" in failed.text
            assert failed.text.endswith("/m.log on b")
            (served,) = only.parts.router.models()
            assert (served.log_path, served.log_node) == (None, "b")
            read = only.parts.operator.remote_log("m")
            assert read is not None
            assert b"error: the model is haunted" in (await read(None, 65_536))[0]


async def test_over_a_slow_road_that_loses_calls_a_model_loads_once_and_its_machine_is_never_silent(
    tmp_path: Path, model: Path
) -> None:
    with machine(tmp_path) as running:
        async with daemon(running, model, 1) as only:
            only.road.way_s, only.road.loses_one_in, only.road.calls = 0.1, 3, 0
            await only.parts.operator.load("m")
            (pid,) = only.engine_pids()
            lease = only.parts.router.try_lease("m")
            assert lease is not None
            assert await lease.death(0.0) is None
            lease.release()
            only.clock.ahead_s += 20
            await until(lambda: only.fleet.nodes["b"].liveness.silent_s(only.clock.now()) < 10)
            assert only.fleet.nodes["b"].state is Liveness.READY
            kinds = [each.kind for each in only.parts.operator.why("m")]
            assert kinds.count(DecisionKind.LOAD) == kinds.count(DecisionKind.READY) == 1
            assert only.road.calls >= 3
            assert only.engine_pids() == [pid]
            only.road.way_s, only.road.loses_one_in = 0.0, 0
