"""The loop with devices of several machines: processes and Readings of one are not taken for another's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cotenant.config.configuration import Configuration
from cotenant.config.values.nodes import NodesSettings
from cotenant.daemon.core.inputs import DaemonInputs
from cotenant.daemon.core.settings import scheduler_settings
from cotenant.daemon.main import run
from cotenant.domain.devices import Device, DeviceId, DeviceKind, GpuProcess, Reading
from cotenant.domain.errors import BadSetting, EngineDied
from cotenant.domain.exit_causes import Cause
from cotenant.domain.units import GIB
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead, NodeLost, NodeSilent
from tests.daemon.core.test_loop import Engine, Host, Parts, fleet
from tests.support.waiting import until


def read(daemon: Parts, node: str, *processes: GpuProcess) -> None:
    """Readings of one node, as its agent sends them."""
    card = Device(DeviceId(f"GPU-{node}"), DeviceKind.GPU, "card", 0, GIB, node=node)
    now = daemon.loop.clock.now()
    daemon.loop.record_readings({card.id: Reading(card.id, now, processes=processes)}, node)
    daemon.loop.post(DevicesRead(now, (DeviceReading(card, now, GIB, GIB, live=False),), node))


async def on_two_nodes() -> tuple[Parts, Host]:
    daemon, host = fleet(700, 700)
    daemon.loop.post(DevicesRead(daemon.loop.clock.now(), ()))
    read(daemon, "a")
    read(daemon, "b")
    await daemon.operator.load("m0")
    await daemon.operator.load("m1")
    return daemon, host


async def test_processes_of_one_number_on_two_nodes_are_two() -> None:
    daemon, host = await on_two_nodes()
    assert {engine.pid for engine in host.engines} == {4242}
    (of_a,), (of_b,) = daemon.loop.effects.pids("a").values(), daemon.loop.effects.pids("b").values()
    assert of_a != of_b
    assert daemon.loop.effects.pids() == {}
    ours, strangers = GpuProcess(4242, "engine", GIB // 2), GpuProcess(1, "blender", GIB // 4)
    read(daemon, "a", ours, strangers)
    told = {status.uuid: status.processes for status in daemon.operator.devices()}
    assert told == {"GPU-a": (strangers,), "GPU-b": ()}
    await daemon.loop.stop(0)


async def test_readings_of_one_node_replace_no_others() -> None:
    daemon, _ = await on_two_nodes()
    before = daemon.loop.readings[DeviceId("GPU-b")]
    daemon.loop.record_readings({}, "a")
    assert daemon.loop.readings == {DeviceId("GPU-b"): before}
    daemon.loop.record_readings({before.device_id: replace(before, at=9.0)}, "b")
    assert daemon.loop.readings[before.device_id].at == 9.0
    await daemon.loop.stop(0)


async def test_an_engine_that_is_found_serves_at_once_and_is_stopped_with_the_daemon() -> None:
    daemon, host = await on_two_nodes()
    model = daemon.loop.scheduler.state.models["m0"]
    placement = daemon.loop.scheduler.state.residency_of(model).placement
    node = placement.node
    daemon.loop.post(NodeLost(daemon.loop.clock.now(), node, "it was cut off"))
    read(daemon, node)
    engine, unwanted = Engine("m0", fails=False), Engine("m0", fails=False)
    daemon.loop.offer_engine("its id", engine, "m0", placement, ready=True)
    lease = daemon.router.try_lease("m0")
    assert lease is not None
    assert lease.endpoint is engine.endpoint
    assert len(host.engines) == 2, "none was started"
    daemon.loop.offer_engine("another", unwanted, "m0", placement, ready=True)
    await until(unwanted.ended.is_set)
    lease.release()
    await daemon.loop.stop(1)
    assert engine.ended.is_set()


async def test_an_engine_that_is_found_while_it_loads_serves_once_it_is_ready() -> None:
    daemon, _ = await on_two_nodes()
    model = daemon.loop.scheduler.state.models["m0"]
    placement = daemon.loop.scheduler.state.residency_of(model).placement
    daemon.loop.post(NodeLost(daemon.loop.clock.now(), placement.node, "it was cut off"))
    read(daemon, placement.node)
    engine = Engine("m0", fails=False)
    daemon.loop.offer_engine("its id", engine, "m0", placement, ready=False)
    assert daemon.router.try_lease("m0") is None
    engine.ready.set()
    lease = await daemon.router.lease("m0")
    assert lease.endpoint is engine.endpoint
    engine.ended.set()
    death = await lease.death(5)
    assert death is None, "it was stopped on purpose"
    lease.release()
    await daemon.loop.stop(0)


async def test_requests_on_a_lost_node_are_told_so_if_they_break_and_its_engine_is_left_alone() -> None:
    daemon, host = await on_two_nodes()
    lease = await daemon.router.lease("m0")
    placement = daemon.loop.effects.running[daemon.loop.scheduler.state.models["m0"].residency].placement
    daemon.loop.post(NodeLost(daemon.loop.clock.now(), placement.node, "it has not answered for 10 s"))
    death = await lease.death(5)
    assert isinstance(death, EngineDied)
    assert death.cause is Cause.NODE_LOST
    assert "has not answered for 10 s" in death.message
    lease.release()
    lost = host.engines[0]
    assert not lost.graces, "nobody asks it to stop"
    assert [*daemon.loop.effects.running] == [daemon.loop.scheduler.state.models["m1"].residency]
    await daemon.loop.stop(0)
    assert not lost.graces


def test_a_daemon_without_ray_says_so_and_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    configuration = Configuration(nodes=NodesSettings())
    inputs = DaemonInputs(configuration, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match="Ray, which starts the agents on other machines, is not installed"):
        run(inputs, None)  # type: ignore[arg-type]


def test_with_nodes_what_does_not_fit_now_may_fit_when_another_machine_answers() -> None:
    with_nodes = Configuration(nodes=NodesSettings())
    assert scheduler_settings(with_nodes).machines_come
    assert not scheduler_settings(Configuration()).machines_come


async def test_a_suspended_model_is_told_as_that() -> None:
    daemon, _ = await on_two_nodes()
    (status, _) = daemon.operator.statuses()
    (node,) = {d.node for d in daemon.view.devices() if d.id in status.devices}
    daemon.loop.post(NodeSilent(daemon.loop.clock.now(), node, 3.0))
    assert daemon.operator.statuses()[0].state == "suspended"
    assert daemon.operator.statuses()[0].others == ()
    await daemon.loop.stop(0)


async def test_a_request_that_failed_on_a_silent_machine_waits_for_no_news_of_its_engine() -> None:
    daemon, _ = await on_two_nodes()
    (status, _) = daemon.operator.statuses()
    (node,) = {d.node for d in daemon.view.devices() if d.id in status.devices}
    lease = daemon.router.try_lease(status.name)
    assert lease is not None
    waiting = asyncio.create_task(lease.death(600.0))
    daemon.loop.effects.miss("another", True)
    await asyncio.sleep(0)
    assert not waiting.done()
    daemon.loop.effects.miss(node, True)
    async with asyncio.timeout(60):
        assert await waiting is None
    daemon.loop.effects.miss(node, False)
    assert await lease.death(0.01) is None
    lease.release()
    await daemon.loop.stop(0)
