from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest

from cotenant.clock import SystemClock
from cotenant.config.watch import POLL_S, Change, Watched, watch

SOON_S = 2.0
Play = Callable[[AsyncIterator[Change]], Awaitable[None]]


def watching(folder: Path, play: Play) -> None:
    async def run() -> None:
        watched = Watched((folder / "cotenant.yaml",), folder / "models")
        changes = watch(lambda: watched)
        async with aclosing(cast(AsyncIterator[Change], changes)) as following:  # type: ignore[type-var]
            await anext(following)
            await play(following)

    asyncio.run(run())


async def soon(changes: AsyncIterator[Change]) -> Change:
    return await asyncio.wait_for(anext(changes), SOON_S)


@pytest.mark.slow
def test_a_change_of_the_configuration_or_the_folder_is_told_within_two_seconds(folder: Path) -> None:
    async def play(changes: AsyncIterator[Change]) -> None:
        (folder / "cotenant.yaml").write_text("server: {}")
        assert await soon(changes) == Change()
        (folder / "models" / "sub").mkdir()
        os.link(folder / "models" / "tiny.gguf", folder / "models" / "sub" / "new.gguf")
        assert await soon(changes) == Change()
        (folder / "models" / "tiny.gguf").unlink()
        assert await soon(changes) == Change()

    watching(folder, play)


@pytest.mark.slow
def test_a_growing_file_is_unsettled_until_it_is_quiet(folder: Path) -> None:
    growing = folder / "models" / "growing.gguf"

    async def grow(until: asyncio.Event) -> None:
        with growing.open("ab", buffering=0) as file:
            while not until.is_set():
                file.write(b"x")
                await asyncio.sleep(0.1)

    async def play(changes: AsyncIterator[Change]) -> None:
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(grow(done))
            while not growing.exists():
                await asyncio.sleep(0.01)
            # Long enough for a look to have seen it grow.
            await asyncio.sleep(2 * POLL_S)
            (folder / "models" / "tiny.gguf").unlink()
            assert await soon(changes) == Change(frozenset([growing]))
            done.set()
            assert await soon(changes) == Change()

    watching(folder, play)


@pytest.mark.slow
def test_nothing_is_told_while_nothing_changes_and_a_hundred_files_cost_next_to_nothing(folder: Path) -> None:
    for number in range(100):
        (folder / "models" / f"{number}.gguf").touch()

    async def play(changes: AsyncIterator[Change]) -> None:
        before, clock = resource.getrusage(resource.RUSAGE_SELF), SystemClock()
        started = clock.now()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 3)
        after, took_s = resource.getrusage(resource.RUSAGE_SELF), clock.now() - started
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{100 * used_s / took_s:.3f} % of a core")
        assert used_s / took_s < 0.01

    watching(folder, play)


@pytest.mark.slow
def test_a_folder_that_goes_away_is_told(folder: Path) -> None:
    async def play(changes: AsyncIterator[Change]) -> None:
        (folder / "models").rename(folder / "elsewhere")
        assert await soon(changes) == Change()

    watching(folder, play)
