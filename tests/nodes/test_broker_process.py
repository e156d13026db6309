"""The broker is a child that may die, hang or talk nonsense: calls then fail, and another one is started."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cotenant.clock import SystemClock
from cotenant.domain.nodes import NodeUnreachable
from cotenant.nodes import broker_process
from cotenant.nodes.broker_process import BrokerTransport
from tests.support.nodes import stub_broker
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def transport(folder: Path, *runs: str) -> AsyncIterator[BrokerTransport]:
    how = folder / "how"
    how.write_text("\n".join(runs))
    command = (sys.executable, str(Path(stub_broker.__file__)), str(how))
    made = BrokerTransport("f", "auto", SystemClock(), command)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_process, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(broker_process, "_PING_EVERY_S", 0.02)
    monkeypatch.setattr(broker_process, "_PING_S", 1.0)


async def test_a_call_goes_to_its_node_and_comes_back(tmp_path: Path) -> None:
    async with transport(tmp_path, "serve") as broker:
        await until(lambda: broker.problem is None)
        assert [(each.id, each.name) for each in broker.routes] == [("n1", "b")]
        assert await broker.call("n1", "renew", {"epoch": 3}, 5.0) == {"method": "renew", "epoch": 3}
        with pytest.raises(NodeUnreachable, match="no such node"):
            await broker.call("n2", "renew", {}, 5.0)


@pytest.mark.parametrize("first", ["die", "hang"])
async def test_another_is_started_when_it_dies_or_hangs_and_the_call_fails_at_once(
    tmp_path: Path, first: str
) -> None:
    async with transport(tmp_path, first, "serve") as broker:
        await until(lambda: broker.problem is None)
        with pytest.raises(NodeUnreachable, match="made anew"):
            await broker.call("n1", "renew", {}, 600.0)
        await until(lambda: broker.problem is None)
        assert await broker.call("n1", "renew", {}, 5.0) == {"method": "renew"}


async def test_what_is_no_message_ends_it(tmp_path: Path) -> None:
    async with transport(tmp_path, "junk", "serve") as broker:
        await until(lambda: broker.problem is None)
        assert broker.routes


async def test_why_ray_cannot_be_joined_is_said_and_tried_again(tmp_path: Path) -> None:
    seen: list[str | None] = []
    async with transport(tmp_path, "refuse", "serve") as broker:
        broker.listeners.append(lambda: seen.append(broker.problem))
        with pytest.raises(NodeUnreachable, match="made anew"):
            await broker.call("n1", "renew", {}, 5.0)
        await until(lambda: broker.problem is None)
    assert "Ray at nowhere cannot be joined: nobody is there" in seen
