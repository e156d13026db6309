"""The loop with devices of several machines: processes and Readings of one are not taken for another's."""

from __future__ import annotations

from dataclasses import replace

from cotenant.domain.devices import Device, DeviceId, DeviceKind, GpuProcess, Reading
from cotenant.domain.units import GIB
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead
from tests.daemon.core.test_loop import Host, Parts, fleet


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
