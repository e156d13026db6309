"""The whole: a real llama.cpp engine behind the gateway, spoken to by the real `openai` client."""

import json
import os
import resource
import signal
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import openai
import pytest

from cotenant.hardware.mps.discovery import variables_of
from tests.support.daemon.serving import Serving, serving
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama
from tests.support.models.known_model import KNOWN_PROMPT, KNOWN_TEXT, known_model, real_server
from tests.support.waiting import alive, ends, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def daemon(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(model, tmp_path_factory.mktemp("state"), "--parallel", "2", "--n-ctx", "8192") as running:
        running.address()
        yield running


@pytest.fixture
def client(daemon: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.address()}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def get_json(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=60) as response:
        found: dict[str, object] = json.load(response)
        return found


def test_chat_and_completions_answer(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=8
    )
    assert chat.choices[0].message.content
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 8
    text = client.completions.create(model="local", prompt="Once", max_tokens=4)
    assert text.choices[0].finish_reason == "length"


def test_a_stream_arrives_in_pieces_and_ends(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=12, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 4
    assert "".join(pieces)


def test_streaming_and_not_give_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="One", max_tokens=16, temperature=0)
    parts = client.completions.create(model="tiny", prompt="One", max_tokens=16, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text


def test_models_and_a_wrong_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.completions.create(model="gpt-9", prompt="x")


def test_more_clients_than_slots_are_all_answered(daemon: Serving) -> None:
    import asyncio

    async def run() -> list[int]:
        async with openai.AsyncOpenAI(
            base_url=f"{daemon.address()}/v1", api_key="none", max_retries=0
        ) as client:
            answers = await asyncio.gather(
                *(client.completions.create(model="tiny", prompt="x", max_tokens=3) for _ in range(20))
            )
        return [answer.usage.completion_tokens for answer in answers if answer.usage]

    assert asyncio.run(run()) == [3] * 20


def test_planned_bytes_are_served_beside_those_that_the_engine_reports(daemon: Serving) -> None:
    told = get_json(f"{daemon.address()}/api/models/tiny")
    placement = told["placement"]
    assert isinstance(placement, dict)
    host = placement["host"]
    assert host["planned"]["weights"] == pytest.approx(host["reported"]["weights"], abs=20_000)
    assert host["planned"]["kv"] == host["reported"]["kv"]
    assert abs(host["difference_bytes"]) < 4 << 20


def engine_port(pid: int) -> int:
    """Find the port that a process listens on."""
    table = Path(f"/proc/{pid}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    rows = [line.split() for line in table]
    ports = {
        int(row[1].split(":")[1], 16) for row in rows if f"socket:[{row[9]}]" in inodes and row[3] == "0A"
    }
    return ports.pop()


def key_of(pid: int) -> dict[str, str]:
    """Return the header with the key that an engine got in its environment."""
    key = (variables_of(pid) or {})["LLAMA_API_KEY"]
    return {"Authorization": f"Bearer {key}"}


def busy_slots(pid: int) -> int:
    address = f"http://127.0.0.1:{engine_port(pid)}/slots"
    with urllib.request.urlopen(urllib.request.Request(address, headers=key_of(pid)), timeout=60) as response:
        return sum(slot["is_processing"] for slot in json.load(response))


def wait_for_slots(pid: int, count: int, *, every_s: float = 0.02) -> None:
    wait_until(lambda: busy_slots(pid) == count, every_s=every_s)


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "One", "logprobs": 2},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hello"}], "logprobs": True, "top_logprobs": 2},
    ],
)
def test_a_long_plain_answer_is_what_the_engine_itself_would_answer(
    daemon: Serving, request_: dict[str, object]
) -> None:
    path = "/v1/chat/completions" if "messages" in request_ else "/v1/completions"
    body = {"model": "tiny", "max_tokens": 300, "temperature": 0, "cache_prompt": False, **request_}

    def ask(base: str) -> dict[str, object]:
        request = urllib.request.Request(base + path, json.dumps(body).encode(), key_of(daemon.engine_pid()))
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.headers["Content-Type"].startswith("application/json")
            answer: dict[str, object] = json.load(response)
        for changing in ("id", "created", "timings"):
            del answer[changing]
        return answer

    assert ask(daemon.address()) == ask(f"http://127.0.0.1:{engine_port(daemon.engine_pid())}")


