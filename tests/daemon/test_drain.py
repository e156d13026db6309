"""What SIGTERM means to those who wait and to those who are being answered."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post
from tests.support.models.gguf_models import build_tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("model") / "model.gguf")


async def ask(daemon: Serving, name: str, **more: object) -> Reply:
    body = {"model": name, "prompt": "x", "max_tokens": 8, **more}
    return await post(port_of(daemon), "/v1/completions", body)


async def until_state(daemon: Serving, name: str, state: str) -> None:
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(get, daemon, f"/api/models/{name}"))["state"] != state:
            await asyncio.sleep(0.02)


def test_who_waits_for_a_load_is_told_at_once_and_who_is_answered_is_answered(
    model: Path, tmp_path: Path
) -> None:
    engines = {"slow": {"FAKE_READY_AFTER_S": 60}, "busy": {"FAKE_TOKENS": 12, "FAKE_TOKEN_S": 0.25}}

    async def run(daemon: Serving) -> tuple[Reply, float, Reply]:
        busy = asyncio.create_task(ask(daemon, "busy", stream=True))
        await until_state(daemon, "busy", "ready")
        waiting = asyncio.create_task(ask(daemon, "slow"))
        await until_state(daemon, "slow", "loading")
        daemon.process.terminate()
        began = time.monotonic()
        refused = await waiting
        return refused, time.monotonic() - began, await busy

    with fake_fleet(tmp_path, model, "4GiB", engines) as daemon:
        refused, after_s, answered = asyncio.run(run(daemon))
        assert refused.status == 503, refused.body
        assert json.loads(refused.body)["error"]["code"] == "shutting_down"
        assert after_s < 2
        assert answered.body.rstrip().endswith(b"data: [DONE]")
        assert daemon.finish() == 0
