"""What an agent tells of its devices, of its engines' memory, of loads, and of logs."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cotenant.agent.engines import AgentEngines
from cotenant.agent.events import EventLog
from cotenant.agent.gate import Gate
from cotenant.agent.readings import Readings
from cotenant.clock import ManualClock
from cotenant.domain.devices import Device, DeviceId, DeviceKind, GpuProcess, Inventory, Reading
from cotenant.domain.units import MIB
from cotenant.domain.vendors import InventorySource
from cotenant.nodes.messages import ReadingTaken
from tests.support.agents import Daemon, agent
from tests.support.engines.orders import fake_server, host_order, with_env
from tests.support.gpus.paper_machine import PaperMachine
from tests.support.waiting import until

CARD = Device(DeviceId("GPU-1"), DeviceKind.GPU, "card", index=0, total_bytes=1000 * MIB)


class Driver:
    """A probe of one card, whose reading a test sets."""

    def __init__(self) -> None:
        self.reading = Reading(CARD.id, 0.0, 0, 1000 * MIB, processes=())
        self.asked = 0

    def inventory(self) -> Inventory:
        self.asked += 1
        return Inventory(InventorySource.NVML, (CARD,), {CARD.id: self.reading})

    def holds(self, mib: int, *pids: int) -> None:
        processes = tuple(GpuProcess(pid, "p", 1) for pid in pids)
        self.reading = Reading(CARD.id, 0.0, mib * MIB, (1000 - mib) * MIB, processes=processes)


async def test_a_reading_is_told_when_it_matters_and_every_ten_seconds() -> None:
    driver, clock, events = Driver(), ManualClock(), EventLog()
    engines = AgentEngines(None, Gate(lambda: False), events)  # type: ignore[arg-type]
    readings = Readings(driver, clock, engines, events)
    first = events.last

    async def looked() -> int:
        """Have it look again; return how many readings were told so far."""
        before = driver.asked
        readings.engine_changed()
        await until(lambda: driver.asked > before)
        readings.engine_changed()
        await until(lambda: driver.asked > before + 1)
        return events.last - first

    async with _running(readings):
        await until(lambda: events.last == first + 1)
        driver.holds(60)
        assert await looked() == 1, "within 64 MiB"
        driver.holds(70)
        assert await looked() == 2
        driver.holds(70, 4_000_000)
        assert await looked() == 3, "a process came"
        clock.advance(10.0)
        assert await looked() == 4
        driver.reading = replace(driver.reading, problem="it fell off the bus")
        assert await looked() == 5
    (kept,) = (await events.after(first, 0.0, clock.now)).events
    assert isinstance(kept, ReadingTaken)
    assert kept.inventory.readings[CARD.id].problem == "it fell off the bus", "only the last one is kept"


async def test_while_memory_is_about_to_be_free_what_has_not_changed_is_told_again_soon() -> None:
    driver, clock, events = Driver(), ManualClock(), EventLog()
    engines = AgentEngines(None, Gate(lambda: False), events)  # type: ignore[arg-type]
    readings = Readings(driver, clock, engines, events)
    first = events.last
    async with _running(readings):
        await until(lambda: events.last == first + 1)
        readings.engine_ended()
        for told in (2, 3):
            clock.advance(0.5)
            await until(lambda told=told: events.last == first + told)
        clock.advance(5.0)
        asked = driver.asked
        readings.engine_changed()
        await until(lambda: driver.asked > asked)
        readings.engine_changed()
        await until(lambda: driver.asked > asked + 1)
        assert events.last == first + 3


@contextlib.asynccontextmanager
async def _running(readings: Readings):  # type: ignore[no-untyped-def]
    task = asyncio.create_task(readings.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_the_memory_of_an_engine_is_told_as_its_own_until_it_is_seen_back(tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, 1000)
    flags = ("--gpus", str(machine.path), "--llama-server", str(fake_server(tmp_path)))
    with agent(tmp_path, *flags) as there:
        async with Daemon(there).connected() as daemon:
            assert [device.name for device in daemon.answer.reading.inventory.devices] == ["paper"]
            taking = {"FAKE_TAKES_MIB": 300, "FAKE_CARD": machine.path, "FAKE_SAYS": "it begins"}
            engine = await daemon.host.start(with_env(host_order(tmp_path / "m.gguf"), **taking))
            await engine.wait_ready(60)
            await _told(
                daemon, lambda told: told.engines == {engine.node_pid: engine.id} and _used(told) == 300
            )
            log = await daemon.host.log("tiny")
            assert b"it begins" in log.data
            assert log.path is not None
            rest = await daemon.host.log("tiny", log.size - 5, 5)
            assert (rest.data, rest.offset, rest.size) == (log.data[-5:], log.size - 5, log.size)
            assert (await daemon.host.log("nobody")).path is None
            progress = await engine.load_progress()
            assert (progress.read_bytes, progress.total_bytes) == (None, None), "the file is none"
            await engine.stop(0)
            await _told(daemon, lambda told: not told.engines and _used(told) == 0)


async def test_a_load_tells_how_far_it_is(tmp_path: Path) -> None:
    model, up_to, ready = tmp_path / "m.gguf", tmp_path / "up_to", tmp_path / "ready"
    model.write_bytes(bytes(20 * MIB))
    up_to.write_text("10")
    with agent(tmp_path, "--llama-server", str(fake_server(tmp_path))) as there:
        async with Daemon(there).connected() as daemon:
            reads = {"FAKE_READS": "calls", "FAKE_READS_UP_TO": up_to, "FAKE_READY_ONCE": ready}
            engine = await daemon.host.start(with_env(host_order(model), **reads))
            async with asyncio.timeout(60):
                while ((await engine.load_progress()).read_bytes or 0) < 10 * MIB:
                    await asyncio.sleep(0.01)
            progress = await engine.load_progress()
            assert progress.total_bytes == 20 * MIB
            assert progress.read_bytes is not None
            assert progress.read_bytes < 12 * MIB
            await engine.stop(0)


async def _told(daemon: Daemon, wanted: Callable[[ReadingTaken], bool]) -> None:
    def last() -> ReadingTaken | None:
        return next((each for each in reversed(daemon.events) if isinstance(each, ReadingTaken)), None)

    await until(lambda: (told := last()) is not None and wanted(told))


def _used(told: ReadingTaken) -> int:
    (reading,) = told.inventory.readings.values()
    return (reading.used_bytes or 0) // MIB


async def test_all_parts_of_a_split_model_are_what_is_to_be_read(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(bytes(2 * MIB))
    second.write_bytes(bytes(3 * MIB))
    with agent(tmp_path, "--llama-server", str(fake_server(tmp_path))) as there:
        async with Daemon(there).connected() as daemon:
            engine = await daemon.host.start(host_order(first))
            await engine.wait_ready(60)
            assert (await engine.load_progress()).total_bytes == 5 * MIB
            await engine.stop(0)
