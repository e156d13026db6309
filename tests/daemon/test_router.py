from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cotenant.daemon.router import SlotLease, SlotRouter
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineDied, QueueFull, UnknownModel, WaitTimeout
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel


class Slots:
    """An engine of which only the slots matter."""

    endpoint = Endpoint("127.0.0.1", 1)

    def __init__(self) -> None:
        self.busy: int | None = 0
        self.looks = 0

    async def busy_slots(self) -> int | None:
        self.looks += 1
        return self.busy


def router(engine: Slots, slots: int = 2, max_queue: int = 2, wait_timeout_s: float = 5.0) -> SlotRouter:
    model = ServedModel("m", ModelKind.TEXT, 0, aliases=("alias",))
    return SlotRouter(
        engine,  # type: ignore[arg-type]
        model,
        slots=slots,
        max_queue=max_queue,
        wait_timeout_s=wait_timeout_s,
        also_known_as=("local",),
        settle_poll_s=0.01,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def taken(lease: SlotLease | None) -> SlotLease:
    assert lease is not None
    return lease


def test_slots_are_granted_at_once_by_any_name_and_others_are_unknown() -> None:
    async def run() -> None:
        subject = router(Slots())
        taken(subject.try_lease("alias"))
        taken(subject.try_lease("local"))
        assert subject.try_lease("m") is None
        with pytest.raises(UnknownModel) as caught:
            subject.try_lease("other")
        assert "m" in caught.value.hint

    asyncio.run(run())


def test_waiters_are_served_in_order_and_a_release_counts_once() -> None:
    async def run() -> None:
        subject = router(Slots(), slots=1)
        first = taken(subject.try_lease("m"))
        waiting = [asyncio.create_task(subject.lease("m")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await subject.lease("m")
        first.release()
        first.release()
        second = await waiting[0]
        assert not waiting[1].done()
        assert subject.in_flight == 1
        second.release()
        (await waiting[1]).release()
        assert subject.in_flight == 0

    asyncio.run(run())


def test_a_wait_ends_in_time() -> None:
    async def run() -> None:
        subject = router(Slots(), slots=1, wait_timeout_s=0.02)
        taken(subject.try_lease("m"))
        with pytest.raises(WaitTimeout):
            await subject.lease("m")
        assert subject.in_flight == 1

    asyncio.run(run())


def test_a_grant_that_meets_a_leaving_client_is_not_lost() -> None:
    async def run() -> None:
        subject = router(Slots(), slots=1)
        first = taken(subject.try_lease("m"))
        leaving = asyncio.create_task(subject.lease("m"))
        await asyncio.sleep(0)
        first.release()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert subject.in_flight == 0
        taken(subject.try_lease("m"))

    asyncio.run(run())


def test_an_abandoned_slot_stays_taken_until_the_engine_frees_it() -> None:
    async def run() -> None:
        engine = Slots()
        subject = router(engine)
        live, gone = taken(subject.try_lease("m")), taken(subject.try_lease("m"))
        engine.busy = 2
        gone.release(abandoned=True)
        await until(lambda: engine.looks >= 3)
        assert subject.in_flight == 2
        engine.busy = 1
        await until(lambda: subject.in_flight == 1)
        live.release()
        assert subject.in_flight == 0

    asyncio.run(run())


def test_a_dead_engine_ends_every_wait() -> None:
    async def run() -> None:
        subject = router(Slots(), slots=1)
        taken(subject.try_lease("m"))
        waiting = asyncio.create_task(subject.lease("m"))
        await asyncio.sleep(0)
        subject.engine_gone("killed by signal 9")
        with pytest.raises(EngineDied, match="signal 9"):
            await waiting
        with pytest.raises(EngineDied):
            subject.try_lease("m")
        assert subject.models()[0].state == "failed"

    asyncio.run(run())
