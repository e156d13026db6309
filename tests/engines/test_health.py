"""Server processes that hang after they were ready."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.exit_causes import Cause
from cotenant.engines.base.health import HealthRules, until_hung
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.engines.process.activity import Activity
from cotenant.engines.process.process import group_lives
from tests.engines.contract import inputs
from tests.support.engines.orders import fake_server, host_order, with_env
from tests.support.http.client import post

QUICK = HealthRules(every_s=0.02, timeout_s=0.05)


async def test_a_stopped_engine_is_killed_and_its_end_says_why(tmp_path: Path) -> None:
    given = replace(inputs(tmp_path, llama_server=fake_server(tmp_path)), health=QUICK)
    engine = await LlamaHost(given).start(host_order(Path("m.gguf")))
    try:
        async with asyncio.timeout(60):
            await engine.wait_ready(60)
            os.kill(engine.pid, signal.SIGSTOP)
            end = await engine.wait_exit()
    finally:
        await engine.stop(0)
    assert end.cause is Cause.HUNG
    assert "its process is stopped" in end.why
    assert str(engine.log_path) in end.why
    assert not group_lives(engine.pid)


async def test_an_engine_whose_queue_is_stuck_is_killed_though_it_is_healthy(tmp_path: Path) -> None:
    rules = HealthRules(every_s=0.02, timeout_s=0.05, busy_s=0.3)
    given = replace(inputs(tmp_path, llama_server=fake_server(tmp_path)), health=rules)
    engine = await LlamaHost(given).start(with_env(host_order(Path("m.gguf")), FAKE_STUCK_ON="poison"))
    try:
        async with asyncio.timeout(60):
            await engine.wait_ready(60)
            port, body = engine.endpoint.port, {"prompt": "poison"}
            key = {"Authorization": f"Bearer {engine.endpoint.key}"}
            asked = asyncio.ensure_future(post(port, "/v1/completions", body, headers=key))
            end = await engine.wait_exit()
            # Its connection ends without an answer.
            await asyncio.wait({asked})
            assert asked.exception() is not None
    finally:
        await engine.stop(0)
    assert end.cause is Cause.HUNG
    assert "may compute without end" in end.why


def scripted(*cpu_s: float, state: str = "S") -> Callable[[], Activity]:
    """Return what a group has used, one value after another, then the last one for ever."""
    values = list(cpu_s)
    return lambda: Activity(values.pop(0) if len(values) > 1 else values[0], frozenset(state))


async def never() -> bool:
    return False


async def test_a_server_that_computes_is_given_time() -> None:
    checks = 0

    async def answers() -> bool:
        nonlocal checks
        checks += 1
        return False

    busy = scripted(*(float(n) for n in range(8)))
    async with asyncio.timeout(60):
        seen = await until_hung(answers, busy, HealthRules(0.001, 0.001, times=3, busy_s=3600))
    assert checks == 7 + 3
    assert "computes nothing" in seen


async def test_a_server_that_computes_without_end_hangs_after_all() -> None:
    def ever_busier() -> Activity:
        return Activity(asyncio.get_running_loop().time() * 4, frozenset("R"))

    async with asyncio.timeout(60):
        seen = await until_hung(never, ever_busier, HealthRules(0.001, 0.01, busy_s=0.1))
    assert "may compute without end" in seen


async def test_an_answer_between_begins_the_count_anew() -> None:
    replies = [False, False, True, False, False, True, False, False, False]
    left = list(replies)

    async def answers() -> bool:
        return left.pop(0)

    async with asyncio.timeout(60):
        await until_hung(answers, scripted(1.0), HealthRules(0.001, 0.001))
    assert left == []


async def test_a_container_whose_processes_are_not_seen_may_be_busy() -> None:
    task = asyncio.ensure_future(until_hung(never, lambda: None, HealthRules(0.001, 0.001, busy_s=3600)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await task


def test_activity_is_cpu_time_and_states() -> None:
    activity = Activity.of(os.getpid())
    assert activity.cpu_s > 0
    assert activity.states
