import asyncio

from cotenant.daemon.core.abandoned_slots import AbandonedSlotReaper
from tests.support.waiting import until


class Slots:
    """An engine of which only the slots matter."""

    def __init__(self) -> None:
        self.busy: int | None = 2
        self.looks = 0

    async def busy_slots(self) -> int | None:
        self.looks += 1
        return self.busy


def test_an_abandoned_slot_stays_taken_until_the_engine_frees_it() -> None:
    async def run() -> None:
        engine, released = Slots(), []
        reaper = AbandonedSlotReaper(engine, lambda: 2 - len(released), poll_s=0.005)  # type: ignore[arg-type]
        reaper.abandon(lambda: released.append(1))
        await until(lambda: engine.looks >= 4)
        assert not released, "one live request and one abandoned still fill two slots"
        engine.busy = 1
        await until(lambda: bool(released))

    asyncio.run(run())


def test_an_engine_that_never_shows_its_slots_keeps_none_for_ever() -> None:
    async def run() -> None:
        engine, released = Slots(), []
        engine.busy = None
        reaper = AbandonedSlotReaper(engine, lambda: 1 - len(released), poll_s=0.001)  # type: ignore[arg-type]
        reaper.abandon(lambda: released.append(1))
        await until(lambda: bool(released))
        assert engine.looks >= 20

    asyncio.run(run())


def test_nothing_is_released_once_the_engine_is_gone() -> None:
    async def run() -> None:
        engine, released = Slots(), []
        reaper = AbandonedSlotReaper(engine, lambda: 1, poll_s=0.001)  # type: ignore[arg-type]
        reaper.abandon(lambda: released.append(1))
        reaper.close()
        engine.busy = 0
        later: list[int] = []
        another = AbandonedSlotReaper(engine, lambda: 1, poll_s=0.002)  # type: ignore[arg-type]
        another.abandon(lambda: later.append(1))
        await until(lambda: bool(later))
        assert not released, "the first would have looked before, and seen as much"

    asyncio.run(run())