def send_and_leave(daemon: Serving, *, stream: bool) -> None:
    """Ask for a very long answer and close the connection once the engine works on it."""
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 8000, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    port = int(daemon.address().rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + body)
        wait_for_slots(daemon.engine_pid(), 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_generation(daemon: Serving, stream: bool) -> None:
    wait_for_slots(daemon.engine_pid(), 0)
    send_and_leave(daemon, stream=stream)
    # llama.cpp looks for departed clients after a second without results, and a look at its slots is one.
    wait_for_slots(daemon.engine_pid(), 0, every_s=1.5)


def test_a_plain_request_is_given_up_even_while_another_client_streams(
    daemon: Serving, client: openai.OpenAI
) -> None:
    pid = daemon.engine_pid()
    wait_for_slots(pid, 0)
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=8000, stream=True)
    with stream:
        next(iter(stream))
        body = json.dumps({"model": "tiny", "prompt": "y"}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", int(daemon.address().rpartition(":")[2]))) as leaving:
            leaving.sendall(head + body)
            wait_for_slots(pid, 2)
        wait_for_slots(pid, 1)
        next(iter(stream))
    wait_for_slots(pid, 0)


def test_sigterm_lets_a_running_answer_end_and_leaves_no_process(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as running:
        address, pid = running.address(), running.engine_pid()
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(model="local", prompt="x", max_tokens=60, stream=True)
            first = next(iter(stream))
            assert first.choices
            running.process.send_signal(signal.SIGTERM)
            last = [chunk for chunk in stream if chunk.choices][-1]
            assert last.choices[0].finish_reason == "length"
        assert running.finish() == 0
        assert not alive(pid)


def test_kill_9_of_the_daemon_takes_the_engine_with_it(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as running:
        running.address()
        pid = running.engine_pid()
        running.process.kill()
        running.process.wait()
        wait_until(lambda: not alive(pid))


def test_an_engine_that_dies_is_replaced_for_the_next_request(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as running:
        address, pid = running.address(), running.engine_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            assert client.completions.create(model="tiny", prompt="x", max_tokens=2).choices[0].text
        told = get_json(f"{address}/api/models/tiny/why")
        assert "signal 9" in json.dumps(told) or "SIGKILL" in json.dumps(told)
        assert running.terminate() == 0
        assert "Traceback" not in running.output


def test_a_file_that_the_engine_cannot_load_is_one_clear_error(tmp_path: Path) -> None:
    broken = build_tiny_llama(tmp_path / "broken.gguf")
    whole = broken.read_bytes()
    broken.write_bytes(whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight"))
    with serving(broken, tmp_path) as running:
        assert running.finish() == 1
    assert "error: broken could not be loaded" in running.output
    assert "attn_q" in running.output
    assert "Traceback" not in running.output


def test_described_gpus_are_planned_and_the_engine_runs_on_the_cpu(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--gpus", "RTX 3090:24576:2000") as running:
        address = running.address()
        assert "RTX 3090" in running.output
        assert "described, not of this machine" in running.output
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            assert client.completions.create(model="tiny", prompt="x", max_tokens=2).choices[0].text


def test_a_key_is_asked_for_when_one_is_set(model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsesame\n", encoding="utf-8")
    with serving(model, tmp_path, "--api-key-file", str(keys)) as running:
        address = running.address()
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]


def test_an_embedding_model_embeds(tmp_path: Path) -> None:
    embedder = build_tiny_embedder(tmp_path / "embedder.gguf")
    with (
        serving(embedder, tmp_path, "--n-ctx", "512", "--parallel", "1") as running,
        openai.OpenAI(base_url=f"{running.address()}/v1", api_key="none") as client,
    ):
        answer = client.embeddings.create(model="local", input="hello", encoding_format="float")
    assert len(answer.data[0].embedding) == 64


@pytest.mark.parametrize("way", ["embedded", "llama-server"])
def test_a_trained_model_gives_its_known_text_through_both_ways(way: str, tmp_path: Path) -> None:
    trained = known_model()
    flags = ["--n-ctx", "512"]
    if way == "llama-server":
        flags += ["--llama-server", str(real_server())]
    with serving(trained, tmp_path, *flags) as running:
        with openai.OpenAI(base_url=f"{running.address()}/v1", api_key="none") as client:
            answer = client.completions.create(
                model="local", prompt=KNOWN_PROMPT, temperature=0, max_tokens=40
            )
        assert answer.choices[0].text.startswith(KNOWN_TEXT)


def test_as_many_files_may_be_open_as_the_machine_allows(model: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        running = serving(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with running as daemon:
        daemon.address()
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_killed_again_and_again_it_leaves_no_engine_and_a_sound_record(model: Path, tmp_path: Path) -> None:
    for _ in range(4):
        with serving(model, tmp_path) as running:
            running.address()
            engine = os.pidfd_open(running.engine_pid())
            running.process.kill()
            running.process.wait()
            assert ends(engine)
        with closing(sqlite3.connect(tmp_path / "cotenant.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with serving(model, tmp_path) as first, serving(model, tmp_path) as second:
        # Two daemons may share one folder of state, too.
        for running in (first, second):
            assert get_json(f"{running.address()}/api/decisions?limit=500")
    assert not list(tmp_path.glob("*.damaged-*"))
