"""How long each decision took: counted by event, and logged if all streams stood still for too long."""

import logging
import re

import pytest

from cotenant.clock import ManualClock
from cotenant.scheduling.events import RequestLeft, TimerFired
from tests.daemon.core.test_loop import fleet


class Ticking(ManualClock):
    """A clock by which every reading of it takes `step_s`."""

    step_s = 0.0

    def now(self) -> float:
        self.advance(self.step_s)
        return super().now()


def slow_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return [re.sub(r"\d+ ms", "… ms", line) for line in lines if line.startswith("a decision took")]


async def test_a_decision_of_more_than_20_ms_is_logged_with_its_event_and_model_and_all_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    daemon, _ = fleet(100)
    loop = daemon.loop
    clock = loop.clock = Ticking(loop.clock.now())
    caplog.clear()
    (await daemon.router.lease("m0")).release()
    assert not slow_lines(caplog)
    clock.step_s = 0.025
    lease = daemon.router.try_lease("m0")
    assert lease is not None
    lease.release()
    assert slow_lines(caplog) == ["a decision took … ms: event=LeaseReleased model=m0"]
    loop.post(TimerFired(clock.now()))
    assert slow_lines(caplog) == ["a decision took … ms: event=TimerFired model=-"]
    clock.step_s = 0.019
    loop.post(RequestLeft(clock.now(), daemon.loop.scheduler.state.next_id()))
    assert not slow_lines(caplog)
    times = daemon.operator.decision_times()
    counted = {event: sum(times[event].counts) for event in ("LeaseReleased", "TimerFired", "RequestLeft")}
    assert counted == {"LeaseReleased": 2, "TimerFired": 1, "RequestLeft": 1}
    assert round(times["LeaseReleased"].total, 6) >= 0.025
    clock.step_s = 0.0
    await loop.stop(0)


async def test_a_slow_decision_on_an_engine_names_its_model(caplog: pytest.LogCaptureFixture) -> None:
    daemon, _ = fleet(100)
    clock = daemon.loop.clock = Ticking(daemon.loop.clock.now())
    waiting = daemon.router.lease("alias0")
    clock.step_s = 0.03
    lease = await waiting
    told = slow_lines(caplog)
    assert "a decision took … ms: event=RequestArrived model=m0" in told
    assert "a decision took … ms: event=EngineReady model=m0" in told
    clock.step_s = 0.0
    lease.release()
    await daemon.loop.stop(0)
