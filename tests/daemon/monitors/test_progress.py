"""When the daemon looks at how far a load is."""

import asyncio

import pytest

from cotenant.clock import SystemClock
from cotenant.daemon.monitors import load_progress
from cotenant.daemon.monitors.load_progress import LoadWatcher
from cotenant.hardware.model_cache.load_progress import LoadedBytes
from tests.daemon.core.test_loop import Engine, Host, fleet
from tests.support.waiting import until


class SlowToStart(Host):
    """An engine whose process is there only after a while, as one in an image."""

    def __init__(self) -> None:
        super().__init__(at_once=False, fails=False)
        self.may_start = asyncio.Event()

    async def start(self, order) -> Engine:
        await self.may_start.wait()
        return await super().start(order)


async def test_a_load_is_watched_though_its_process_is_long_in_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = SlowToStart()
    daemon, _ = fleet(100, host=host)
    looks = 0

    def look_at(pid: int, paths: object) -> LoadedBytes:
        return LoadedBytes(5, 10)

    def count_pauses(name: str) -> object:
        nonlocal looks
        looks += 1
        return entry_of(name)

    monkeypatch.setattr(load_progress, "loaded_bytes", look_at)
    entry_of = daemon.view.entry
    monkeypatch.setattr(daemon.view, "entry", count_pauses)
    watcher = LoadWatcher(daemon.view, SystemClock(), every_s=0.005)
    daemon.loop.feed.listeners.append(watcher.decided)
    loading = asyncio.create_task(daemon.operator.load("m0"))
    await until(lambda: looks > 2)
    host.may_start.set()
    (running,) = daemon.loop.effects.running.values()
    await until(lambda: running.loaded_bytes == LoadedBytes(5, 10))
    host.engines[0].ready.set()
    await loading
    await daemon.loop.stop(0)
