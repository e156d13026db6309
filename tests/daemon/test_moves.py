"""Models move and cards are drained in a daemon as users run it, and no request is lost."""

import asyncio
import json
import os
import random
import signal
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cotenant.engines.process.guard import descendants
from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOM = "8GiB,8GiB"
STREAMS = int(os.environ.get("COTENANT_MOVE_STREAMS", "12"))
MOVES = int(os.environ.get("COTENANT_MOVES", "4"))
"""`COTENANT_MOVE_STREAMS=50 COTENANT_MOVES=20` is the long run of docs/moving.md."""
KILLS = int(os.environ.get("COTENANT_MOVE_KILLS", "2"))
WORDS = 8
TOLD = {"engine_died", "engine_load_failed", "model_unloaded"}
"""What a client may be told whose engine was killed."""


def order(daemon: Serving, path: str, method: str = "POST") -> dict[str, Any]:
    request = urllib.request.Request(daemon.address() + path, method=method)
    with urllib.request.urlopen(request, timeout=300) as response:
        found: dict[str, Any] = json.load(response)
        return found


def engines(daemon: Serving, program: bytes = b"fake_llama_server.py") -> set[int]:
    def runs(pid: int) -> bool:
        try:
            return program in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return {pid for pid in descendants(daemon.process.pid) if runs(pid)}


def move_ends(daemon: Serving, name: str = "m") -> Counter[str]:
    return Counter(d["facts"]["outcome"] for d in story(daemon, name) if "outcome" in d["facts"])


# A real engine.


@pytest.fixture
def daemon(model: Path, tmp_path: Path) -> Iterator[Serving]:
    """A model of llama.cpp on one of two cards, with a slot for every stream."""
    config = {
        "defaults": {"ctx": 256 * STREAMS, "parallel": STREAMS},
        "models": [{"name": "m", "path": str(model)}],
    }
    (tmp_path / "cotenant.yaml").write_text(json.dumps(config))
    argv = ["serve", "--config", str(tmp_path / "cotenant.yaml"), "--port", "0", "--gpus", ROOM]
    with Serving(argv, tmp_path / "state", module="tests.support.daemon.audited") as serving:
        serving.address()
        yield serving


def text_of(number: int) -> str:
    """What this client's stream must be, to the byte."""
    return " ".join(f"{number}.{word}" for word in range(WORDS))


