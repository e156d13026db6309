"""One suite for every kind of engine: what the scheduler and the gateway count on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.domain.errors import EngineError, EngineLoadTimeout
from tests.engines.contract import KINDS, ON_NODE, OPTIONAL, Subject, complete, on_node, running
from tests.support.agents import AgentProcess, agent

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with agent(tmp_path_factory.mktemp("agent")) as there:
        yield there


@pytest.fixture(params=[pytest.param(kind, marks=OPTIONAL.get(kind, ())) for kind in KINDS])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    made = KINDS[request.param](tmp_path)
    if request.param == ON_NODE:
        made = on_node(made, request.getfixturevalue("running_agent"))
    with made.cleanup:
        yield made


async def test_it_starts_becomes_ready_and_serves_under_its_name(subject: Subject) -> None:
    async with running(subject.host, subject.order, subject.load_within_s) as engine:
        assert b'"choices"' in await complete(engine)
        assert engine.build.kind is engine.endpoint.kind is subject.order.placement.recipe.engine


async def test_it_streams(subject: Subject) -> None:
    async with running(subject.host, subject.order, subject.load_within_s) as engine:
        body = await complete(engine, stream=True)
        assert body.count(b"data: ") >= 3
        assert b"data: [DONE]" in body


async def test_an_idle_one_counts_no_busy_slot(subject: Subject) -> None:
    async with running(subject.host, subject.order, subject.load_within_s) as engine:
        await complete(engine)
        if not subject.counts_slots:
            return
        async with asyncio.timeout(60):
            while await engine.busy_slots() != 0:
                await asyncio.sleep(0.01)


async def test_when_stopped_it_says_so_and_what_held_its_memory_is_gone(subject: Subject) -> None:
    engine = await subject.host.start(subject.order)
    await engine.wait_ready(subject.load_within_s)
    exited = asyncio.create_task(engine.wait_exit())
    await engine.stop(2)
    async with asyncio.timeout(60):
        assert (await exited).why == "tiny was stopped"
    assert not subject.in_memory(engine)
    await engine.stop(0)


async def test_it_can_be_loaded_again_after_it_was_stopped(subject: Subject) -> None:
    for _ in range(2):
        async with running(subject.host, subject.order, subject.load_within_s) as engine:
            assert await complete(engine)


async def test_its_end_from_outside_is_told_with_its_reason(subject: Subject) -> None:
    async with running(subject.host, subject.order, subject.load_within_s) as engine:
        exited = asyncio.create_task(engine.wait_exit())
        await asyncio.to_thread(subject.kill, engine)
        async with asyncio.timeout(60):
            assert subject.death in (await exited).why


async def test_a_load_that_fails_is_explained_and_leaves_nothing(subject: Subject) -> None:
    engine = await subject.host.start(subject.broken)
    with pytest.raises(EngineError) as failed:
        await engine.wait_ready(subject.load_within_s)
    assert subject.complaint in failed.value.message
    assert failed.value.hint
    assert not subject.in_memory(engine)
    await engine.stop(0)


async def test_a_load_that_takes_too_long_is_given_up(subject: Subject) -> None:
    if subject.slow is None:
        pytest.skip("this kind cannot be made to load slowly")
    engine = await subject.host.start(subject.slow)
    with pytest.raises(EngineLoadTimeout, match="tiny"):
        await engine.wait_ready(0.2)
    assert not subject.in_memory(engine)
    await engine.stop(0)


async def test_its_log_is_kept_if_it_is_ours(subject: Subject) -> None:
    async with running(subject.host, subject.order, subject.load_within_s) as engine:
        if not subject.has_log:
            assert engine.log_path is None
            return
        assert engine.log_path is not None
        assert engine.log_path.name == "tiny.log"
        assert engine.log_path.stat().st_size > 0


async def test_it_reports_what_it_took_if_it_tells(subject: Subject) -> None:
    async with running(subject.host, subject.order, subject.load_within_s) as engine:
        report = engine.report()
        if not subject.reports:
            assert report is None
            return
        assert report is not None
        assert sum(device.parts.total for device in report.devices) > 0
