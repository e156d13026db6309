"""Moves that are proposed and made by the operator, over a loop with engines that do as they are told."""

import asyncio

import pytest

from cotenant.daemon.monitors.defragmenter import Defragmenter
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.errors import CannotMove, UnknownModel
from cotenant.domain.fragmentation import DefragmentMode
from cotenant.domain.units import MIB
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead, MoveAsked, PinAsked
from tests.daemon.core.test_loop import Host, Parts, fleet
from tests.support.waiting import until

SIZE = 1100 * MIB


def two_cards(daemon: Parts) -> None:
    now = daemon.loop.clock.now()
    cards = [
        Device(DeviceId(f"GPU-{n}"), DeviceKind.GPU, "card", index=n, total_bytes=SIZE) for n in range(2)
    ]
    daemon.loop.post(
        DevicesRead(now, tuple(DeviceReading(each, now, SIZE, SIZE, live=False) for each in cards))
    )


async def crowded(host: Host | None = None, **settings: object) -> Parts:
    """Two cards with a model each, of 400 and 300 MiB, and one of 900 that fits on neither."""
    daemon, _ = fleet(400, 300, 900, host=host, **settings)
    two_cards(daemon)
    for name in ("m0", "m1"):
        await daemon.operator.load(name)
    return daemon


async def test_the_moves_for_a_model_are_proposed_and_made_and_then_it_fits() -> None:
    daemon = await crowded()
    proposed = await daemon.operator.defragmentation("alias2")
    assert (proposed.model, proposed.fits, len(proposed.moves)) == ("m2", True, 1)
    assert await daemon.operator.defragmentation() == proposed, "it is the largest that gains"
    assert await daemon.operator.defragment("m2") == proposed
    state = daemon.loop.scheduler.state
    (move,) = proposed.moves
    assert state.residency_of(state.models[move.model]).devices == (move.to,)
    assert (await daemon.operator.defragmentation("m2")).moves == ()
    (await daemon.router.lease("m2")).release()
    assert len(state.residencies) == 3, "nothing was evicted"
    assert (await daemon.operator.defragmentation("m2")).text == "m2 is loaded"
    assert (await daemon.operator.defragmentation()).model is None
    await daemon.loop.stop(0)


async def test_a_proposal_is_searched_anew_once_something_has_changed() -> None:
    daemon = await crowded()
    before = await daemon.operator.defragmentation("m2")
    assert await daemon.operator.defragmentation("m2") is before
    for name in ("m0", "m1"):
        daemon.loop.post(PinAsked(daemon.loop.clock.now(), name, True))
    after = await daemon.operator.defragmentation("m2")
    assert (after.fits, after.moves, after.at_least) == (False, (), None)
    with pytest.raises(UnknownModel):
        await daemon.operator.defragmentation("m9")
    await daemon.loop.stop(0)


async def test_a_move_that_fails_ends_the_others_and_says_why() -> None:
    host = Host(at_once=True, fails=False)
    daemon = await crowded(host)
    host.fails = True
    with pytest.raises(CannotMove, match="was not moved"):
        async with asyncio.timeout(10):
            await daemon.operator.defragment("m2")
    await daemon.loop.stop(0)


async def test_what_is_off_is_not_told_but_found_for_who_names_a_model() -> None:
    daemon = await crowded(defragment=DefragmentMode.OFF)
    assert (await daemon.operator.defragmentation("m2")).moves
    assert not (await daemon.operator.defragmentation("m2", unasked=True)).moves
    assert not (await daemon.operator.defragmentation()).moves
    await daemon.loop.stop(0)


def watched(daemon: Parts) -> tuple[Defragmenter, asyncio.Task[None]]:
    found = Defragmenter(daemon.loop, daemon.view, daemon.operator, every_s=0.01)
    daemon.loop.feed.listeners.append(found.decided)
    return found, asyncio.create_task(found.run())


def moves(daemon: Parts) -> list[str]:
    return [each.text for each in daemon.operator.recent() if each.kind is DecisionKind.MOVE]


async def test_auto_moves_an_idle_model_for_one_that_waits_and_nothing_is_evicted() -> None:
    daemon = await crowded(defragment=DefragmentMode.AUTO, min_residency_s=3600.0)
    defragmenter, watching = watched(daemon)
    (await daemon.router.lease("m2")).release()
    assert len([text for text in moves(daemon) if "serves from" in text]) == 1
    loaded = {each.model for each in daemon.loop.scheduler.state.residencies.values()}
    assert loaded == {"m0", "m1", "m2"}

    await daemon.operator.unload("m2")
    (here,) = {d for r in daemon.loop.scheduler.state.residencies.values() for d in r.devices}
    there = frozenset({DeviceId("GPU-0"), DeviceId("GPU-1")} - {here})
    daemon.loop.post(MoveAsked(daemon.loop.clock.now(), "m1", there))
    await until(lambda: daemon.operator._move_has_ended("m1"))
    before = moves(daemon)
    assert (await daemon.operator.defragmentation("m2")).moves
    await defragmenter._make_room("m2")
    assert moves(daemon) == before, "both cards rest"
    watching.cancel()
    await daemon.loop.stop(0)


async def test_auto_leaves_models_in_use_where_they_are() -> None:
    daemon = await crowded(defragment=DefragmentMode.AUTO)
    defragmenter, watching = watched(daemon)
    held = [daemon.router.try_lease(name) for name in ("m0", "m1")]
    waiting = asyncio.create_task(daemon.router.lease("m2"))
    await until(lambda: any(each.kind is DecisionKind.WAITING for each in daemon.operator.recent()))
    assert (await daemon.operator.defragmentation("m2")).moves, "an operator may have them moved"
    await defragmenter._make_room("m2")
    assert not moves(daemon)
    for lease in held:
        assert lease is not None
        lease.release()
    (await waiting).release()
    watching.cancel()
    await daemon.loop.stop(0)


async def test_advice_moves_nothing() -> None:
    daemon = await crowded(min_residency_s=3600.0)
    _, watching = watched(daemon)
    waiting = asyncio.create_task(daemon.router.lease("m2"))
    await until(lambda: any(each.kind is DecisionKind.WAITING for each in daemon.operator.recent()))
    assert (await daemon.operator.defragmentation()).model == "m2", "who waits is asked about first"
    assert not moves(daemon)
    waiting.cancel()
    watching.cancel()
    await daemon.loop.stop(0)