async def ask(port: int, number: int) -> tuple[str, str]:
    """Ask for a stream; return its text, and the code of an error, "cut" if it just ends.

    With random weights the greedy answer depends on which requests share a batch: a grammar fixes it.
    """
    reply = await post(
        port,
        "/v1/completions",
        {
            "model": "m",
            "prompt": "Once",
            "max_tokens": 200,
            "temperature": 0,
            "stream": True,
            "grammar": f'root ::= "{text_of(number)}"',
        },
    )
    if reply.status != 200:
        return "", json.loads(reply.body)["error"]["code"]
    events = [line[6:] for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    *parts, last = events or [""]
    error = next((json.loads(part)["error"]["code"] for part in events if part.startswith('{"error"')), "")
    text = "".join(json.loads(part)["choices"][0]["text"] for part in parts if '"choices"' in part)
    return text, error or ("" if last == "[DONE]" else "cut")


async def keep_asking(port: int, number: int, until: asyncio.Event) -> list[tuple[str, str]]:
    answers = []
    while not until.is_set():
        answers.append(await ask(port, number))
    return answers


async def streams_during(daemon: Serving, work: Any) -> list[list[tuple[str, str]]]:
    """Have every client ask again and again while `work` is done in a thread."""
    done, port = asyncio.Event(), port_of(daemon)
    async with asyncio.TaskGroup() as clients:
        asking = [clients.create_task(keep_asking(port, number, done)) for number in range(STREAMS)]
        try:
            await asyncio.to_thread(work)
        finally:
            done.set()
    return [task.result() for task in asking]


@pytest.mark.engine
@pytest.mark.timeout(0)
def test_streams_do_not_notice_that_their_model_moves(daemon: Serving) -> None:
    port = port_of(daemon)

    async def unmoved() -> list[tuple[str, str]]:
        return await asyncio.gather(*(ask(port, number) for number in range(STREAMS)))

    expected = asyncio.run(unmoved())
    assert expected == [(text_of(number), "") for number in range(STREAMS)]

    def move() -> None:
        for turn in range(MOVES):
            order(daemon, f"/api/models/m/move?to={(turn + 1) % 2}")

    found = asyncio.run(streams_during(daemon, move))
    for number, answers in enumerate(found):
        assert {*answers} == {expected[number]}
    served = get(daemon, "/api/models/m")
    assert served["loads"] == MOVES + 1
    assert served["devices"] == [get(daemon, "/api/devices")["devices"][MOVES % 2]["uuid"]]
    wait_until(lambda: not get(daemon, "/api/models/m")["others"])
    assert f'cotenant_model_moves_total{{model="m",outcome="live",runtime="llama.cpp"}} {MOVES}.0' in get(
        daemon, "/metrics", as_text=True
    )
    print(f"{sum(map(len, found))} streams of {STREAMS} clients over {MOVES} moves, all as unmoved")


@pytest.mark.engine
@pytest.mark.timeout(0)
def test_engines_killed_while_they_move_cost_only_the_streams_that_they_had(daemon: Serving) -> None:
    rng, port = random.Random(7), port_of(daemon)
    assert asyncio.run(ask(port, 0)) == (text_of(0), "")

    def move_and_kill() -> None:
        for turn in range(KILLS):
            mover = threading.Thread(target=lambda to=turn: try_move(daemon, (to + 1) % 2))
            mover.start()
            threading.Event().wait(rng.uniform(0, 1.5))
            for pid in rng.sample(sorted(engines(daemon, b"llama")), 1):
                os.kill(pid, signal.SIGKILL)
            mover.join()
            wait_until(lambda: get(daemon, "/api/models/m")["state"] == "ready")

    found = asyncio.run(streams_during(daemon, move_and_kill))
    ends: Counter[str] = Counter()
    for number, answers in enumerate(found):
        for text, error in answers:
            ends[error] += 1
            assert error or text == text_of(number)
            assert text_of(number).startswith(text), "what it got is right, also of a stream that was cut"
    assert ends.keys() - {""} <= TOLD, ends
    assert asyncio.run(ask(port, 1)) == (text_of(1), "")
    print(f"{KILLS} kills: {dict(ends)}; moves: {dict(move_ends(daemon))}")


def try_move(daemon: Serving, to: int) -> None:
    try:
        order(daemon, f"/api/models/m/move?to={to}")
    except urllib.error.HTTPError as refused:
        if refused.code != 409:
            raise


# Engines that do as a test says.


class Loading:
    """Has engines be ready once the test says."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ready"
        self.path.touch()

    def hold(self) -> None:
        self.path.unlink()

    def let(self) -> None:
        self.path.touch()


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(tmp_path)


@pytest.fixture
def fake(model: Path, tmp_path: Path, loading: Loading) -> Iterator[Serving]:
    with fake_fleet(tmp_path, model, ROOM, {"m": {"FAKE_READY_ONCE": str(loading.path)}}) as daemon:
        order(daemon, "/api/models/m/load")
        loading.hold()
        yield daemon


def chat(daemon: Serving) -> Reply:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return asyncio.run(post(port_of(daemon), "/v1/chat/completions", body))


def begin_move(daemon: Serving) -> threading.Thread:
    moving = threading.Thread(target=try_move, args=(daemon, 1))
    moving.start()
    wait_until(lambda: len(engines(daemon)) == 2)
    return moving


def test_a_successor_that_is_killed_is_not_noticed(fake: Serving, loading: Loading) -> None:
    (old,) = engines(fake)
    moving = begin_move(fake)
    (other,) = get(fake, "/api/models/m")["others"]
    assert (other["role"], other["state"]) == ("successor", "loading")
    (successor,) = engines(fake) - {old}
    os.kill(successor, signal.SIGKILL)
    moving.join()
    assert move_ends(fake) == {"failed": 1}
    assert chat(fake).status == 200
    assert engines(fake) == {old}
    loading.let()
    order(fake, "/api/models/m/move?to=1")
    assert chat(fake).status == 200
    assert engines(fake).isdisjoint({old, successor})


def test_a_request_waits_for_the_successor_if_the_old_engine_is_killed(
    fake: Serving, loading: Loading
) -> None:
    (old,) = engines(fake)
    moving = begin_move(fake)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: get(fake, "/api/models/m")["state"] == "loading")
    replies: list[Reply] = []
    asking = threading.Thread(target=lambda: replies.append(chat(fake)))
    asking.start()
    wait_until(lambda: get(fake, "/api/models/m")["queued"] == 1)
    loading.let()
    for thread in (asking, moving):
        thread.join()
    assert replies[0].status == 200
    assert get(fake, "/api/models/m")["loads"] == 2


def test_a_move_that_is_cancelled_ends_the_successor(fake: Serving) -> None:
    before = engines(fake)
    moving = begin_move(fake)
    order(fake, "/api/models/m/move", "DELETE")
    moving.join()
    wait_until(lambda: engines(fake) == before)
    assert move_ends(fake) == {"cancelled": 1}


def test_a_stream_ends_where_it_began_and_its_card_is_free_then(model: Path, tmp_path: Path) -> None:
    last = tmp_path / "last"
    with fake_fleet(tmp_path, model, ROOM, {"m": {"FAKE_LAST_TOKEN_ONCE": str(last)}}) as daemon:
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(chat(daemon)))
        asking.start()
        wait_until(lambda: get(daemon, "/api/models/m")["in_flight"] == 1)
        plan = order(daemon, "/api/devices/0/drain?dry_run=1")
        assert [each["method"] for each in plan["models"]] == ["live"]
        order(daemon, "/api/devices/0/drain")
        wait_until(lambda: move_ends(daemon) == {"live": 1})
        (other,) = get(daemon, "/api/models/m")["others"]
        assert (other["role"], other["state"], other["in_flight"]) == ("leaving", "draining", 1)
        assert get(daemon, "/api/devices")["devices"][0]["drain"] == "draining"
        last.touch()
        asking.join()
        assert replies[0].status == 200
        wait_until(lambda: get(daemon, "/api/devices")["devices"][0]["drain"] == "drained")
        assert get(daemon, "/api/devices")["devices"][0]["claimed_bytes"] == 0


def test_a_drain_survives_a_restart(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}) as daemon:
        order(daemon, "/api/devices/0/drain")
        daemon.terminate()
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}) as daemon:
        assert [each["drain"] for each in get(daemon, "/api/devices")["devices"]] == ["drained", None]
        assert order(daemon, "/api/models/m/load")["devices"] == [
            get(daemon, "/api/devices")["devices"][1]["uuid"]
        ]
        order(daemon, "/api/devices/0/undrain")
        assert [each["drain"] for each in get(daemon, "/api/devices")["devices"]] == [None, None]
