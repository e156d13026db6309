import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import cast

from cotenant.config.watch import POLL_S, Change, Watched, watch


class Looks:
    """A clock on which a look takes the time from one to the next; it counts them."""

    def __init__(self) -> None:
        self.made = 0

    def now(self) -> float:
        self.made += 1
        return self.made * POLL_S


Play = Callable[[AsyncIterator[Change], Looks], Awaitable[None]]


def watching(folder: Path, play: Play, before_look: Callable[[], object] = lambda: None) -> None:
    """Watch in virtual time, which passes only while `play` waits for a change."""
    watched = Watched((folder / "cotenant.yaml",), folder / "models")

    def to_watch() -> Watched:
        before_look()
        return watched

    async def run() -> None:
        looks = Looks()
        changes = watch(to_watch, looks, poll_s=0)
        async with aclosing(cast(AsyncIterator[Change], changes)) as following:  # type: ignore[type-var]
            await anext(following)
            await play(following, looks)

    asyncio.run(run())


def test_a_change_of_the_configuration_or_the_folder_is_told_within_two_seconds(folder: Path) -> None:
    async def play(changes: AsyncIterator[Change], looks: Looks) -> None:
        async def soon() -> Change:
            before = looks.made
            change = await anext(changes)
            assert (looks.made - before) * POLL_S <= 2
            return change

        (folder / "cotenant.yaml").write_text("server: {}")
        assert await soon() == Change()
        (folder / "models" / "sub").mkdir()
        os.link(folder / "models" / "tiny.gguf", folder / "models" / "sub" / "new.gguf")
        assert await soon() == Change()
        (folder / "models" / "tiny.gguf").unlink()
        assert await soon() == Change()

    watching(folder, play)


def test_a_growing_file_is_unsettled_until_it_is_quiet(folder: Path) -> None:
    growing = folder / "models" / "growing.gguf"
    looks_left = 10

    def grow() -> None:
        nonlocal looks_left
        looks_left -= 1
        if looks_left == 5:
            (folder / "models" / "tiny.gguf").unlink()
        if looks_left > 0:
            with growing.open("ab") as file:
                file.write(b"x")

    async def play(changes: AsyncIterator[Change], _: Looks) -> None:
        assert await anext(changes) == Change(frozenset([growing]))
        assert looks_left == 5
        assert await anext(changes) == Change()
        assert looks_left < 0

    watching(folder, play, grow)


def test_nothing_is_told_while_nothing_changes(folder: Path) -> None:
    for number in range(100):
        (folder / "models" / f"{number}.gguf").touch()
    looks_left = 50

    def remove_one_at_the_end() -> None:
        nonlocal looks_left
        looks_left -= 1
        if not looks_left:
            (folder / "models" / "7.gguf").unlink()

    async def play(changes: AsyncIterator[Change], _: Looks) -> None:
        assert await anext(changes) == Change()
        assert looks_left == 0

    watching(folder, play, remove_one_at_the_end)


def test_a_folder_that_goes_away_is_told(folder: Path) -> None:
    async def play(changes: AsyncIterator[Change], _: Looks) -> None:
        (folder / "models").rename(folder / "elsewhere")
        assert await anext(changes) == Change()

    watching(folder, play)
