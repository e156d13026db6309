"""Moves that are proposed and made by the operator, over a loop with engines that do as they are told."""

import asyncio

import pytest

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.errors import DoesNotFit, UnknownModel
from cotenant.domain.units import MIB
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead, PinAsked
from tests.daemon.core.test_loop import Host, Parts, fleet

SIZE = 1100 * MIB


def two_cards(daemon: Parts) -> None:
    now = daemon.loop.clock.now()
    cards = [
        Device(DeviceId(f"GPU-{n}"), DeviceKind.GPU, "card", index=n, total_bytes=SIZE) for n in range(2)
    ]
    daemon.loop.post(
        DevicesRead(now, tuple(DeviceReading(each, now, SIZE, SIZE, live=False) for each in cards))
    )


async def crowded(host: Host | None = None) -> Parts:
    """Two cards with a model each, of 400 and 300 MiB, and one of 900 that fits on neither."""
    daemon, _ = fleet(400, 300, 900, host=host)
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
    with pytest.raises(DoesNotFit, match="was not moved"):
        async with asyncio.timeout(10):
            await daemon.operator.defragment("m2")
    await daemon.loop.stop(0)
