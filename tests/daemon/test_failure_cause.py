"""What ended an engine reaches the client, the story, the model's page and the metrics."""

import asyncio
import json
import re
import stat
import urllib.request
from pathlib import Path

import pytest

from tests.support.daemon.serving import Serving
from tests.support.engines.orders import fake_server
from tests.support.http.client import post
from tests.support.models.gguf_models import build_tiny_llama

pytestmark = pytest.mark.slow

LOG = Path(__file__).parents[1] / "engines" / "diagnosis" / "logs" / "llama-cpp-20431.txt"


@pytest.fixture
def out_of_memory(tmp_path: Path) -> Path:
    """Write a llama-server that dies while loading, with the log of a real one."""
    program = tmp_path / "out-of-memory"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'  --help|--version|--list-devices) exec {fake_server(tmp_path)} "$@" ;;\n'
        "esac\n"
        f"cat {LOG} >&2; exit 1\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(address + path, timeout=60) as response:
        body: bytes = response.read()
    return body


def test_the_cause_of_a_failed_load_reaches_everybody(tmp_path: Path, out_of_memory: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    build_tiny_llama(models / "tiny.gguf")
    argv = ["serve", "--models-dir", str(models), "--port", "0", "--llama-server", str(out_of_memory)]
    with Serving(argv, tmp_path / "state") as daemon:
        address = daemon.address()
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 1, "messages": []}
        reply, anthropic, ollama = (
            asyncio.run(post(int(address.rpartition(":")[2]), path, asked))
            for path in ("/v1/completions", "/v1/messages", "/api/generate")
        )
        ordered = asyncio.run(post(int(address.rpartition(":")[2]), "/api/models/tiny/load", {}))
        told = json.loads(get(address, "/api/models/tiny/why"))
        metrics = get(address, "/metrics").decode()
        page = json.loads(get(address, "/api/models/tiny"))
        assert daemon.terminate() == 0

    assert reply.status == 503
    error = json.loads(reply.body)["error"]
    assert (error["code"], error["cause"]) == ("engine_load_failed", "gpu_memory_loading")
    assert json.loads(anthropic.body)["error"]["cause"] == "gpu_memory_loading"
    assert json.loads(ollama.body)["cause"] == "gpu_memory_loading"
    assert json.loads(ordered.body)["error"]["cause"] == "gpu_memory_loading"
    assert "its device 0 has no room for another 144817.04 MiB (allocating 144817.04 MiB" in error["message"]
    assert "See `cotenant gpus` for who holds memory" in error["message"]
    failed = [each for each in told["decisions"] if each["kind"] == "failed"]
    assert {each["facts"]["cause"] for each in failed} == {"gpu_memory_loading"}
    assert "has no room" in page["last_failure"]
    assert page["last_cause"] == "gpu_memory_loading"
    assert 'cause="gpu_memory_loading"' in metrics
    assert re.search(r"cotenant.decisions.*failed.*has no room", daemon.output)


def test_advice_after_a_load_without_room_has_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "FAKE_SAYS", "E alloc: allocating 10.00 MiB on device 0: cudaMalloc failed: out of memory"
    )
    monkeypatch.setenv("FAKE_EXIT", "1")
    build_tiny_llama(tmp_path / "tiny.gguf")
    argv = ["serve", "--models-dir", str(tmp_path), "--port", "0", "--gpus", "24GiB,24GiB"]
    with Serving([*argv, "--llama-server", str(fake_server(tmp_path))], tmp_path / "state") as daemon:
        port = int(daemon.address().rpartition(":")[2])
        reply = asyncio.run(post(port, "/v1/completions", {"model": "tiny", "prompt": "a"}))
        assert daemon.terminate() == 0
    message = json.loads(reply.body)["error"]["message"]
    found = re.search(r"With what it got, one of these would fit: .*\(--n-ctx (\d+)\)", message)
    assert found, message
    assert 512 <= int(found[1]) < 4096
