"""Which devices are drained, by whom, and what a restart keeps of it."""

import pytest

from cotenant.daemon.core.mover import FleetMover
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.errors import BadRequest, CannotMove, StoreError, UnknownDevice
from cotenant.domain.units import GIB
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead
from tests.daemon.core.test_loop import Parts, fleet


class Settings:
    """A store that holds settings in memory, or is broken."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, object]] = {"other": {"drained": False}}
        self.broken = False
        self.services = self

    async def settings(self) -> dict[str, dict[str, object]]:
        if self.broken:
            raise StoreError("it is gone")
        return self.kept

    async def set_setting(self, key: str, value: dict[str, object]) -> None:
        await self.settings()
        self.kept[key] = value


def cards(daemon: Parts, *indices: int) -> None:
    found = [Device(DeviceId(f"GPU-{i}"), DeviceKind.GPU, "card", index=i, total_bytes=GIB) for i in indices]
    daemon.loop.post(DevicesRead(0.0, tuple(DeviceReading(d, 0.0, GIB, GIB, live=False) for d in found)))


def drained(daemon: Parts) -> set[str]:
    return {*daemon.loop.scheduler.state.ledger.drained}


async def test_what_an_operator_drains_is_drained_after_a_restart() -> None:
    store = Settings()
    daemon, _ = fleet(100)
    cards(daemon, 0, 1)
    before = FleetMover(daemon.loop, store, lambda: ())  # type: ignore[arg-type]
    await before.drain("gpu-1", True)
    await before.drain("0", True)
    await before.drain("0", False)
    assert drained(daemon) == {"GPU-1"}

    daemon, _ = fleet(100)
    after = FleetMover(daemon.loop, store, lambda: ())  # type: ignore[arg-type]
    await after.restore()
    after.republish()
    assert drained(daemon) == {"GPU-1"}, "also while the card is not there yet"
    store.broken = True
    cards(daemon, 0, 1)
    with pytest.raises(StoreError):
        await after.drain("0", True)
    assert drained(daemon) == {"GPU-1"}, "what would be forgotten is not done"


async def test_only_the_file_undrains_what_it_drains() -> None:
    configured = ["1"]
    daemon, _ = fleet(100)
    cards(daemon, 0, 1)
    mover = FleetMover(daemon.loop, Settings(), lambda: configured)  # type: ignore[arg-type]
    mover.republish()
    assert drained(daemon) == {"GPU-1"}
    with pytest.raises(BadRequest, match="by the configuration"):
        await mover.drain("1", False)
    configured.clear()
    mover.republish()
    assert not drained(daemon)


async def test_a_broken_store_keeps_no_daemon_from_starting() -> None:
    store = Settings()
    store.broken = True
    daemon, _ = fleet(100)
    await FleetMover(daemon.loop, store, lambda: ()).restore()  # type: ignore[arg-type]


async def test_which_gpu_is_meant() -> None:
    daemon, _ = fleet(100)
    cards(daemon, 0, 1)
    mover = FleetMover(daemon.loop, Settings(), lambda: ())  # type: ignore[arg-type]
    for name, says in (("2", "no GPU"), ("", "no GPU"), ("GPU-", "several")):
        with pytest.raises(UnknownDevice, match=says):
            mover.plan_drain(name)
    with pytest.raises(CannotMove, match="not loaded"):
        mover.plan_move("m0", ["1"])


async def test_a_move_returns_once_the_model_is_served_there_or_says_why_not() -> None:
    daemon, host = fleet(100)
    cards(daemon, 0, 1)
    mover = FleetMover(daemon.loop, Settings(), lambda: ())  # type: ignore[arg-type]
    lease = await daemon.router.lease("m0")
    plan = await mover.move("alias0", ["1"])
    assert plan.target == ("GPU 1 card",)
    (status,) = daemon.operator.statuses()
    assert (status.devices, [other.role for other in status.others]) == (("GPU-1",), ["leaving"])
    (first, second) = daemon.operator.devices()
    assert (first.residents, second.residents) == (("m0",), ("m0",))
    lease.release()
    await daemon.loop.until(lambda: len(daemon.loop.effects.running) == 1)
    assert {*host.engines[0].graces} == {0}, "with a grace another kind of engine would be put to sleep"
    host.fails = True
    with pytest.raises(CannotMove, match="has failed, it stays on GPU 1"):
        await mover.move("m0", ["0"])
    await daemon.loop.stop(0)
