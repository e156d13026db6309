"""Until when engines run without a daemon, and whom an agent obeys."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.agent.events import EventLog
from cotenant.agent.lease import Epoch, Lease
from cotenant.clock import ManualClock
from cotenant.domain.nodes import LeaseOver, StaleEpoch
from cotenant.nodes.messages import EngineGone, EngineLeft, EngineState, HelloAnswer, Renew, Start
from cotenant.nodes.protocol import RENEW, START
from cotenant.nodes.transport import ask
from tests.engines.contract import complete
from tests.support.agents import AgentProcess, Daemon, agent
from tests.support.engines.orders import fake_server, host_order
from tests.support.waiting import ends, until, wait_until


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def running(answer: HelloAnswer) -> list[str]:
    """Return the engines that an agent has, but for those that it still tells the end of."""
    return [each.id for each in answer.engines if each.state is not EngineState.ENDED]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def lease(tmp_path: Path, clock: ManualClock) -> Iterator[Lease]:
    found = Lease(tmp_path / "lease", clock.now)
    found.lease_s = 60.0
    yield found
    found.close()


def test_a_delay_shortens_a_lease_and_never_lengthens_it(lease: Lease, clock: ManualClock) -> None:
    stamp = lease.stamp()
    clock.advance(25.0)
    lease.renew(stamp)
    assert lease.left_s == 35.0
    late = stamp - 10.0
    lease.renew(late)
    assert lease.left_s == 35.0, "an older renewal that arrives later changes nothing"
    clock.advance(35.0)
    assert lease.left_s == 0.0
    with pytest.raises(LeaseOver, match="no daemon has renewed the lease of 1 m 0 s"):
        lease.check()


def test_a_renewal_that_was_under_way_for_longer_than_the_lease_renews_nothing(
    lease: Lease, clock: ManualClock
) -> None:
    stamp = lease.stamp()
    clock.advance(61.0)
    lease.renew(stamp)
    assert lease.left_s == 0.0


def test_a_stamp_of_another_boot_is_refused(lease: Lease, clock: ManualClock) -> None:
    with pytest.raises(LeaseOver, match="another boot"):
        lease.renew(clock.now() + 1.0)


def test_a_lease_is_what_guards_read_and_is_over_for_an_agent_that_begins(
    tmp_path: Path, lease: Lease, clock: ManualClock
) -> None:
    lease.renew(clock.now())
    assert int.from_bytes((tmp_path / "lease").read_bytes(), "little") == 1_060_000_000_000
    with contextlib.closing(Lease(tmp_path / "lease", clock.now)) as again:
        assert again.left_s == 0.0


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_lease_and_its_stamps_heed_no_clock_that_people_set(
    tmp_path: Path, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = time.time
    with contextlib.closing(Lease(tmp_path / "lease")) as held:
        held.lease_s = 600.0
        stamp = held.stamp()
        monkeypatch.setattr("time.time", lambda: wall() + 60 * minutes)
        held.renew(stamp)
        assert 0.0 < held.left_s <= 600.0
        assert held.stamp() - stamp < 300.0


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_events_of_an_agent_that_began_after_its_clock_was_set_are_taken_for_no_others(
    minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, before = time.time_ns, EventLog()
    before.add(EngineGone("first"))
    monkeypatch.setattr("time.time_ns", lambda: wall() + 60 * minutes * 10**9)
    after = EventLog()
    after.add(EngineGone("second"))
    assert (await after.after(before.last, 0.0, lambda: 0.0)).lost
    assert [each.id for each in (await before.after(before.last - 1, 0.0, lambda: 0.0)).events] == ["first"]


def test_the_highest_epoch_is_obeyed_also_after_a_restart(tmp_path: Path) -> None:
    epoch = Epoch(tmp_path / "epoch")
    epoch.obey(7)
    epoch.obey(7)
    with pytest.raises(StaleEpoch, match="obeys daemon 7 of the fleet, and this is daemon 6"):
        Epoch(tmp_path / "epoch").obey(6)
    (tmp_path / "epoch").write_text("nonsense")
    assert Epoch(tmp_path / "epoch").highest == 0


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, "--llama-server", str(fake_server(folder))) as running:
        yield running


async def test_without_a_daemon_engines_end_and_the_gate_is_closed(there: AgentProcess) -> None:
    async with Daemon(there, lease_s=2.0).connected() as daemon:
        engine = await daemon.host.start(host_order(there.folder / "m.gguf"))
        await engine.wait_ready(60)
        assert b'"choices"' in await complete(engine)
        daemon.stop_beating()
        assert (await engine.wait_exit()).why == "tiny was ended: no daemon has renewed its lease of 2.0 s"
        with pytest.raises((ConnectionError, AssertionError)):
            await complete(engine)
        with pytest.raises(LeaseOver):
            await daemon.host.start(host_order(there.folder / "m.gguf"))
        stamp = await daemon.renew((await daemon.hello()).stamp)
        await daemon.renew(stamp)
        again = await daemon.host.start(host_order(there.folder / "m.gguf"))
        await again.stop(0)


async def test_engines_end_with_their_lease_though_the_agent_is_stopped(there: AgentProcess) -> None:
    async with Daemon(there, lease_s=2.0).connected() as daemon:
        engine = await daemon.host.start(host_order(there.folder / "m.gguf"))
        await engine.wait_ready(60)
        assert engine.node_pid is not None
        pidfd = os.pidfd_open(engine.node_pid)
        daemon.stop_beating()
        os.kill(there.pid, signal.SIGSTOP)
        try:
            assert await asyncio.to_thread(ends, pidfd)
            # The agent has done nothing: it was the guard.
            assert state_of(there.pid) == "T"
            log = there.folder / "state" / "logs" / "tiny.log"
            wait_until(lambda: "its lease ended" in log.read_text())
        finally:
            os.kill(there.pid, signal.SIGCONT)
        assert "no daemon has renewed its lease" in (await engine.wait_exit()).why
        await engine.stop(0)


async def test_a_daemon_that_began_earlier_is_obeyed_no_more(there: AgentProcess) -> None:
    async with Daemon(there, epoch=5).connected() as first, Daemon(there, epoch=6).connected():
        with pytest.raises(StaleEpoch, match="obeys daemon 6"):
            await ask(first.transport, "b", RENEW, Renew(5, 0.0))
        with pytest.raises(StaleEpoch):
            await first.host.start(host_order(there.folder / "m.gguf"))
        first.stop_beating()


async def test_an_order_that_comes_again_starts_nothing(there: AgentProcess) -> None:
    async with Daemon(there, epoch=10).connected() as daemon:
        order = Start(10, "twice", host_order(there.folder / "m.gguf"))
        one, other = await asyncio.gather(*(ask(daemon.transport, "b", START, order) for _ in range(2)))
        assert one.pid == other.pid is not None
        assert running(await daemon.hello()) == ["twice"]
        engine = daemon.host.adopt(one)
        await engine.stop(0)
        replayed = await ask(daemon.transport, "b", START, order)
        assert (replayed.state, replayed.pid) == ("ended", None)
        await until(lambda: [event for event in daemon.events if isinstance(event, EngineLeft)])
        assert not running(await daemon.hello())
