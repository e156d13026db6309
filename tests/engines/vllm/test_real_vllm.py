"""What only a real vLLM can show; `make test-vllm` also runs the contract suite on it."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.engines.process.process import group_lives
from cotenant.engines.vllm.engine import VllmEngine, VllmHost
from cotenant.interfaces import Engine
from tests.engines.contract import inputs, running
from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving
from tests.support.engines.real_vllm import ENV, LOADS_WITHIN_S, QUICKLY, models, program, vllm_order
from tests.support.http.client import post
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


def host(folder: Path) -> VllmHost:
    return VllmHost(inputs(folder))


async def ask(engine: Engine, path: str, **body: Any) -> Any:
    headers = {"content-type": "application/json"}
    reply = await post(engine.endpoint.port, path, {"model": "tiny", **body}, headers=headers)
    return reply.status, json.loads(reply.body)


async def until(
    condition: Callable[[], Awaitable[bool]],
) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


def processes(name: bytes) -> list[int]:
    """Find the processes whose command line has a name in it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and name in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


async def test_it_tells_of_its_requests_and_what_became_of_a_process_of_its(tmp_path: Path) -> None:
    async with running(host(tmp_path), vllm_order(), LOADS_WITHIN_S) as engine:
        assert isinstance(engine, VllmEngine)
        assert engine.build.version.startswith("0.")

        async def busy(count: int) -> bool:
            return await engine.busy_slots() == count

        long = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True}
        asked = asyncio.create_task(ask(engine, "/v1/completions", **long))
        await until(lambda: busy(1))
        asked.cancel()
        await until(lambda: busy(0))
        status, refused = await ask(engine, "/v1/completions", prompt="Once", max_tokens=513)
        assert (status, refused["error"]["code"]) == (400, 400)

        exited = asyncio.create_task(engine.wait_exit())
        (worker,) = (pid for pid in processes(b"VLLM::Worker") if os.getpgid(pid) == engine.pid)
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(60):
            end = await exited
        assert end.cause is Cause.OOM_KILLED
        assert "VllmWorker-0 died without a message" in end.why
        await engine.stop(0)
        assert not group_lives(engine.pid)


async def test_an_embedding_model_embeds_and_does_not_chat(tmp_path: Path) -> None:
    async with running(host(tmp_path), vllm_order("embedding"), LOADS_WITHIN_S) as engine:
        status, told = await ask(engine, "/v1/embeddings", input=["one", "another"])
        assert status == 200
        assert [len(row["embedding"]) for row in told["data"]] == [128, 128]
        status, _ = await ask(engine, "/v1/completions", prompt="Once")
        assert status == 404


@pytest.mark.parametrize(
    ("order", "cause", "said"),
    [
        ({"args": ("--task", "embed")}, Cause.BAD_ARGUMENT, "does not know the argument --task"),
        ({"args": ("--enable-sleep-mode",)}, Cause.BAD_ARGUMENT, "vLLM cannot sleep on this device"),
        ({"n_ctx": 1024}, Cause.CONTEXT_TOO_LARGE, "1024 tokens is longer than the 512"),
        ({"cache_bytes": 40000}, Cause.CONTEXT_TOO_LARGE, "does not hold its context"),
    ],
    ids=["no such argument", "asleep on the CPU", "more than it takes", "no room for one request"],
)
async def test_why_it_does_not_start_is_told(
    tmp_path: Path, order: dict[str, Any], cause: Cause, said: str
) -> None:
    engine = await host(tmp_path).start(vllm_order(**order))
    with pytest.raises(EngineLoadFailed) as failed:
        await engine.wait_ready(LOADS_WITHIN_S)
    assert failed.value.cause is cause
    assert said in failed.value.message


def test_a_daemon_serves_it_and_nothing_of_it_outlives_the_daemon(tmp_path: Path) -> None:
    told = {"engine": "vllm", "command": [str(program())], "env": ENV, "args": list(QUICKLY), "sleep": 1}
    config = {
        "defaults": {"parallel": 2},
        "scheduling": {"min_residency": 0},
        "models": [{"name": "tiny", "path": str(models() / "text"), **told}],
    }
    path = tmp_path / "cotenant.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    flags = ["--port", "0", "--reserve-mib", "100", "--load-timeout", f"{LOADS_WITHIN_S:.0f}s"]
    with Serving(["serve", "--config", str(path), *flags], tmp_path / "state") as daemon:
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}

        def ask_for(more: dict[str, Any]) -> Any:
            return asyncio.run(
                post(port_of(daemon), "/v1/chat/completions", chat | more, within_s=LOADS_WITHIN_S)
            )

        answer = ask_for({})
        assert answer.status == 200, daemon.output
        assert json.loads(answer.body)["usage"]["completion_tokens"] == 8
        streamed = ask_for({"stream": True})
        assert streamed.body.count(b"data: ") >= 3
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        (model,) = get(daemon, "/api/models")["models"]
        assert model["state"] == "ready"
        assert model["recipe"]["n_ctx"] == 512, "the default of 4096 is more than the model takes"
        asyncio.run(post(port_of(daemon), "/api/models/tiny/unload", {}))
        wait_until(lambda: get(daemon, "/api/models")["models"][0]["state"] == "cold")
        assert "sleep" not in " ".join(decision["text"] for decision in story(daemon, "tiny"))
        assert ask_for({}).status == 200
        assert "Traceback" not in daemon.output
        (server,) = (
            pid for pid in processes(b"serve\0" + bytes(models() / "text")) if os.getpgid(pid) == pid
        )
        assert any(os.getpgid(pid) == server for pid in processes(b"VLLM::Worker"))
        daemon.process.kill()
        wait_until(lambda: not group_lives(server))
