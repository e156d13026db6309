"""What SIGTERM means to those who wait and to those who are being answered."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


async def ask(daemon: Serving, name: str, **more: object) -> Reply:
    body = {"model": name, "prompt": "x", "max_tokens": 8, **more}
    return await post(port_of(daemon), "/v1/completions", body)


async def until_state(daemon: Serving, name: str, state: str, in_flight: int = 0) -> None:
    def reached() -> bool:
        model = get(daemon, f"/api/models/{name}")
        return bool(model["state"] == state and model["in_flight"] == in_flight)

    await asyncio.to_thread(wait_until, reached)


def test_who_waits_for_a_load_is_told_at_once_and_who_is_answered_is_answered(
    model: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    engines = {"slow": {"FAKE_READY_AFTER_S": 600}, "busy": {"FAKE_LAST_TOKEN_ONCE": gate}}

    async def run(daemon: Serving) -> tuple[Reply, Reply]:
        busy = asyncio.create_task(ask(daemon, "busy", stream=True))
        await until_state(daemon, "busy", "ready", in_flight=1)
        waiting = asyncio.create_task(ask(daemon, "slow"))
        await until_state(daemon, "slow", "loading")
        daemon.process.terminate()
        refused = await waiting
        gate.touch()
        return refused, await busy

    with fake_fleet(tmp_path, model, "4GiB", engines) as daemon:
        refused, answered = asyncio.run(run(daemon))
        assert refused.status == 503, refused.body
        assert json.loads(refused.body)["error"]["code"] == "shutting_down"
        assert answered.body.rstrip().endswith(b"data: [DONE]")
        assert daemon.finish() == 0
