"""Engines that do what they should not, behind the daemon as users run it."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import PaperMachine, fake_fleet
from tests.support.http.client import Reply, post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TEXT = "/v1/completions"
ROOM = "4GiB"
OUT_OF_MEMORY = "CUDA error: out of memory"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[PaperMachine]:
    paper = PaperMachine(tmp_path, total_mib=1000)
    yield paper
    paper.end_heirs()


def ask(daemon: Serving, name: str, **more: object) -> Reply:
    return asyncio.run(post(port_of(daemon), TEXT, {"model": name, "prompt": "x", "max_tokens": 8, **more}))


def events(reply: Reply) -> list[Any]:
    lines = [line[6:] for line in reply.body.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def error_of(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.body)["error"]
    return found


def unloads(daemon: Serving, name: str) -> dict[str, float]:
    text = get(daemon, "/metrics", as_text=True)
    found = re.findall(rf'cotenant_model_unloads_total{{model="{name}",reason="(\w+)"[^}}]*}} (\S+)', text)
    return {reason: float(count) for reason, count in found}


def test_an_engine_that_dies_before_its_answer_is_replaced_and_the_client_sees_nothing(
    model: Path, tmp_path: Path
) -> None:
    once = {"FAKE_CRASH_AT_TOKEN": 0, "FAKE_CRASH_ONCE": tmp_path / "crashed"}
    with fake_fleet(tmp_path, model, ROOM, {"m": once}) as daemon:
        reply = ask(daemon, "m")
        assert reply.status == 200, reply.body
        assert json.loads(reply.body)["choices"][0]["text"].startswith("t0 t1")
        assert (tmp_path / "crashed").exists()
        assert [d["kind"] for d in story(daemon, "m")].count("load") == 2
        wait_until(lambda: unloads(daemon, "m") == {"engine_died": 1})


def test_engines_that_always_die_end_in_an_error_after_one_more_try(model: Path, tmp_path: Path) -> None:
    dies = {"FAKE_CRASH_AT_TOKEN": 0, "FAKE_SAYS": OUT_OF_MEMORY}
    with fake_fleet(tmp_path, model, ROOM, {"m": dies}) as daemon:
        reply = ask(daemon, "m")
        assert reply.status == 503, reply.body
        error = error_of(reply)
        assert (error["code"], error["cause"]) == ("engine_died", "gpu_memory_running")
        assert OUT_OF_MEMORY in error["message"]
        assert [d["kind"] for d in story(daemon, "m")].count("load") == 2


def test_a_stream_whose_engine_dies_in_it_ends_with_an_error_event(model: Path, tmp_path: Path) -> None:
    once = {"FAKE_CRASH_AT_TOKEN": 3, "FAKE_CRASH_ONCE": tmp_path / "crashed", "FAKE_SAYS": OUT_OF_MEMORY}
    with fake_fleet(tmp_path, model, ROOM, {"m": once}) as daemon:
        reply = ask(daemon, "m", stream=True)
        told = events(reply)
        assert [event["choices"][0]["text"] for event in told[:-1]] == ["t0 ", "t1 ", "t2 "]
        assert told[-1]["error"]["cause"] == "gpu_memory_running"
        assert "[DONE]" not in told
        whole = events(ask(daemon, "m", stream=True))
        assert whole[-1] == "[DONE]"
        assert len(whole) == 10


@pytest.mark.parametrize("garbage", ["words", "json", "shape", "cut"])
def test_garbage_in_place_of_a_long_answer_is_a_clear_error(
    model: Path, tmp_path: Path, garbage: str
) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {"FAKE_GARBAGE": garbage}}) as daemon:
        reply = ask(daemon, "m", max_tokens=4000)
        assert reply.status == 502, reply.body
        assert "engine" in error_of(reply)["message"]
        wait_until(lambda: get(daemon, "/api/models/m")["in_flight"] == 0)


def test_a_stream_that_is_cut_in_the_middle_ends_with_an_error_event(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {"FAKE_GARBAGE": "cut"}}) as daemon:
        told = events(ask(daemon, "m", stream=True))
        assert told[0]["choices"][0]["text"] == "t0 "
        assert told[-1]["error"]["message"]


def test_an_engine_that_is_refused_memory_is_one_clear_error_and_blocks_nobody(
    model: Path, tmp_path: Path, machine: PaperMachine
) -> None:
    engines = {
        "greedy": {"FAKE_CARD": machine.path, "FAKE_TAKES_MIB": 1200},
        "modest": {"FAKE_CARD": machine.path, "FAKE_TAKES_MIB": 200},
    }
    with fake_fleet(tmp_path, model, str(machine.path), engines) as daemon:
        refused = ask(daemon, "greedy")
        assert refused.status == 503, refused.body
        assert "1200" in error_of(refused)["message"]
        assert "GPU 0" in error_of(refused)["message"]
        assert ask(daemon, "modest").status == 200
        assert unloads(daemon, "greedy") == {}


def test_memory_that_outlives_its_engine_is_waited_for_before_the_next_load(
    model: Path, tmp_path: Path, machine: PaperMachine
) -> None:
    takes = {"FAKE_CARD": machine.path, "FAKE_TAKES_MIB": 600}
    engines = {"first": {**takes, "FAKE_HOLDS_S": 600}, "second": takes}
    bound = "{reclaim_bound: 10m}"
    with fake_fleet(tmp_path, model, str(machine.path), engines, scheduling=bound) as daemon:
        assert ask(daemon, "first").status == 200
        wait_until(lambda: get(daemon, "/api/models/first")["measured_bytes"] == 600 * 1024**2)
        # Loaded a moment too early it would be refused memory: the card is too small for both.
        with ThreadPoolExecutor() as pool:
            second = pool.submit(ask, daemon, "second")
            wait_until(lambda: [each["name"] for each in machine.card()["processes"]] == ["heir"])
            machine.end_heirs()
            assert second.result().status == 200
        told = {d["kind"]: d for d in story(daemon, "first")}
        assert told["freed"]["facts"]["waited_s"] > 0
        assert not [d for d in story(daemon, "second") if d["kind"] == "failed"]
        assert unloads(daemon, "first") == {"evicted": 1}


def test_memory_that_does_not_come_back_is_given_up_and_its_holder_named(
    model: Path, tmp_path: Path, machine: PaperMachine
) -> None:
    takes = {"FAKE_CARD": machine.path, "FAKE_TAKES_MIB": 600}
    engines = {"first": {**takes, "FAKE_HOLDS_S": 600}, "second": takes}
    bound = "{reclaim_bound: 1s}"
    with fake_fleet(tmp_path, model, str(machine.path), engines, scheduling=bound) as daemon:
        assert ask(daemon, "first").status == 200
        wait_until(lambda: get(daemon, "/api/models/first")["measured_bytes"] == 600 * 1024**2)
        reply = ask(daemon, "second")
        assert reply.status == 503, reply.body
        assert "does not fit" in error_of(reply)["message"]
        (told,) = [d for d in story(daemon, "first") if d["kind"] == "not_freed"]
        assert re.search(r"heir \(pid \d+, 600 MiB\)", told["text"]), told
        machine.end_heirs()
        # Up to ten seconds: while no engine runs, cards are read that seldom.
        wait_until(lambda: ask(daemon, "second").status == 200, every_s=0.25)
