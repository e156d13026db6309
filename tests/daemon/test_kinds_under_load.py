"""Three kinds of engine on a card that holds two of them, asked by many at once: the laws hold throughout."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.engines.fake_programs import hugging_face_folder, vllm_program
from tests.support.engines.orders import fake_server
from tests.support.http.client import post
from tests.support.models.gguf_models import build_tiny_llama

pytestmark = [pytest.mark.engine, pytest.mark.slow]

GIB = 1 << 30
CARD, RESERVE, OF_EACH = 8 * GIB, 1 * GIB, 3 * GIB
NAMES = ("llama", "vllm", "command")
CLIENTS, MOST_ROUNDS = 9, 12


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Serving]:
    """Serve xllamacpp, the stand-in of vLLM and a command; each is planned with about 3 GiB."""
    models = [
        {"name": "llama", "path": str(build_tiny_llama(tmp_path / "tiny.gguf"))},
        {
            "name": "vllm",
            "engine": "vllm",
            "path": str(hugging_face_folder(tmp_path / "hf")),
            "command": [str(vllm_program(tmp_path))],
        },
        {
            "name": "command",
            "engine": "command",
            "command": [str(fake_server(tmp_path)), "--port", "{port}"],
            "memory": "3GiB",
        },
    ]
    config = {
        "defaults": {"keep_alive": "5m", "ctx": 512, "parallel": 2},
        "scheduling": {"policy": "lru", "min_residency": 0, "overdue": "300ms", "drain_share": 1.0},
        "models": models,
    }
    (tmp_path / "cotenant.yaml").write_text(json.dumps(config))
    argv = ["serve", "--config", str(tmp_path / "cotenant.yaml"), "--port", "0", "--gpus", "8GiB"]
    argv += ["--reserve-mib", "1024", "--overhead-mib", str(OF_EACH >> 20)]
    with Serving(argv, tmp_path / "state", module="tests.support.daemon.audited") as serving:
        serving.address()
        yield serving


async def client(port: int, number: int, answers: list[tuple[str, int, bytes]]) -> None:
    """Ask for each model in turn, every second time for a stream."""
    for turn in range(len(NAMES)):
        name = NAMES[(number + turn) % len(NAMES)]
        body = {"model": name, "prompt": "Once", "max_tokens": 4, "stream": turn % 2 == 1}
        reply = await post(port, "/v1/completions", body)
        answers.append((name, reply.status, reply.body))


async def load(daemon: Serving, answers: list[tuple[str, int, bytes]]) -> list[int]:
    """Have all clients ask; return what was claimed of the card meanwhile."""
    claimed: list[int] = []
    async with asyncio.TaskGroup() as asking:
        tasks = [asking.create_task(client(port_of(daemon), n, answers)) for n in range(CLIENTS)]
        while not all(task.done() for task in tasks):
            (card,) = (await asyncio.to_thread(get, daemon, "/api/devices"))["devices"]
            claimed.append(card["claimed_bytes"])
            assert card["overcommitted"] is False
            await asyncio.wait(tasks, timeout=0.05)
    return claimed


def counted(daemon: Serving, metric: str, **labels: str) -> float:
    """Add a counter's samples up that bear these labels."""
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    lines = get(daemon, "/metrics", as_text=True).splitlines()
    found = [
        line for line in lines if line.startswith(f"{metric}{{") and all(each in line for each in wanted)
    ]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def evictions(daemon: Serving, name: str) -> float:
    return counted(daemon, "cotenant_model_unloads_total", model=name, reason="evicted")


def failures(daemon: Serving) -> list[Any]:
    wrong = ("failed", "not_freed", "refused", "overcommitted")
    return [d for d in get(daemon, "/api/decisions?limit=500")["decisions"] if d["kind"] in wrong]


def test_three_kinds_share_a_card_that_holds_two_and_no_law_is_ever_broken(daemon: Serving) -> None:
    answers: list[tuple[str, int, bytes]] = []
    claimed: list[int] = []
    for _ in range(MOST_ROUNDS):
        claimed += asyncio.run(load(daemon, answers))
        if min(evictions(daemon, name) for name in NAMES) >= 2:
            break
    assert [(name, status) for name, status, _ in answers if status != 200] == []
    assert all(b"choices" in body for _, _, body in answers)
    assert OF_EACH < max(claimed) <= CARD - RESERVE, "two of them were there at once, never three"
    for name in NAMES:
        assert counted(daemon, "cotenant_requests_total", model=name, status="2xx") == len(answers) / 3
        assert evictions(daemon, name) >= 2, "each went for others and came back"
    assert failures(daemon) == []
    assert daemon.terminate() == 0
    held = re.search(r"the laws held after each of (\d+) steps", daemon.output)
    assert held, daemon.output
    assert int(held[1]) > 2 * len(answers), "each request is at least granted and given back"
