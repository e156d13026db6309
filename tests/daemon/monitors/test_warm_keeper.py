"""Files of models that are wanted next are in RAM, and whoever asks is told so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cotenant.clock import SystemClock
from cotenant.config.model_file_cache import signature
from cotenant.daemon.core.fleet import spec_of
from cotenant.daemon.monitors.warm_keeper import OwnModelCache, WarmKeeper
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.units import GIB, MIB
from cotenant.hardware.gpus.host import HostMemory
from cotenant.hardware.model_cache.page_cache import drop, resident_bytes
from cotenant.hardware.model_cache.warm import WarmTier
from cotenant.scheduling.events import ModelsChanged
from tests.daemon.core.test_loop import RULES, Host, Parts, fleet
from tests.hardware.model_cache.test_warm import CALM, SIZE, cold_file
from tests.support.waiting import until


class Memory:
    """What the machine is said to have."""

    def __init__(self, folder: Path) -> None:
        self.available_bytes = 32 * GIB
        self.pressure = folder / "pressure"
        self.pressure.write_text(CALM)

    def __call__(self) -> HostMemory:
        return HostMemory(64 * GIB, self.available_bytes)


@asynccontextmanager
async def kept(
    folder: Path, *sizes_mib: int, limit: int | None = None, every_s: float = 3600.0, at_once: bool = True
) -> AsyncIterator[tuple[Parts, Host, list[Path], Memory]]:
    """Serve models whose files are cold, on a card of 1 GiB, and keep what is wanted next."""
    daemon, host = fleet(*sizes_mib, at_once=at_once)
    files = [cold_file(folder / f"m{number}") for number in range(len(sizes_mib))]
    entries = [
        replace(entry, path=file, parts=(file,), signature=(signature(file),))
        for entry, file in zip(daemon.loop.fleet.entries.values(), files, strict=True)
    ]
    daemon.loop.serve(entries, ModelsChanged(0.0, tuple(spec_of(entry, RULES, 10.0) for entry in entries)))
    memory = Memory(folder)
    tier = WarmTier(limit, SystemClock(), memory, floor_bytes=GIB, pressure=memory.pressure)
    keeper = WarmKeeper(OwnModelCache(tier), daemon.loop, daemon.view, every_s=every_s)
    daemon.loop.feed.listeners.append(keeper.decided)
    running = asyncio.create_task(keeper.run())
    try:
        yield daemon, host, files, memory
    finally:
        running.cancel()
        await asyncio.wait([running])
        await daemon.loop.stop(0)


async def use(daemon: Parts, name: str) -> None:
    (await daemon.router.lease(name)).release()


def warm(daemon: Parts) -> dict[str, int]:
    status = daemon.operator.warm()
    assert status is not None
    return {name: count for name, count in status.by_model.items() if count}


def story(daemon: Parts, name: str) -> list[str]:
    return [each.text for each in daemon.operator.why(name) if each.kind is DecisionKind.WARM]


async def test_an_evicted_model_is_kept_in_ram_and_everyone_is_told(tmp_path: Path) -> None:
    async with kept(tmp_path, 600, 600) as (daemon, _, files, _):
        await use(daemon, "m0")
        await use(daemon, "m1")
        await until(lambda: warm(daemon).get("m0") == SIZE)
        assert resident_bytes(files[0]) == SIZE
        status = daemon.operator.warm()
        assert status is not None
        assert status.kept_bytes >= SIZE
        assert status.budget_bytes == 16 * GIB
        assert {each.name: each.warm_bytes for each in daemon.operator.statuses()}["m0"] == SIZE
        assert any("of its files are kept in host RAM" in text for text in story(daemon, "m0"))


async def test_what_was_never_requested_is_not_read(tmp_path: Path) -> None:
    async with kept(tmp_path, 100, 100) as (daemon, _, files, _):
        await use(daemon, "m0")
        await until(lambda: "m0" in warm(daemon))
        assert resident_bytes(files[1]) == 0


async def test_pages_that_the_kernel_took_are_read_again(tmp_path: Path) -> None:
    async with kept(tmp_path, 100, every_s=0.01) as (daemon, _, (file,), _):
        await use(daemon, "m0")
        for _ in range(2):
            await until(lambda: resident_bytes(file) == SIZE)
            drop(file)
        await until(lambda: resident_bytes(file) == SIZE)


async def test_nothing_is_read_while_another_model_loads(tmp_path: Path) -> None:
    async with kept(tmp_path, 600, 600, at_once=False) as (daemon, host, files, _):
        first = asyncio.create_task(use(daemon, "m0"))
        await until(lambda: len(host.engines) == 1)
        host.engines[0].ready.set()
        await first
        await until(lambda: warm(daemon) == {"m0": SIZE})
        second = asyncio.create_task(use(daemon, "m1"))
        await until(lambda: len(host.engines) == 2)
        await asyncio.to_thread(drop, files[0])
        await until(lambda: "m1 is loading" in (((status := daemon.operator.warm()) and status.paused) or ""))
        assert resident_bytes(files[0]) == 0
        host.engines[1].ready.set()
        await second
        await until(lambda: resident_bytes(files[1]) == SIZE)


async def test_less_is_kept_when_the_budget_shrinks_and_the_memory_is_given_back(tmp_path: Path) -> None:
    async with kept(tmp_path, 100, 100, every_s=0.01) as (daemon, _, files, memory):
        await use(daemon, "m0")
        await use(daemon, "m1")
        await until(lambda: warm(daemon) == {"m0": SIZE, "m1": SIZE})
        memory.available_bytes = GIB + SIZE
        await until(lambda: len(warm(daemon)) == 1)
        gone = ({"m0", "m1"} - warm(daemon).keys()).pop()
        await until(lambda: resident_bytes(files[int(gone[1])]) == 0)
        assert "no longer kept" in story(daemon, gone)[-1]


async def test_under_pressure_half_is_given_back_at_each_look(tmp_path: Path) -> None:
    async with kept(tmp_path, 100, 100, every_s=0.01) as (daemon, _, _, memory):
        await use(daemon, "m0")
        await use(daemon, "m1")
        await until(lambda: len(warm(daemon)) == 2)
        memory.pressure.write_text(CALM.replace("some avg10=0.00", "some avg10=31.40"))
        await until(lambda: sum(warm(daemon).values()) < MIB)
        memory.pressure.write_text(CALM)
        await until(lambda: len(warm(daemon)) == 2)


async def test_a_file_of_two_models_stays_while_one_of_them_wants_it(tmp_path: Path) -> None:
    async with kept(tmp_path, 100, 100, every_s=0.01) as (daemon, _, files, memory):
        shared = [replace(entry, parts=(files[0],)) for entry in daemon.loop.fleet.entries.values()]
        daemon.loop.serve(shared, ModelsChanged(0.0, tuple(spec_of(entry, RULES, 10.0) for entry in shared)))
        await use(daemon, "m0")
        await use(daemon, "m1")
        await until(lambda: len(warm(daemon)) == 2)
        memory.available_bytes = GIB + SIZE
        await until(lambda: len(warm(daemon)) == 1)
        assert resident_bytes(files[0]) == SIZE
